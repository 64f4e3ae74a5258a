"""Sums that keep their digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import is_transformed

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
_MANY, _ROW = 1 << 16, 1 << 12


def exact_sum(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """``x.sum(dims)`` that keeps its digits, also where all entries are rounded to the same side.

    Torch adds pairs, then pairs of pairs, and so on, but not to the end where they are many; a dot
    product, or what torch compiles for a CPU, adds one after the other.
    """
    if torch.compiler.is_compiling() and not x.is_mps:
        return x.sum(dims, dtype=torch.float64).to(x.dtype)
    if dims is None and x.is_cpu and x.numel() > _MANY:
        size = x.numel() % _ROW
        rows, rest = x.reshape(-1).split([x.numel() - size, size])
        return rows.view(-1, _ROW).sum(1).sum() + rest.sum()
    return x.sum(dims)


def log_sum(x: Tensor | Sequence[Tensor]) -> Tensor:
    """``logsumexp`` over components, which are few."""
    if len(x) == 1:
        return x[0]
    if len(x) == 2:  # several times faster than what is for any number
        return torch.logaddexp(x[0], x[1])
    return torch.logsumexp(x if isinstance(x, Tensor) else torch.stack(tuple(x)), 0)


def number(x: Tensor) -> Any:
    """A scalar as a number, where that waits for nothing: Python computes faster, in double."""
    return x.item() if x.is_cpu and not is_transformed() else x


def in_single(x: Tensor) -> Tensor:
    """In float32, if its precision is lower: a sum of many terms has more digits than these."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_double(x: Tensor) -> Tensor:
    """In float64, on devices that have it."""
    return x if x.device.type == "mps" else x.double()
