"""The KL divergence of Normals, of all entries together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import is_transformed
from ._sums import exact_sum, in_single
from ._switch import is_plain


def gaussian_kl(
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
    inputs: Any = (loc, scale, unexpanded(prior_loc), unexpanded(prior_scale))
    function: Any = _formula if is_plain() else _GaussianKL.apply
    return function(*map(in_single, inputs), share, constant)


def _formula(
    loc: Tensor,
    scale: Tensor,
    prior_loc: Tensor,
    prior_scale: Tensor,
    share: float,
    constant: float,
) -> Tensor:
    ratio = _in_units(scale, prior_scale)
    deviation = _in_units(centered(loc, prior_loc), prior_scale)
    terms = share * _half_excess(ratio) - ratio.log()
    return exact_sum(terms) + 0.5 * exact_sum(deviation.square()) + constant


class _GaussianKL(Function):
    """Composed of torch's own operations it would be some ten passes, each with a backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        loc, scale, prior_loc, prior_scale, ctx.share, constant = inputs
        ctx.save_for_backward(*inputs[:4])
        ratio = _in_units(scale, prior_scale)
        deviation = _in_units(centered(loc, prior_loc), prior_scale)
        # In place, with no more temporary tensors than needed.
        terms = ratio - 1
        terms.addcmul_(terms, terms, value=0.5)
        if ctx.share != 1:
            terms.mul_(ctx.share)
        terms.sub_(ratio.log()).addcmul_(deviation, deviation, value=0.5)
        return exact_sum(terms) + constant

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        _, _, wants_prior_loc, wants_prior_scale, *_ = ctx.needs_input_grad
        by_prior_loc = by_prior_scale = None
        weight = grad / prior_scale.square()
        by_loc = centered(loc, prior_loc) * weight
        by_scale = scale * (weight if ctx.share == 1 else ctx.share * weight)
        by_scale = by_scale.addcdiv_(grad, scale, value=-1)
        if wants_prior_loc:
            by_prior_loc = -by_loc.sum_to_size(prior_loc.shape)
        if wants_prior_scale:
            # The terms depend on (loc - prior_loc) / prior_scale and on scale / prior_scale alone.
            terms = (centered(loc, prior_loc) * by_loc).addcmul_(scale, by_scale)
            by_prior_scale = terms.div_(prior_scale).neg_().sum_to_size(prior_scale.shape)
        return by_loc, by_scale, by_prior_loc, by_prior_scale, None, None


def entry_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """The KL divergence of each entry."""
    deviation, ratio = (loc - prior_loc) / prior_scale, scale / prior_scale
    return torch.add(_half_excess(ratio) - ratio.log(), deviation.square(), alpha=0.5)


def _half_excess(ratio: Tensor) -> Tensor:
    """Half of what its square exceeds 1 by."""
    excess = ratio - 1  # exact near 1, where the terms of the KL divergence cancel
    return torch.addcmul(excess, excess, excess, value=0.5)


def centered(loc: Tensor, prior_loc: Tensor) -> Tensor:
    """``loc - prior_loc``, which most often is ``loc``."""
    return loc if is_number(prior_loc, 0) else loc - prior_loc


def _in_units(x: Tensor, prior_scale: Tensor) -> Tensor:
    """``x / prior_scale``, which most often is ``x``."""
    return x if is_number(prior_scale, 1) else x / prior_scale


def is_number(x: Tensor, value: float) -> bool:
    """Whether ``x`` is that number, where to know it waits for nothing and no gradient needs it."""
    is_known = not x.dim() and x.is_cpu and not x.requires_grad and not is_transformed()
    return is_known and x.item() == value


def unexpanded(x: Tensor) -> Tensor:
    """``x`` as a scalar, if it is one that has been expanded."""
    return x.as_strided((), ()) if x.numel() and not any(x.stride()) else x
