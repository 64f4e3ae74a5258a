"""``F.linear`` by the faster of the two libraries that torch has for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._torch import is_transformed, one_dnn_linear

_MIN_SIZE = 1 << 22  # multiplications below which to call costs more than the product gains


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, with the same rounding error.

    On a CPU torch multiplies float32 by MKL, which has no AVX-512 kernels for AMD's processors.
    oneDNN, which torch has for other operations, does, and is twice as fast there.
    """
    function = _Product.apply if _is_faster(input, weight, _MIN_SIZE) else F.linear
    return function(input, weight, bias)


def multiply(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same without a gradient, which pays for smaller products."""
    function = _one_dnn if _is_faster(input, weight, _MIN_SIZE >> 2) else F.linear
    return function(input, weight, bias)


def transposed(input: Tensor, weight: Tensor) -> Tensor:
    """The transposed weight, in memory as suits many products with gradients for such an input."""
    is_faster = _is_faster(input, weight, _MIN_SIZE >> 2)
    return weight.t().contiguous() if is_faster else weight.t()


def _is_faster(input: Tensor, weight: Tensor, min_size: int) -> bool:
    """Whether oneDNN is."""
    return (
        not is_transformed()  # first, since a compiler understands no more of this
        and weight.numel() * input.numel() > min_size * input.shape[-1]
        and _has_faster_products()
        and input.dtype == weight.dtype == torch.float32
        and input.is_cpu
        and not torch.is_autocast_enabled("cpu")
    )


def _one_dnn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return one_dnn_linear(input, weight, bias, "none", [], "")


@cache
def _has_faster_products() -> bool:
    # Older versions of torch do not tell what processor they run on.
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = str(capabilities.get("cpu_name")).startswith("AMD")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_amd and bool(capabilities.get("avx512_f")) and has_both


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, weight, bias = args
        ctx.save_for_backward(input, weight)
        return _one_dnn(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input = by_weight = by_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            by_input = product(grad, weight.t())
        if ctx.needs_input_grad[1]:
            by_weight = product(rows.t(), input.reshape(-1, input.shape[-1]).t())
        if ctx.needs_input_grad[2]:
            by_bias = rows.sum(0)
        return by_input, by_weight, by_bias
