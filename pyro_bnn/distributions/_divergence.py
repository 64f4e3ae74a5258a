"""Normals made without checks, and the KL divergence of all entries as one operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Independent, Normal

from .._torch import is_transformed

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)

# Above this size, gradients of means and scales are not in memory at the same time.
_MAX_TOGETHER = 1 << 20
_BLOCK = 1 << 16  # results in between of so many entries stay in the cache of a CPU


def trusted_normal(loc: Tensor, scale: Tensor) -> dist.Normal:
    """A Normal of parameters that are known to be valid, and to have the same shape."""
    new: Any = object.__new__(dist.Normal)
    new.loc, new.scale = loc, scale
    Distribution.__init__(new, loc.shape, validate_args=False)
    return new


def normal_kl(q: Normal, p: Normal) -> Tensor:
    """The KL divergence of all entries together, a scalar in nats."""
    return gaussian_divergence(q.loc, q.scale, p.loc, p.scale)


def gaussian_divergence(
    loc: Tensor,
    scale: Tensor,
    prior_loc: Tensor,
    prior_scale: Tensor,
    share: float = 1.0,
    constant: float = 0.0,
) -> Tensor:
    r"""Sum over all entries of what depends on the parameters in the KL divergence from a Normal.

    .. math::
        a + \sum_i \log\frac{s_i}{\sigma_i} + \frac c2 \Big(\frac{\sigma_i^2}{s_i^2} - 1\Big)
        + \frac{(\mu_i - m_i)^2}{2 s_i^2}

    Each entry's part of it is computed from :math:`\sigma_i / s_i - 1` and
    :math:`(\mu_i - m_i) / s_i`, so that nothing is left where the two distributions are the same.

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
    parts = []
    if loc is not None:
        parts.append(_by_blocks(_sum_of_means, loc, prior_loc, prior_scale))
    if scale is not None:
        parts.append(_by_blocks(partial(_sum_of_scales, share), scale, prior_scale) + constant)
    return sum(parts[1:], parts[0])


def _by_blocks(total: Callable[..., Tensor], x: Tensor, *priors: Tensor) -> Tensor:
    """The sum of what a function returns for each block, so that its memory is bounded."""
    if x.numel() <= _BLOCK or is_transformed():
        return total(x, *priors)
    size = _BLOCK if x.is_cpu else _MAX_TOGETHER
    blocks = (
        t.expand_as(x).reshape(-1).split(size) if t.dim() else repeat(t) for t in (x, *priors)
    )
    return torch.stack([total(*block) for block in zip(*blocks, strict=False)]).sum()


def sum_of_squares(x: Tensor) -> Tensor:
    """``x.square().sum()``."""
    return _by_blocks(lambda block: exact_sum(block.square()), x)


def sum_of_logs(x: Tensor) -> Tensor:
    """``x.log().sum()``."""

    return _by_blocks(lambda block: exact_sum(block.log()), x)


def number(x: Tensor) -> Any:
    """A scalar as a number, where that waits for nothing: Python computes faster, in double."""
    return x.item() if x.is_cpu and not is_transformed() else x


def _sum_of_means(loc: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    return 0.5 * exact_sum((centered(loc, prior_loc) / prior_scale).square())


def _sum_of_scales(share: float, scale: Tensor, prior_scale: Tensor) -> Tensor:
    ratio = scale / prior_scale
    return exact_sum(share * _half_excess(ratio) - ratio.log())


def _half_excess(ratio: Tensor) -> Tensor:
    """Half of what its square exceeds 1 by."""
    excess = ratio - 1  # exact near 1, where the terms of the KL divergence cancel
    return torch.addcmul(excess, excess, excess, value=0.5)


def entry_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """The KL divergence of each entry."""
    deviation, ratio = (loc - prior_loc) / prior_scale, scale / prior_scale
    return torch.add(_half_excess(ratio) - ratio.log(), deviation.square(), alpha=0.5)


def exact_sum(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """``x.sum(dims)`` that keeps its digits, also where all entries are rounded to the same side.

    Torch adds pairs, then pairs of pairs, and so on; a dot product, or what torch compiles for a
    CPU, adds one after the other.
    """
    if torch.compiler.is_compiling() and not x.is_mps:
        return x.sum(dims, dtype=torch.float64).to(x.dtype)
    return x.sum(dims)


def centered(loc: Tensor, prior_loc: Tensor) -> Tensor:
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
            by_loc = centered(loc, prior_loc) * weight
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
