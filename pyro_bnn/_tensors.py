"""What a tensor is fit for, and tensors of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._torch import FakeTensor


def has_values(x: Tensor) -> bool:
    """Whether the entries of a tensor can be looked at; meta and fake tensors have none."""
    return not (x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_compiling())


def as_tensor(value: Any, **options: Any) -> Tensor:
    """Numbers as a tensor, which shares the memory of an array where torch can.

    Unlike ``torch.as_tensor`` it takes arrays of any strides and byte order, and whatever says how
    it is made an array, such as a ``pandas.Series`` without an index 0.
    """
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        value = np.asarray(value)
        value = value.astype(value.dtype.newbyteorder("="), copy=min(value.strides, default=0) < 0)
    with warnings.catch_warnings():  # nothing here writes to data, which those of pandas forbid
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(value, **options)


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """A structure of tuples, lists and dictionaries with a function of each tensor in it."""
    if isinstance(value, (Tensor, PackedSequence)):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, x) for key, x in value.items()}
    if isinstance(value, (tuple, list)):
        values = [map_tensors(function, x) for x in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return value


def wide(x: Tensor) -> Tensor:
    """``x`` in a format that has its square: float16 ends at 256 squared."""
    return x.float() if x.dtype is torch.float16 else x
