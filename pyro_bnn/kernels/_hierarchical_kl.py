"""The KL divergence, or a bound on it, from Normals with a variance for each group of entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._normal_kl import centered
from ._second_order import gradients_with_graph
from ._sums import exact_sum, in_double, in_single, number
from ._switch import is_plain


def location_scale_bound(
    loc: Tensor, scale: Tensor, p: Any, share: float, entropy: float
) -> Tensor:
    """Minus the entropy and the expected log density of independent entries, or of a Radial.

    Args:
        loc, scale: of the posterior, shape of the weight.
        p: the prior, a :class:`~pyro_bnn.distributions._grouped.Grouped`.
        share: the variance of an entry in units of the square of its scale.
        entropy: that of the posterior with scales of 1.
    """
    loc, scale = in_single(loc), in_single(scale)
    group_scale = getattr(p, "scale", None)
    others = (getattr(p, name) for name in p.arg_constraints if name not in ("loc", "scale"))
    if is_plain() or any(other.requires_grad for other in others):
        return _formula(loc, scale, p.loc, p, share, entropy)
    return _Bound.apply(loc, scale, p.loc, group_scale, p, share, entropy)


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
        loc, scale, prior_loc, group_scale, p, share, entropy = args
        ctx.args = args[4:]
        deviation = centered(loc, prior_loc)
        if p.group_shape.numel() == 1:
            squares, variances = (number(exact_sum(x.square())) for x in (deviation, scale))
            half = 0.5 * (squares + share * variances)
        else:
            moment = deviation.square().addcmul_(scale, scale, value=share)
            half = 0.5 * p.group_sum(moment)
        density, ctx.precision = p.density_and_precision(half)
        ctx.half = None if group_scale is None else half
        ctx.save_for_backward(loc, scale, prior_loc, group_scale)
        total = -number(exact_sum(scale.log())) - entropy - density
        return total.to(loc.dtype) if isinstance(total, Tensor) else loc.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, group_scale = ctx.saved_tensors
        p, share, _ = ctx.args
        needed = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            bound = _formula(loc, scale, prior_loc, *ctx.args)
            tensors = [t for t in ctx.saved_tensors if t is not None]
            by_tensor = [*gradients_with_graph(bound, tensors, grad), None][:4]
            return *by_tensor, None, None, None
        # As from a Normal prior whose precision is the mean of that of the group.
        precision = ctx.precision
        by_group_scale = None
        if needed[3]:
            excess = p.group_size - 2 * ctx.half * precision
            by_group_scale = grad * (excess / group_scale).to(group_scale.dtype)
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
        return by_loc, by_scale, by_prior_loc, by_group_scale, None, None, None
