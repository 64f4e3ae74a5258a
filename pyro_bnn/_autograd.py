"""For operations with a backward of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._torch import FakeTensor, is_transformed

_MIN_SIZE = 1 << 14  # below, to call costs more than a pass


def has_values(x: Tensor) -> bool:
    """Whether the entries of a tensor can be looked at; meta and fake tensors have none."""
    return not (x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_compiling())


def wide(x: Tensor) -> Tensor:
    """``x`` in a format that has its square: float16 ends at 256 squared."""
    return x.float() if x.dtype is torch.float16 else x


def square(x: Tensor) -> Tensor:
    """``x.square()``, whose backward goes over ``x`` once less than torch's."""
    if x.layout == torch.sparse_csr:  # which torch has no square of
        return x * x
    # A size that is compared with a number would be a condition of what is compiled.
    is_small = not torch.compiler.is_compiling() and x.numel() < _MIN_SIZE
    is_plain = is_small or not x.requires_grad or is_transformed()
    return x.square() if is_plain else _Square.apply(x)


class _Square(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad * x).mul_(2)
