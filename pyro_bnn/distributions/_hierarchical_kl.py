"""The upper bound on the KL divergence from a hierarchical Normal."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Independent, Normal, register_kl

from .._torch import is_transformed
from ._bounds import register_bound
from ._correlated_normal import CorrelatedNormal
from ._divergence import (
    HALF_LOG_2_PI,
    centered,
    exact_sum,
    innermost,
    number,
    sum_of_logs,
    sum_of_squares,
)
from ._hierarchical_normal import HierarchicalNormal, wide
from ._mixture_kl import mixture_entropy_bound, summed_mixture_entropy_bound
from ._normal_mixture import NormalMixture, normal_components
from ._radial import Radial


def hierarchical_kl_bound(q: Any, p: HierarchicalNormal, *, kept: Tensor | None = None) -> Tensor:
    r"""Closed-form upper bound on the KL divergence from a hierarchical Normal.

    .. math::
        KL(q \Vert p) \le -H(q) - \sum_g \Bigl[ \log\Gamma(c) - \log\Gamma(a) + a \log b
        - \tfrac n2 \log 2\pi - c \log\Bigl(b + \tfrac12 \sum_{i \in g}
        \bigl((\mu_i - m)^2 + \sigma_i^2\bigr)\Bigr) \Bigr], \qquad c = a + \tfrac n2

    with the means :math:`\mu` and variances :math:`\sigma^2` of the posterior. It is the least KL
    divergence of :math:`q(w) q(\tau)` from the joint prior of weights and variances, so that the
    ELBO still bounds the evidence from below. The larger the groups, the tighter it is. The entropy
    :math:`H` of a mixture is bounded from below, as in :func:`mixture_kl_bound`.

    ``torch.distributions.kl_divergence`` returns this bound.

    Args:
        q: a distribution with a mean, a variance and an entropy, of the event shape of ``p``.
        p: the prior.
        kept: mask of the weights that count, shape of the event; by default, all do.

    Returns:
        The bound in nats, of the batch shape.

    Raises:
        NotImplementedError: if the event shapes differ, or ``q`` has no moments in closed form.

    References:
        Tomczak, Swaroop, Foong and Turner (2021), "Collapsed variational bounds for Bayesian neural
        networks", NeurIPS 34.

    Example:
        >>> from pyro_bnn.distributions import HierarchicalNormal
        >>> q = torch.distributions.Normal(torch.linspace(-1, 1, 20), 0.2)
        >>> hierarchical_kl_bound(torch.distributions.Independent(q, 1), HierarchicalNormal((20,)))
        tensor(25.9236)
    """
    if q.event_shape != p.event_shape:
        raise NotImplementedError
    base = innermost(q)
    if kept is None and isinstance(base, Radial):
        kept = base._kept
    if isinstance(base, (Normal, Radial)) and kept is None and not q.batch_shape:
        share, standard_entropy = 1.0, (0.5 + HALF_LOG_2_PI) * base.loc.numel()
        if isinstance(base, Radial):
            share, standard_entropy = 1 / max(1, base._size), base._standard_entropy()
        return _location_scale_bound(base.loc, base.scale, p, share, standard_entropy)
    is_whole = kept is None and not q.batch_shape
    moment, entropy = _moment_and_entropy(base, p, is_whole)
    size: Any = p.group_size
    if kept is not None:
        moment = torch.where(kept, moment, 0)
        if not base.event_shape:
            entropy = torch.where(kept, entropy, 0)
        size = wide(p.group_sum(kept.to(moment.dtype)))
    entropy = sum_rightmost(wide(entropy), entropy.dim() - len(q.batch_shape))
    bound = -entropy - p.expected_log_density(0.5 * p.group_sum(moment), size)
    return bound.to(moment.dtype)


def _moment_and_entropy(
    base: Distribution, p: HierarchicalNormal, is_whole: bool
) -> tuple[Tensor, Tensor]:
    """The second moment of each entry around the prior's mean; the entropy of entries or events.

    Args:
        base: the posterior.
        p: the prior.
        is_whole: whether all there is to know is the sum of entropies.
    """
    if isinstance(base, NormalMixture):
        log_weight, loc, scale = normal_components(base)
        moment = (log_weight.exp() * ((loc - p.loc).square() + scale.square())).sum(0)
        bound = summed_mixture_entropy_bound if is_whole else mixture_entropy_bound
        return moment, bound(base)
    return (base.mean - p.loc).square() + base.variance, base.entropy()


def _location_scale_bound(
    loc: Tensor, scale: Tensor, p: HierarchicalNormal, share: float, entropy: float
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
    if is_transformed() or p.concentration.requires_grad or p.rate.requires_grad:
        return _formula(*args)
    return _Bound.apply(*args)


def _formula(
    loc: Tensor,
    scale: Tensor,
    prior_loc: Tensor,
    p: HierarchicalNormal,
    share: float,
    entropy: float,
) -> Tensor:
    moment = (loc - prior_loc).square() + share * scale.square()
    density = p.expected_log_density(0.5 * p.group_sum(moment), p.group_size)
    return (-wide(exact_sum(scale.log())) - entropy - density).to(loc.dtype)


class _Bound(Function):
    """Composed of torch's own operations, it would be some thirty, each with a backward."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        loc, scale, prior_loc, p, share, entropy = args
        ctx.args = args[3:]
        deviation = centered(loc, prior_loc)
        if p.group_shape.numel() == 1:
            squares, variances = (number(sum_of_squares(x)) for x in (deviation, scale))
            half = 0.5 * (squares + share * variances)
        else:
            moment = deviation.square().addcmul_(scale, scale, value=share)
            half = 0.5 * p.group_sum(moment)
        density, ctx.precision = _density_and_precision(p, half)
        ctx.save_for_backward(loc, scale, prior_loc)
        total = -number(sum_of_logs(scale)) - entropy - density
        return total.to(loc.dtype) if isinstance(total, Tensor) else loc.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc = tensors = ctx.saved_tensors
        p, share, _ = ctx.args
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # gradients of gradients need all of the graph
            bound = _formula(*tensors, *ctx.args)
            wanted = [t for t, needs in zip(tensors, needed, strict=True) if needs]
            found = iter(torch.autograd.grad(bound, wanted, grad, create_graph=True))
            return *(next(found) if needs else None for needs in needed), None, None, None
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


def _density_and_precision(p: HierarchicalNormal, half: Any) -> tuple[Any, Any]:
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
    variance = wide(half) + b
    total = variance.log().sum().item()
    return p.group_shape.numel() * constant - c * total, variance.reciprocal_().mul_(c)


@register_bound(Normal, HierarchicalNormal)
@register_bound(NormalMixture, HierarchicalNormal)
@register_bound(Radial, HierarchicalNormal)
@register_bound(CorrelatedNormal, HierarchicalNormal)
@register_kl(Independent, HierarchicalNormal)
def _kl_hierarchical(q: Distribution, p: HierarchicalNormal) -> Tensor:
    return hierarchical_kl_bound(q, p)
