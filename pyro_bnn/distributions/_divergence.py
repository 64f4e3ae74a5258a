"""Normals without ceremony: made without checks, their divergence one operation."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Independent, Normal

from .._autograd import is_transformed

# Above this size, gradients of means and scales are not in memory at the same time.
_MAX_TOGETHER = 1 << 20
_MIN_PRODUCTS = 1 << 10


def trusted_normal(loc: Tensor, scale: Tensor) -> dist.Normal:
    """A Normal of parameters that are known to be valid, and to have the same shape."""
    new: Any = object.__new__(dist.Normal)
    new.loc, new.scale = loc, scale
    Distribution.__init__(new, loc.shape, validate_args=False)
    return new


def normal_kl(q: Normal, p: Normal) -> Tensor:
    """The divergence of all entries together, a scalar in nats."""
    return gaussian_divergence(q.loc, q.scale, p.loc, p.scale) - 0.5 * q.loc.numel()


def gaussian_divergence(
    loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor, share: float = 1.0
) -> Tensor:
    r"""Sum over all entries of what depends on the parameters in the divergence from a Normal.

    .. math:: \sum_i \log\frac{s_i}{\sigma_i} + \frac{c\,\sigma_i^2 + (\mu_i - m_i)^2}{2 s_i^2}

    Args:
        loc, scale: :math:`\mu` and :math:`\sigma` of the posterior.
        prior_loc, prior_scale: :math:`m` and :math:`s`, of the same shape; they may be expanded.
        share: the variance of an entry in units of :math:`\sigma^2`, :math:`c`.

    Returns:
        A scalar in nats; in float32 for parameters of lower precision, since a sum of that many
        terms has more digits than these have.
    """
    prior_loc, prior_scale = _unexpanded(prior_loc), _unexpanded(prior_scale)
    inputs: Any = (loc, scale, prior_loc, prior_scale)
    if loc.dtype in (torch.float16, torch.bfloat16):
        inputs = (t.float() for t in inputs)
    inputs = (*inputs, share)
    if is_transformed():
        return _divergence(*inputs)
    if loc.numel() <= _MAX_TOGETHER:
        return _Divergence.apply(*inputs)
    loc, scale, *others = inputs
    return _Divergence.apply(loc, None, *others) + _Divergence.apply(None, scale, *others)


def _divergence(
    loc: Tensor | None, scale: Tensor | None, prior_loc: Tensor, prior_scale: Tensor, share: float
) -> Tensor:
    """The part of the means, the part of the scales, or both."""
    # Few operations for small weights, and few passes over large ones, whose priors are scalars.
    is_scalar = prior_scale.dim() == 0
    terms: Any = None
    if loc is not None:
        terms = loc - prior_loc
        terms = (terms if is_scalar else terms.div_(prior_scale)).square_()
    if scale is not None:
        ratio = scale if is_scalar else scale / prior_scale
        if terms is None:
            terms = ratio.square()
            terms = terms if share == 1 else terms.mul_(share)
        else:
            terms = torch.addcmul(terms, ratio, ratio, value=share)
    total = terms.sum()
    if is_scalar:
        total = total / prior_scale.square()
    if scale is not None:
        total = total.sub(sum_of_logs(ratio), alpha=2)
        if is_scalar:
            total = total.add(prior_scale.log(), alpha=2 * scale.numel())
    return 0.5 * total


def sum_of_logs(x: Tensor) -> Tensor:
    """``x.log().sum()``, on a CPU from a quarter as many logarithms, which take the time there."""
    quarter = x.numel() // 4
    if quarter < _MIN_PRODUCTS or not x.is_cpu or is_transformed():
        return x.log().sum()
    flat = x.reshape(-1)
    products = flat[: 4 * quarter].view(4, quarter).prod(0)
    total = products.log_().sum() + flat[4 * quarter :].log().sum()
    # Products may leave the range of the format where their factors do not.
    return total if total.isfinite() else x.log().sum()


class _Divergence(Function):
    """Composed of torch's own operations it would be some ten passes, each with a backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.share = inputs
        ctx.save_for_backward(*tensors)
        return _divergence(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        _, _, wants_prior_loc, wants_prior_scale, _ = ctx.needs_input_grad
        by_loc = by_scale = by_prior_loc = by_prior_scale = None
        weight = grad / prior_scale.square()
        if loc is not None:
            by_loc = (loc - prior_loc).mul_(weight)
        if scale is not None:
            by_scale = (scale * (ctx.share * weight)).addcdiv_(grad, scale, value=-1)
        if wants_prior_loc and by_loc is not None:
            by_prior_loc = -by_loc.sum_to_size(prior_loc.shape)
        if wants_prior_scale:
            # The terms depend on (loc - prior_loc) / prior_scale and on scale / prior_scale alone.
            terms = torch.zeros_like(prior_scale)
            for x, by_x in ((loc, by_loc), (scale, by_scale)):
                if x is not None and by_x is not None:
                    x = x - prior_loc if x is loc else x
                    terms = terms - (x * by_x / prior_scale).sum_to_size(prior_scale.shape)
            by_prior_scale = terms
        return by_loc, by_scale, by_prior_loc, by_prior_scale, None


def _unexpanded(x: Tensor) -> Tensor:
    """``x`` as a scalar, if it is one that has been expanded."""
    return x.as_strided((), ()) if x.numel() > 1 and not any(x.stride()) else x


def innermost(d: Distribution) -> Distribution:
    """What is inside of an ``Independent``, or of several."""
    while isinstance(d, Independent):
        d = d.base_dist
    return d
