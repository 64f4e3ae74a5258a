"""Layers and estimators compute what torch does, for every argument that torch takes."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import LAYERS
from pyro import poutine
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pyro_bnn.estimators import Estimated, Flipout, LocalReparameterization
from pyro_bnn.nn import BayesianEmbedding

ROWS = {row.torch: row for row in LAYERS}
SPACES = [1, 2, 3]
NO_NOISE = [Flipout(), LocalReparameterization()]
EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


def attempt(function, *args, **kwargs):
    """The result, or the type of the error."""
    torch.manual_seed(0)
    try:
        return function(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return type(error)


def without_noise(values, estimator):
    """Draws of these values by an estimator, with next to no noise."""
    return {
        name: Estimated(dist.Normal(v, torch.full_like(v, 1e-30)), v.dim(), estimator).rsample()
        for name, v in values.items()
    }


def compare(kind, args, kwargs, *inputs, **options):
    """The layer and torch's agree, or refuse alike, with weights given as tensors or as draws."""
    row = ROWS[kind]
    other = attempt(kind, *args, **kwargs)
    layer = attempt(row.make, *args, **kwargs)
    if isinstance(other, type):
        assert layer is other
        return
    values = {name: p.detach().clone() for name, p in other.named_parameters()}
    assert set(vars(layer)["_pyro_samples"]) == set(values)
    expected = attempt(other, *inputs, **options)
    given_values = [values]
    if getattr(other, "dropout", 0.0) in (0.0, 1.0):  # which are not random
        given_values += [without_noise(values, estimator) for estimator in NO_NOISE]
    for given_value in given_values:
        result = attempt(poutine.condition(layer, given_value), *inputs, **options)
        if isinstance(expected, type):
            assert isinstance(result, type)
            continue
        assert not isinstance(result, type), result
        same(result, expected)


def same(result, expected):
    if isinstance(expected, PackedSequence):
        assert isinstance(result, PackedSequence)
    if isinstance(expected, tuple):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            same(one, other)
    elif expected is None:
        assert result is None
    else:
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result, expected)


def one_or_each(data, values, space):
    """A number for all dimensions in space, or one for each."""
    return data.draw(st.one_of(values, st.tuples(*[values] * space)))


@pytest.mark.parametrize("space", SPACES)
@given(data=st.data())
@EXAMPLES
def test_convolutions(space, data):
    groups = data.draw(st.integers(1, 3))
    channels = [groups * data.draw(st.integers(1, 2)) for _ in range(2)]
    kwargs = {
        "stride": one_or_each(data, st.integers(1, 3), space),
        "padding": data.draw(
            st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"]))
            if data.draw(st.booleans())
            else st.tuples(*[st.integers(0, 2)] * space)
        ),
        "dilation": one_or_each(data, st.integers(1, 2), space),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        "device": data.draw(st.sampled_from([None, "cpu"])),
        "dtype": data.draw(st.sampled_from([torch.float32, torch.float64])),
    }
    kernel = one_or_each(data, st.integers(1, 3), space)
    batch = data.draw(st.sampled_from([(), (1,), (3,)]))
    size = [data.draw(st.integers(3, 6)) for _ in range(space)]
    x = torch.randn(*batch, channels[0], *size, dtype=kwargs["dtype"])
    compare(getattr(nn, f"Conv{space}d"), (*channels, kernel), kwargs, x)


@pytest.mark.parametrize("space", SPACES)
@given(data=st.data())
@EXAMPLES
def test_transposed_convolutions(space, data):
    groups = data.draw(st.integers(1, 3))
    channels = [groups * data.draw(st.integers(1, 2)) for _ in range(2)]
    kwargs = {
        "stride": one_or_each(data, st.integers(1, 3), space),
        "padding": one_or_each(data, st.integers(0, 1), space),
        "output_padding": one_or_each(data, st.integers(0, 2), space),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "dilation": one_or_each(data, st.integers(1, 2), space),
        "dtype": data.draw(st.sampled_from([torch.float32, torch.float64])),
    }
    kernel = one_or_each(data, st.integers(1, 3), space)
    batch = data.draw(st.sampled_from([(), (1,), (3,)]))
    size = [data.draw(st.integers(1, 3)) for _ in range(space)]
    x = torch.randn(*batch, channels[0], *size, dtype=kwargs["dtype"])
    options = {}
    if data.draw(st.booleans()):
        options["output_size"] = [data.draw(st.integers(1, 12)) for _ in range(space)]
    compare(getattr(nn, f"ConvTranspose{space}d"), (*channels, kernel), kwargs, x, **options)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@given(data=st.data())
@EXAMPLES
def test_recurrent_layers(kind, data):
    num_in, hidden = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    kwargs = {
        "num_layers": data.draw(st.integers(1, 3)),
        "bias": data.draw(st.booleans()),
        "batch_first": data.draw(st.booleans()),
        "dropout": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        "bidirectional": data.draw(st.booleans()),
        "dtype": dtype,
    }
    if kind is nn.LSTM or data.draw(st.integers(0, 4)) == 0:
        kwargs["proj_size"] = data.draw(st.integers(0, 2))
    length = data.draw(st.integers(1, 4))
    how = data.draw(st.sampled_from(["batched", "unbatched", "packed"]))
    size = data.draw(st.integers(1, 4))
    shape = {"unbatched": (length, num_in), "batched": (size, length, num_in)}.get(how)
    if how == "packed":
        lengths = torch.tensor([data.draw(st.integers(1, length)) for _ in range(size)])
        x = pack_padded_sequence(
            torch.randn(size, length, num_in, dtype=dtype), lengths, True, enforce_sorted=False
        )
    else:
        x = torch.randn(shape, dtype=dtype)
        if how == "batched" and not kwargs["batch_first"]:
            x = x.transpose(0, 1)
    inputs = [x]
    if data.draw(st.booleans()):
        layers = kwargs["num_layers"] * (2 if kwargs["bidirectional"] else 1)
        rows = (layers,) if how == "unbatched" else (layers, size)
        h = torch.randn(*rows, kwargs.get("proj_size") or hidden, dtype=dtype)
        inputs.append((h, torch.randn(*rows, hidden, dtype=dtype)) if kind is nn.LSTM else h)
    compare(kind, (num_in, hidden), kwargs, *inputs)


@given(data=st.data())
@EXAMPLES
def test_linear_layers(data):
    sizes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    batch = data.draw(st.lists(st.integers(0, 3), max_size=3))
    kwargs = {"bias": data.draw(st.booleans()), "dtype": dtype}
    compare(nn.Linear, sizes, kwargs, torch.randn(*batch, sizes[0], dtype=dtype))


@given(data=st.data())
@EXAMPLES
def test_embeddings(data):
    size = data.draw(st.integers(1, 6))
    kwargs = {
        "padding_idx": data.draw(st.one_of(st.none(), st.integers(-size - 1, size))),
        "scale_grad_by_freq": data.draw(st.booleans()),
        "dtype": data.draw(st.sampled_from([torch.float32, torch.float64])),
    }
    shape = data.draw(st.lists(st.integers(0, 3), max_size=2))
    x = torch.randint(size, shape)
    args = (size, data.draw(st.integers(1, 3)))
    compare(nn.Embedding, args, kwargs, x)


@pytest.mark.parametrize("estimator", [None, *NO_NOISE], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_max_norm(estimator, norm_type):
    kwargs = {"max_norm": 1.0, "norm_type": norm_type, "dtype": torch.float64}
    layer, other = BayesianEmbedding(6, 3, **kwargs), nn.Embedding(6, 3, **kwargs)
    with torch.no_grad():
        other.weight[0] *= 1e-3
    values = {"weight": other.weight.detach().clone()}
    before = values["weight"].clone()
    if estimator is not None:
        values = without_noise(values, estimator)
    x = torch.tensor([[0, 1], [2, 0]])
    torch.testing.assert_close(poutine.condition(layer, values)(x), other(x))
    torch.testing.assert_close(torch.as_tensor(values["weight"] + 0), before)
