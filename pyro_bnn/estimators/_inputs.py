"""What is said of inputs that a layer cannot take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._maps import LinearMap
from ._one_weight import Lookup


def problem(map: LinearMap, input: Any, dtype: torch.dtype) -> str | None:
    """What a map cannot do with an input that is no tensor, or one of another dtype."""
    of = f"the input of a layer with {_name(dtype)} weights"
    if not isinstance(input, Tensor):
        kind = f"{type(input).__module__}.{type(input).__name__}".removeprefix("builtins.")
        needed = torch.long if isinstance(map, Lookup) else dtype
        return (
            f"{of} is a {kind}, not a tensor: convert it before, by "
            f"`torch.tensor(numpy.asarray(x), dtype={needed})`"
        )
    if input.dtype == dtype or isinstance(map, Lookup):
        return None
    return f"{of} has the dtype {_name(input.dtype)}: convert it by `x.to({dtype})`" + (
        f", or the weights by `.to({input.dtype})`" if input.is_floating_point() else ""
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
