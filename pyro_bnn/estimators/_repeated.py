"""``F.linear`` with one weight at many steps, whose gradient is one product at the end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._torch import backward_id, is_transformed
from ._products import multiply, product, transposed

Log = dict[int, list[tuple[Tensor, Tensor]]]  # gradients and inputs of the steps, by backward pass


class Repeated:
    """Multiplies by the same weights again and again.

    Step by step, autograd would make and add up a gradient of each weight at each step. Instead,
    per-step gradients are stored; one matrix product at the end yields the weight gradient.
    """

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], tuple[Any, ...]] = {}

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # A meta device knows no autocast, and has no time to save.
        is_plain = input.is_meta or torch.is_autocast_enabled(input.device.type)
        if is_transformed() or is_plain or not (weight.requires_grad and torch.is_grad_enabled()):
            return F.linear(input, weight, bias)
        key = id(weight), id(bias)
        if key not in self._tokens:
            log: Log = {}
            token = _Total.apply(weight, bias, log)
            # Transposed once, for the backward of all steps. What has been met is kept, so that its
            # id stays its own.
            self._tokens[key] = (weight, bias), token, log, transposed(input, weight.detach())
        _, *others = self._tokens[key]
        return _Step.apply(input, weight, bias, *others)


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, weight, bias, _, ctx.log, ctx.transposed = args
        ctx.save_for_backward(input, weight)
        return multiply(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients need all of the graph
            by_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
            return grad @ weight, grad.t() @ input, by_bias, None, None, None
        # Another pass over the same graph may not ask for this weight, and never fetch its notes.
        notes = ctx.log.setdefault(backward_id(), [])
        notes.append((grad, input))
        return multiply(grad, ctx.transposed), None, None, grad.new_zeros(()), None, None


class _Total(Function):
    """Makes a token that every step depends on, so that its backward comes after theirs."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        weight, _, ctx.log = args
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        notes = ctx.log.pop(backward_id(), None)
        if notes is None:
            return None, None, None
        grads, inputs = (torch.cat(parts) for parts in zip(*notes, strict=True))
        return (
            product(grads.t(), inputs.t()),
            grads.sum(0) if ctx.needs_input_grad[1] else None,
            None,
        )
