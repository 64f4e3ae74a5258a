"""Normals without ceremony: made without checks, their divergence one operation."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Independent, Normal

from .._autograd import is_transformed

# Above this size, gradients of means and scales are not in memory at the same time.
_MAX_TOGETHER = 1 << 20
_MIN_PRODUCTS = 1 << 12  # below, to call costs more than logarithms
_BLOCK = 1 << 18  # a longer dot product loses digits on a CPU


def trusted_normal(loc: Tensor, scale: Tensor) -> dist.Normal:
    """A Normal of parameters that are known to be valid, and to have the same shape."""
    new: Any = object.__new__(dist.Normal)
    new.loc, new.scale = loc, scale
    Distribution.__init__(new, loc.shape, validate_args=False)
    return new


def normal_kl(q: Normal, p: Normal) -> Tensor:
    """The divergence of all entries together, a scalar in nats."""
    return gaussian_divergence(q.loc, q.scale, p.loc, p.scale, constant=-0.5 * q.loc.numel())


def gaussian_divergence(
    loc: Tensor,
    scale: Tensor,
    prior_loc: Tensor,
    prior_scale: Tensor,
    share: float = 1.0,
    constant: float = 0.0,
) -> Tensor:
    r"""Sum over all entries of what depends on the parameters in the divergence from a Normal.

    .. math:: a + \sum_i \log\frac{s_i}{\sigma_i} + \frac{c\,\sigma_i^2 + (\mu_i - m_i)^2}{2 s_i^2}

    Args:
        loc, scale: :math:`\mu` and :math:`\sigma` of the posterior.
        prior_loc, prior_scale: :math:`m` and :math:`s`, of the same shape; they may be expanded.
        share: the variance of an entry in units of :math:`\sigma^2`, :math:`c`.
        constant: what does not depend on the parameters, :math:`a`.

    Returns:
        A scalar in nats; in float32 for parameters of lower precision, since a sum of that many
        terms has more digits than these have.
    """
    prior_loc, prior_scale = unexpanded(prior_loc), unexpanded(prior_scale)
    inputs: Any = (loc, scale, prior_loc, prior_scale)
    if loc.dtype in (torch.float16, torch.bfloat16):
        inputs = (t.float() for t in inputs)
    inputs = (*inputs, share, constant)
    if is_transformed():
        return _divergence(*inputs)
    if loc.numel() <= _MAX_TOGETHER:
        return _Divergence.apply(*inputs)
    loc, scale, *others, _ = inputs
    return _Divergence.apply(loc, None, *others, 0.0) + _Divergence.apply(
        None, scale, *others, constant
    )


def _divergence(
    loc: Tensor | None,
    scale: Tensor | None,
    prior_loc: Tensor,
    prior_scale: Tensor,
    share: float,
    constant: float,
) -> Tensor:
    """The part of the means, the part of the scales, or both."""
    # Few calls for small weights, and few passes over large ones, whose priors are scalars.
    is_scalar = prior_scale.dim() == 0
    squares: Any = 0.0
    total: Any = constant
    if loc is not None:
        deviation = _centered(loc, prior_loc)
        squares = sum_of_squares(deviation if is_scalar else deviation / prior_scale)
    if scale is not None:
        ratio = scale if is_scalar else scale / prior_scale
        squares = squares + share * sum_of_squares(ratio)
        total = total - sum_of_logs(ratio)
    if is_scalar:
        log, precision = _log_and_precision(prior_scale)
        squares = squares * precision
        total = total if scale is None else total + scale.numel() * log
    total = total + 0.5 * squares
    if isinstance(total, Tensor):
        return total
    own: Any = scale if loc is None else loc
    return torch.full((), total, dtype=torch.result_type(own, prior_scale))


def sum_of_squares(x: Tensor) -> Any:
    """``x.square().sum()``, in one pass that needs no memory; a number on a CPU."""
    if is_transformed():
        return x.square().sum()
    x = x.reshape(-1)
    if x.numel() <= _BLOCK or not x.is_cpu:
        return _number(torch.dot(x, x))
    return sum(torch.dot(block, block).item() for block in x.split(_BLOCK))


def sum_of_logs(x: Tensor) -> Any:
    """``x.log().sum()``, on a CPU a number, from an eighth as many logarithms."""
    size = x.numel() // 8
    if size < _MIN_PRODUCTS or not x.is_cpu or is_transformed():
        return _number(x.log().sum())
    flat = x.reshape(-1)
    products = flat[: 8 * size].view(8, size).prod(0)
    smallest = products.amin().item()
    total = products.log_().sum().item()
    if x.numel() % 8:
        total += flat[8 * size :].log().sum().item()
    # Products may leave the range of the format, or lose digits, where their factors do not.
    is_exact = smallest >= torch.finfo(x.dtype).tiny and math.isfinite(total)
    return total if is_exact else x.log().sum().item()


def _number(x: Tensor) -> Any:
    """A scalar as a number, where that waits for nothing: Python computes faster, in double."""
    return x.item() if x.is_cpu and not is_transformed() else x


def _log_and_precision(scale: Tensor) -> tuple[Any, Any]:
    number = _number(scale)
    if isinstance(number, float) and number > 1e-100:
        return math.log(number), number**-2
    return scale.log(), scale.square().reciprocal()


def _centered(loc: Tensor, prior_loc: Tensor) -> Tensor:
    """``loc - prior_loc``, which most often is ``loc``."""
    if prior_loc.dim() or not prior_loc.is_cpu or prior_loc.requires_grad or is_transformed():
        return loc - prior_loc
    return loc - prior_loc if prior_loc.item() else loc


class _Divergence(Function):
    """Composed of torch's own operations it would be some ten passes, each with a backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.share, _ = inputs
        ctx.save_for_backward(*tensors)
        return _divergence(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        _, _, wants_prior_loc, wants_prior_scale, *_ = ctx.needs_input_grad
        by_loc = by_scale = by_prior_loc = by_prior_scale = None
        weight = grad / prior_scale.square()
        if loc is not None:
            by_loc = _centered(loc, prior_loc) * weight
        if scale is not None:
            by_scale = scale * (weight if ctx.share == 1 else ctx.share * weight)
            by_scale = by_scale.addcdiv_(grad, scale, value=-1)
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
        return by_loc, by_scale, by_prior_loc, by_prior_scale, None, None


def unexpanded(x: Tensor) -> Tensor:
    """``x`` as a scalar, if it is one that has been expanded."""
    return x.as_strided((), ()) if x.numel() > 1 and not any(x.stride()) else x


def innermost(d: Distribution) -> Distribution:
    """What is inside of an ``Independent``, or of several."""
    while isinstance(d, Independent):
        d = d.base_dist
    return d
