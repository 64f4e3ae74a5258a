"""Layers and estimators compute what torch does, for every argument that torch takes."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from constructions import EXAMPLES, LAYERS
from hypothesis import given
from hypothesis import strategies as st
from kinds import LAYERS as KINDS
from pyro import poutine
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from pyro_bnn.estimators import Estimated, Flipout, LocalReparameterization
from pyro_bnn.nn import BayesianEmbedding

ROWS = {row.torch: row for row in KINDS}
NO_NOISE = [Flipout(), LocalReparameterization()]
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


def compare(case):
    """The layer and torch's agree, or refuse alike, with weights given as tensors or as draws."""
    kind, args, kwargs = case.kind, case.args, case.kwargs
    inputs, options = case.inputs, case.options
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


@pytest.mark.parametrize("draw", LAYERS.values(), ids=LAYERS)
@given(data=st.data())
@EXAMPLES
def test_layers(draw, data):
    compare(draw(data))


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
