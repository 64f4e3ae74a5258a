"""The bound on the KL divergence from Normals whose variances are integrated out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._normal_kl import centered
from ._second_order import gradients_with_graph
from ._sums import HALF_LOG_2_PI, exact_sum, in_double, number, sum_by_blocks
from ._switch import is_plain


def location_scale_bound(
    loc: Tensor, scale: Tensor, p: Any, share: float, entropy: float
) -> Tensor:
    """The bound for independent entries, or a Radial.

    Args:
        loc, scale: of the posterior, shape of the weight.
        p: the prior.
        share: the variance of an entry in units of the square of its scale.
        entropy: that of the posterior with scales of 1.
    """
    if loc.dtype in (torch.float16, torch.bfloat16):
        loc, scale = loc.float(), scale.float()
    args = (loc, scale, p.loc, p, share, entropy)
    if is_plain() or p.concentration.requires_grad or p.rate.requires_grad:
        return _formula(*args)
    return _Bound.apply(*args)


def _formula(
    loc: Tensor,
    scale: Tensor,
    prior_loc: Tensor,
    p: Any,
    share: float,
    entropy: float,
) -> Tensor:
    moment = (loc - prior_loc).square() + share * scale.square()
    density = p.expected_log_density(0.5 * p.group_sum(moment), p.group_size)
    return (-in_double(exact_sum(scale.log())) - entropy - density).to(loc.dtype)


class _Bound(Function):
    """Composed of torch's own operations, it would be some thirty, each with a backward."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        loc, scale, prior_loc, p, share, entropy = args
        ctx.args = args[3:]
        deviation = centered(loc, prior_loc)
        if p.group_shape.numel() == 1:
            squares, variances = (number(_sum_of_squares(x)) for x in (deviation, scale))
            half = 0.5 * (squares + share * variances)
        else:
            moment = deviation.square().addcmul_(scale, scale, value=share)
            half = 0.5 * p.group_sum(moment)
        density, ctx.precision = _density_and_precision(p, half)
        ctx.save_for_backward(loc, scale, prior_loc)
        total = -number(_sum_of_logs(scale)) - entropy - density
        return total.to(loc.dtype) if isinstance(total, Tensor) else loc.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc = tensors = ctx.saved_tensors
        p, share, _ = ctx.args
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            bound = _formula(*tensors, *ctx.args)
            return *gradients_with_graph(bound, tensors, grad), None, None, None
        # As from a Normal prior whose precision is the mean of that of the group.
        precision = ctx.precision
        if isinstance(precision, Tensor):
            precision = precision.to(loc.dtype)
            precision = p.spread(precision) if precision.dim() else precision
        weight = grad * precision
        by_loc = centered(loc, prior_loc) * weight if needed[0] or needed[2] else None
        by_scale = by_prior_loc = None
        if needed[1]:
            by_scale = (scale * (share * weight)).addcdiv_(grad, scale, value=-1)
        if needed[2] and by_loc is not None:
            by_prior_loc = -by_loc.sum_to_size(prior_loc.shape)
        return by_loc, by_scale, by_prior_loc, None, None, None


def _sum_of_squares(x: Tensor) -> Tensor:
    return sum_by_blocks(lambda block: exact_sum(block.square()), x)


def _sum_of_logs(x: Tensor) -> Tensor:
    return sum_by_blocks(lambda block: exact_sum(block.log()), x)


def _density_and_precision(p: Any, half: Any) -> tuple[Any, Any]:
    """The bound on the log density, and the mean precision of each group given the weights."""
    a, b = number(p.concentration), number(p.rate)
    size = p.group_size
    if isinstance(half, Tensor) and not isinstance(a, float):
        return p.expected_log_density(half.reshape(p.group_shape), size), (a + 0.5 * size) / (
            b + half
        )
    c = a + 0.5 * size
    constant = math.lgamma(c) - math.lgamma(a) + a * math.log(b) - size * HALF_LOG_2_PI
    if not isinstance(half, Tensor):
        return constant - c * math.log(b + half), c / (b + half)
    variance = in_double(half) + b
    total = variance.log().sum().item()
    return p.group_shape.numel() * constant - c * total, variance.reciprocal_().mul_(c)
