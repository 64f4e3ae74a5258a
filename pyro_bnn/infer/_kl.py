"""The KL divergence of a posterior from a prior, by a formula where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from ..distributions._bounds import is_bound
from ..distributions._joint import as_one, is_normal, joint_of
from ..distributions._joint_grouped import is_alike, joint_grouped_kl
from ..distributions._normal import normal_kl
from ..estimators._estimator import small_pair


class KL(NamedTuple):
    """A KL divergence, and what its value is.

    Attributes:
        value: in nats, of the batch shape of the posterior.
        kind: ``"exact"``; ``"bound"``, from above; or ``"estimate"``, of which only the expectation
            is the KL divergence.
    """

    value: Tensor
    kind: str


def kl(q: Distribution, p: Distribution, value: Tensor | None = None) -> KL:
    """The KL divergence of a posterior from a prior, as ELBOs compute it.

    It uses the formula that is registered by ``torch.distributions.register_kl`` (or by
    :func:`~pyro_bnn.distributions.register_bound`), and otherwise the difference of the log
    densities at a sample.

    Args:
        q: the distribution of a posterior.
        p: the prior, of the same event.
        value: a sample of ``q`` for an estimate; by default, a new one.

    Returns:
        The value and its kind.

    Example:
        >>> q, p = dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0)
        >>> kl(q, p)
        KL(value=tensor(0.8181), kind='exact')
        >>> kl(q, dist.StudentT(3.0)).kind
        'estimate'
    """
    found = analytic_kl(q, p)
    if found is not None:
        return KL(found, _kind_of_formula(q, p))
    value = q.rsample() if value is None else value
    return KL(q.log_prob(value) - p.log_prob(value), "estimate")


@torch.no_grad()
def kl_kind(q: Distribution, p: Distribution) -> str:
    """The kind of what :func:`kl` returns, without a draw."""
    return "estimate" if analytic_kl(q, p) is None else _kind_of_formula(q, p)


def _kind_of_formula(q: Distribution, p: Distribution) -> str:
    return "bound" if is_bound(q, p) else "exact"


def analytic_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """The registered KL divergence in nats, exact or a bound, or None if there is none."""
    try:
        return torch.as_tensor(kl_divergence(q, p))  # Pyro's is 0.0 where all is masked
    except NotImplementedError:
        return None


def total_kl(sites: Iterable[tuple[Distribution, Distribution]]) -> Tensor:
    """The sum of the KL divergences of sites, a scalar.

    Args:
        sites: posterior and prior of each, for which there is a formula.
    """
    small, terms = [], []
    for q, p in sites:
        pair = small_pair(q, p)
        if pair is None:
            # Without a test whether there is one, so that it compiles.
            terms.append(kl_divergence(q, p).sum())
        else:
            small.append(pair)
    return add_up([*terms, *joint_kl(small)])


def joint_kl(pairs: Iterable[tuple[Any, Any]]) -> list[Tensor]:
    """The KL divergences of all pairs of small weights, of each kind in one operation.

    In networks of many layers, what costs time is to call operations.
    """
    by_joint: dict[Any, list[tuple[Any, Any]]] = defaultdict(list)
    for q, p in pairs:
        by_joint[q.loc.dtype, q.loc.device, joint_of(q)].append((q, p))
    kls = []
    for group in by_joint.values():
        is_grouped = not all(is_normal(p) for _, p in group)
        by_kind: dict[bool, list[tuple[Any, Any]]] = defaultdict(list)
        for q, p in group:
            by_kind[is_grouped and (not is_normal(p) or is_alike(p))].append((q, p))
        for joins_groups, part in by_kind.items():
            qs, ps = zip(*part, strict=True)
            q = as_one(qs)
            kls.append(joint_grouped_kl(q, ps) if joins_groups else normal_kl(q, as_one(ps)))
    return kls


def add_up(kls: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, which may be on several devices; on that of the last one."""
    terms = list(kls)
    return reduce(lambda total, kl: total.to(kl.device) + kl, terms) if terms else torch.zeros(())
