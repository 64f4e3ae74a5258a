"""KL divergences from Normals with a variance for each group, known or integrated out."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, register_kl

from ..kernels import HALF_LOG_2_PI, in_double, in_single, location_scale_bound
from ._bounds import register_bound
from ._correlated_normal import CorrelatedNormal
from ._grouped import Grouped
from ._grouped_normal import GroupedNormal
from ._hierarchical_normal import HierarchicalNormal
from ._mixture_kl import mixture_entropy_bound, summed_mixture_entropy_bound
from ._normal import innermost
from ._normal_mixture import NormalMixture, normal_components
from ._radial import Radial


def hierarchical_kl_bound(q: Any, p: Grouped, *, kept: Tensor | None = None) -> Tensor:
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
        p: the prior; with scales that are known, a :class:`GroupedNormal`, the value is exact, but
            for mixtures.
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
        return location_scale_bound(base.loc, base.scale, p, share, standard_entropy)
    is_whole = kept is None and not q.batch_shape
    moment, entropy = _moment_and_entropy(base, p, is_whole)
    size: Any = p.group_size
    if kept is not None:
        moment = torch.where(kept, moment, 0)
        if not base.event_shape:
            entropy = torch.where(kept, entropy, 0)
        size = in_double(p.group_sum(kept.to(moment.dtype)))
    entropy = sum_rightmost(in_double(entropy), entropy.dim() - len(q.batch_shape))
    bound = -entropy - p.expected_log_density(0.5 * p.group_sum(moment), size)
    return bound.to(moment.dtype)


def _moment_and_entropy(base: Distribution, p: Grouped, is_whole: bool) -> tuple[Tensor, Tensor]:
    """The second moment of each entry around the prior's mean; the entropy of entries or events.

    Args:
        base: the posterior.
        p: the prior.
        is_whole: whether all there is to know is the sum of entropies.
    """
    if isinstance(base, NormalMixture):
        log_weight, loc, scale = map(in_single, normal_components(base))
        moment = (log_weight.exp() * ((loc - p.loc).square() + scale.square())).sum(0)
        bound = summed_mixture_entropy_bound if is_whole else mixture_entropy_bound
        return moment, bound(base)
    return (base.mean - p.loc).square() + base.variance, base.entropy()


@register_bound(Normal, HierarchicalNormal)
@register_bound(NormalMixture, HierarchicalNormal)
@register_bound(Radial, HierarchicalNormal)
@register_bound(CorrelatedNormal, HierarchicalNormal)
@register_kl(Normal, GroupedNormal)
@register_bound(NormalMixture, GroupedNormal)
@register_kl(Radial, GroupedNormal)
@register_kl(CorrelatedNormal, GroupedNormal)
@register_kl(Independent, Grouped)
def _kl_grouped(q: Distribution, p: Grouped) -> Tensor:
    return hierarchical_kl_bound(q, p)
