"""Modules of torch with any arguments that they take, and inputs for them, drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

EXAMPLES = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
_IS_NEW = hasattr(nn, "LinearCrossEntropyLoss")  # torch 2.13
DTYPES = st.sampled_from([torch.float32, torch.float64])


@dataclass
class Construction:
    """``kind(*args, **kwargs)(*inputs, **options)``."""

    kind: Callable[..., nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def flags(data, *names: str) -> dict[str, bool]:
    return {name: data.draw(st.booleans()) for name in names}


def one_or_each(data, values, space):
    """A number for all dimensions in space, or one for each."""
    return data.draw(st.one_of(values, st.tuples(*[values] * space)))


def convolution(space, data):
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
        "dtype": data.draw(DTYPES),
    }
    kernel = one_or_each(data, st.integers(1, 3), space)
    batch = data.draw(st.sampled_from([(), (1,), (3,)]))
    size = [data.draw(st.integers(3, 6)) for _ in range(space)]
    x = torch.randn(*batch, channels[0], *size, dtype=kwargs["dtype"])
    return Construction(getattr(nn, f"Conv{space}d"), (*channels, kernel), kwargs, (x,))


def transposed_convolution(space, data):
    groups = data.draw(st.integers(1, 3))
    channels = [groups * data.draw(st.integers(1, 2)) for _ in range(2)]
    kwargs = {
        "stride": one_or_each(data, st.integers(1, 3), space),
        "padding": one_or_each(data, st.integers(0, 1), space),
        "output_padding": one_or_each(data, st.integers(0, 2), space),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "dilation": one_or_each(data, st.integers(1, 2), space),
        "dtype": data.draw(DTYPES),
    }
    kernel = one_or_each(data, st.integers(1, 3), space)
    batch = data.draw(st.sampled_from([(), (1,), (3,)]))
    size = [data.draw(st.integers(1, 3)) for _ in range(space)]
    x = torch.randn(*batch, channels[0], *size, dtype=kwargs["dtype"])
    options = {}
    if data.draw(st.booleans()):
        options["output_size"] = [data.draw(st.integers(1, 12)) for _ in range(space)]
    kind = getattr(nn, f"ConvTranspose{space}d")
    return Construction(kind, (*channels, kernel), kwargs, (x,), options)


def recurrent(kind, data):
    num_in, hidden = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    kwargs = {
        "num_layers": data.draw(st.integers(1, 3)),
        "dropout": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        "dtype": (dtype := data.draw(DTYPES)),
        **flags(data, "bias", "batch_first", "bidirectional"),
    }
    if kind is nn.LSTM or data.draw(st.integers(0, 4)) == 0:
        kwargs["proj_size"] = data.draw(st.integers(0, 2))
    if kind is nn.RNN:
        kwargs["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu", "selu"]))
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
    return Construction(kind, (num_in, hidden), kwargs, tuple(inputs))


def linear(data):
    sizes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    dtype = data.draw(DTYPES)
    batch = data.draw(st.lists(st.integers(0, 3), max_size=3))
    kwargs = {"bias": data.draw(st.booleans()), "dtype": dtype}
    return Construction(nn.Linear, sizes, kwargs, (torch.randn(*batch, sizes[0], dtype=dtype),))


def embedding(data):
    size = data.draw(st.integers(1, 6))
    kwargs = {
        "padding_idx": data.draw(st.one_of(st.none(), st.integers(-size - 1, size))),
        "scale_grad_by_freq": data.draw(st.booleans()),
        "dtype": data.draw(DTYPES),
    }
    shape = data.draw(st.lists(st.integers(0, 3), max_size=2))
    x = torch.randint(size, shape)
    return Construction(nn.Embedding, (size, data.draw(st.integers(1, 3))), kwargs, (x,))


#: The modules that there are Bayesian layers for.
LAYERS = {
    **{f"Conv{n}d": partial(convolution, n) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": partial(transposed_convolution, n) for n in (1, 2, 3)},
    **{kind.__name__: partial(recurrent, kind) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    "Linear": linear,
    "Embedding": embedding,
}


def cell(kind, data):
    num_in, hidden, dtype = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), DTYPES
    kwargs = {"dtype": data.draw(dtype), **flags(data, "bias")}
    if kind is nn.RNNCell:
        kwargs["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu"]))
    rows = data.draw(st.sampled_from([(), (1,), (3,)]))
    inputs = [torch.randn(*rows, num_in, dtype=kwargs["dtype"])]
    if data.draw(st.booleans()):
        h = torch.randn(*rows, hidden, dtype=kwargs["dtype"])
        inputs.append((h, h + 1) if kind is nn.LSTMCell else h)
    return Construction(kind, (num_in, hidden), kwargs, tuple(inputs))


def bilinear(data):
    sizes = [data.draw(st.integers(1, 3)) for _ in range(3)]
    kwargs = {"dtype": data.draw(DTYPES), **flags(data, "bias")}
    rows = data.draw(st.sampled_from([(), (3,), (2, 3), (0,)]))
    inputs = tuple(torch.randn(*rows, size, dtype=kwargs["dtype"]) for size in sizes[:2])
    return Construction(nn.Bilinear, tuple(sizes), kwargs, inputs)


def prelu(data):
    num = data.draw(st.sampled_from([1, 4]))
    kwargs = {"num_parameters": num, "init": data.draw(st.floats(0, 1)), "dtype": data.draw(DTYPES)}
    rows = data.draw(st.sampled_from([(3, 4), (3, 4, 2), (3, 4, 2, 2)]))
    return Construction(nn.PReLU, (), kwargs, (torch.randn(rows, dtype=kwargs["dtype"]),))


def batch_norm(name, space, data):
    kwargs = {
        "momentum": data.draw(st.sampled_from([None, 0.3])),
        "dtype": data.draw(DTYPES),
        **flags(data, "affine", "track_running_stats"),
    }
    size = [] if space == 1 and data.draw(st.booleans()) else [3] * space
    x = torch.randn(2, 4, *size, dtype=kwargs["dtype"])
    return Construction(getattr(nn, f"{name}{space}d"), (4,), kwargs, (x,))


def sync_batch_norm(data):
    make = lambda *args, **kwargs: nn.SyncBatchNorm(*args, **kwargs).eval()  # trains on GPUs only
    return Construction(make, (4,), flags(data, "affine"), (torch.randn(2, 4, 3),))


def layer_norm(kind, data):
    shape = data.draw(st.sampled_from([(4,), (3, 4)]))
    kwargs = {"dtype": data.draw(DTYPES), **flags(data, "elementwise_affine")}
    kwargs |= flags(data, "bias") if kind is nn.LayerNorm else {}
    return Construction(kind, (shape,), kwargs, (torch.randn(2, 3, 4, dtype=kwargs["dtype"]),))


def group_norm(data):
    kwargs = {"dtype": data.draw(DTYPES), **flags(data, "affine")}
    groups = data.draw(st.sampled_from([1, 2, 4]))
    x = torch.randn(2, 4, 3, dtype=kwargs["dtype"])
    return Construction(nn.GroupNorm, (groups, 4), kwargs, (x,))


def embedding_bag(data):
    size = data.draw(st.integers(2, 6))
    kwargs = {
        "mode": data.draw(st.sampled_from(["sum", "mean", "max"])),
        "padding_idx": data.draw(st.one_of(st.none(), st.integers(-size, size - 1))),
        "max_norm": data.draw(st.sampled_from([None, None, None, 1.0])),
        "dtype": data.draw(DTYPES),
        **flags(data, "include_last_offset"),
    }
    kwargs["scale_grad_by_freq"] = kwargs["mode"] != "max" and data.draw(st.booleans())
    kwargs["sparse"] = data.draw(st.sampled_from([False, False, False, True]))
    index = torch.randint(size, (8,))
    options = {}
    if data.draw(st.booleans()):
        index = index.view(2, 4)
    else:
        options["offsets"] = torch.tensor([0, 3, 8] if kwargs["include_last_offset"] else [0, 3])
    if kwargs["mode"] == "sum" and data.draw(st.booleans()):
        options["per_sample_weights"] = torch.rand(index.shape, dtype=kwargs["dtype"])
    return Construction(nn.EmbeddingBag, (size, 3), kwargs, (index,), options)


def attention(data):
    kwargs = {
        "dropout": data.draw(st.sampled_from([0.0, 0.3])),
        "kdim": data.draw(st.sampled_from([None, 4, 3])),
        "vdim": data.draw(st.sampled_from([None, 4, 2])),
        "dtype": data.draw(DTYPES),
        **flags(data, "bias", "add_bias_kv", "add_zero_attn", "batch_first"),
    }
    rows = (5, 2) if not kwargs["batch_first"] else (2, 5)
    sizes = (4, kwargs["kdim"] or 4, kwargs["vdim"] or 4)
    inputs = tuple(torch.randn(*rows, size, dtype=kwargs["dtype"]) for size in sizes)
    options = flags(data, "need_weights", "average_attn_weights")
    if data.draw(st.booleans()):
        options["key_padding_mask"] = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    if data.draw(st.booleans()):
        options["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
    return Construction(nn.MultiheadAttention, (4, 2), kwargs, inputs, options)


def transformer(kind, data):
    kwargs = {
        "dropout": data.draw(st.sampled_from([0.0, 0.3])),
        "activation": data.draw(st.sampled_from(["relu", "gelu"])),
        "dtype": data.draw(DTYPES),
        **flags(data, "batch_first", "norm_first", "bias"),
    }
    x = torch.randn(3, 3, 4, dtype=kwargs["dtype"])
    stacks = {
        nn.TransformerEncoder: nn.TransformerEncoderLayer,
        nn.TransformerDecoder: nn.TransformerDecoderLayer,
    }
    args: tuple[Any, ...] = (4, 2)
    if kind is nn.Transformer:
        kwargs |= {"num_encoder_layers": 2, "num_decoder_layers": 1}
    kwargs["dim_feedforward"] = 5
    make: Any = kind
    if kind in stacks:

        def make(*args, **kwargs):
            layer = stacks[kind](*args, **kwargs)
            return kind(layer, 2, nn.LayerNorm(4, dtype=kwargs["dtype"]))

    is_decoder = kind not in (nn.TransformerEncoder, nn.TransformerEncoderLayer)
    options = {}
    if data.draw(st.booleans()):
        name = "tgt_mask" if is_decoder else "mask"
        if kind is nn.TransformerEncoderLayer:
            name = "src_mask"
        options[name] = torch.full((3, 3), float("-inf"), dtype=kwargs["dtype"]).triu(1)
    return Construction(make, args, kwargs, (x, x + 1) if is_decoder else (x,), options)


def adaptive_softmax(data):
    kwargs = {
        "cutoffs": data.draw(st.sampled_from([[2], [3, 6]])),
        "div_value": data.draw(st.sampled_from([1.5, 2.0])),
        "dtype": data.draw(DTYPES),
        **flags(data, "head_bias"),
    }
    x = torch.randn(4, 8, dtype=kwargs["dtype"])
    kind = nn.AdaptiveLogSoftmaxWithLoss
    return Construction(kind, (8, 10), kwargs, (x, torch.randint(10, (4,))))


def linear_cross_entropy(data):
    kwargs = {
        "out_features": data.draw(st.sampled_from([(), (2,)])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        **flags(data, "bias"),
    }
    target = torch.randint(5, (3, *kwargs["out_features"]))
    kind = nn.LinearCrossEntropyLoss
    return Construction(kind, (4, 5), kwargs, (torch.randn(3, 4), target))


class Own(nn.Module):
    """Parameters in a list, in a dictionary and bare."""

    def __init__(self, dtype):
        super().__init__()
        rows = [nn.Parameter(torch.randn(4, dtype=dtype)) for _ in range(3)]
        self.list = nn.ParameterList(rows)
        self.dict = nn.ParameterDict({"a": torch.randn(4, 4, dtype=dtype), "b/c": rows[0]})
        self.scale = nn.Parameter(torch.randn((), dtype=dtype))

    def forward(self, x):
        for row in self.list:
            x = x + row
        for key in self.dict:
            x = x @ self.dict[key].diag() if key == "b/c" else x @ self.dict[key]
        return self.scale * x * len(self.list) + self.list[-1]


def own(data):
    dtype = data.draw(DTYPES)
    return Construction(Own, (dtype,), {}, (torch.randn(3, 4, dtype=dtype),))


def lazy(kind, data):
    def make(**kwargs):
        module = kind(4, **kwargs) if size == 1 else kind(4, 2, **kwargs)
        module(x)
        return module

    size = 1 if kind is nn.LazyLinear else 2
    x = torch.randn(2, 3, *[4] * int(kind.__name__[-2])) if size == 2 else torch.randn(2, 3)
    return Construction(make, (), flags(data, "bias"), (x,))


def lazy_norm(kind, data):
    x = torch.randn(2, 3, *[4] * int(kind.__name__[-2]))

    def make(**kwargs):
        module = kind(**kwargs)
        module(x)
        return module

    return Construction(make, (), flags(data, "affine"), (x,))


def changed(change, data):
    """A module whose weight is a function of parameters."""
    choices = {"Linear": linear, "Conv2d": partial(convolution, 2)}
    if change is not nn.utils.parametrizations.orthogonal:
        choices["LSTM"] = partial(recurrent, nn.LSTM)
    plain = choices[data.draw(st.sampled_from(sorted(choices)))](data)
    name = "weight_hh_l0" if plain.kind is nn.LSTM else "weight"

    def make(*args, **kwargs):
        module = change(plain.kind(*args, **kwargs), name)
        # In training, this iterates whenever something reads the weight, as LSTMs do many times.
        reads = change is nn.utils.parametrizations.spectral_norm and plain.kind is nn.LSTM
        return module.eval() if reads else module

    return Construction(make, plain.args, plain.kwargs, plain.inputs, plain.options)


class Square(nn.Module):
    def forward(self, x):
        return x.square()


def squared(module, name):
    nn.utils.parametrize.register_parametrization(module, name, Square())
    nn.utils.parametrize.register_parametrization(module, name, nn.Tanh())
    return module


#: All modules of torch.nn that have parameters, and what makes new ones of them.
MODULES = {
    **LAYERS,
    **{kind.__name__: partial(cell, kind) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)},
    "Bilinear": bilinear,
    "PReLU": prelu,
    **{f"BatchNorm{n}d": partial(batch_norm, "BatchNorm", n) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": partial(batch_norm, "InstanceNorm", n) for n in (1, 2, 3)},
    "SyncBatchNorm": sync_batch_norm,
    "LayerNorm": partial(layer_norm, nn.LayerNorm),
    "RMSNorm": partial(layer_norm, nn.RMSNorm),
    "GroupNorm": group_norm,
    "EmbeddingBag": embedding_bag,
    "MultiheadAttention": attention,
    **{
        kind.__name__: partial(transformer, kind)
        for kind in (
            nn.TransformerEncoderLayer,
            nn.TransformerDecoderLayer,
            nn.TransformerEncoder,
            nn.TransformerDecoder,
            nn.Transformer,
        )
    },
    "AdaptiveLogSoftmaxWithLoss": adaptive_softmax,
    **({"LinearCrossEntropyLoss": linear_cross_entropy} if _IS_NEW else {}),
    **dict.fromkeys(["ParameterList", "ParameterDict"], own),
    **{
        f"Lazy{name}": partial(lazy, getattr(nn, f"Lazy{name}"))
        for name in ("Linear", *(f"Conv{k}{n}d" for k in ("", "Transpose") for n in (1, 2, 3)))
    },
    **{
        f"Lazy{name}{n}d": partial(lazy_norm, getattr(nn, f"Lazy{name}{n}d"))
        for name in ("BatchNorm", "InstanceNorm")
        for n in (1, 2, 3)
    },
    "weight_norm": partial(changed, nn.utils.parametrizations.weight_norm),
    "spectral_norm": partial(changed, nn.utils.parametrizations.spectral_norm),
    "orthogonal": partial(changed, nn.utils.parametrizations.orthogonal),
    "parametrized": partial(changed, squared),
    "weight_norm by hooks": partial(changed, nn.utils.weight_norm),
    "spectral_norm by hooks": partial(changed, nn.utils.spectral_norm),
}
