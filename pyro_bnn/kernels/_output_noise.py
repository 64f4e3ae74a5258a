"""Squares and noise of outputs, which keep fewer tensors for their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._switch import is_plain

_MIN_SIZE = 1 << 14  # below, there is no memory to save


def square(x: Tensor) -> Tensor:
    """``x.square()``."""
    if x.layout == torch.sparse_csr:  # which torch has no square of
        return x * x
    # A size that is compared with a number would be a condition of what is compiled.
    is_small = not torch.compiler.is_compiling() and x.numel() < _MIN_SIZE
    return x.square() if is_small or not x.requires_grad or is_plain() else _Square.apply(x)


class _Square(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad * x).mul_(2)


def with_noise(mean: Tensor, noise: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """A mean with standard noise that is made to have a variance; and the root of this.

    Where the variance is 0, its gradient is large, not infinite: the inputs and scales that made
    the variance 0 multiply it by 0.
    """
    formula = _formula if is_plain() else _WithNoise.apply
    return formula(mean, noise, variance)


def _formula(mean: Tensor, noise: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    root = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt_()
    return torch.addcmul(mean, root, noise), root


class _WithNoise(Function):
    """Keeps the root alone. Were it not returned, it could not be differentiated again."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        mean, noise, _ = args
        output, root = _formula(*args)
        ctx.set_materialize_grads(False)
        ctx.mean_shape = mean.shape
        ctx.save_for_backward(noise, root)
        return output, root

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        noise, root = ctx.saved_tensors
        by_output, by_root = grads
        by_mean = by_variance = None
        if by_output is not None:
            by_mean = by_output.sum_to_size(ctx.mean_shape)
            by_variance = (by_output * noise).sum_to_size(root.shape).div_(root).mul_(0.5)
        if by_root is not None:
            more = (by_root / root).mul_(0.5)
            by_variance = more if by_variance is None else by_variance.add_(more)
        return by_mean, None, by_variance
