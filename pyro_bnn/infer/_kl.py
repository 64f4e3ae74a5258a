"""The divergence of one site, analytic where there is a formula."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from ..distributions._divergence import normal_kl
from ..distributions._joint import MAX_SIZE, as_one, joint_of
from ..estimators._estimator import normals


def analytic_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """The registered divergence in nats (for mixtures its bound), or None if there is none."""
    try:
        return torch.as_tensor(kl_divergence(q, p))  # Pyro's is 0.0 where all is masked
    except NotImplementedError:
        return None


def kl_or_estimate(q: Distribution, p: Distribution, value: Tensor) -> Tensor:
    """The registered divergence, or its Monte Carlo estimate at a value drawn from ``q``."""
    kl = analytic_kl(q, p)
    return q.log_prob(value) - p.log_prob(value) if kl is None else kl


def total_kl(sites: Iterable[tuple[Distribution, Distribution, Callable[[], Tensor]]]) -> Tensor:
    """The sum of the divergences of sites, a scalar.

    Args:
        sites: posterior and prior of each, and a function that returns the divergence as a scalar
            where the two are no Normals.
    """
    small, terms = [], []
    for q, p, divergence in sites:
        pair = normals(q, p)
        if pair is None:
            terms.append(divergence())
        elif is_small(pair):
            small.append(pair)
        else:
            terms.append(normal_kl(*pair))
    return add_up([*terms, *joint_kl(small)])


def is_small(pair: tuple[Any, Any]) -> bool:
    """Whether a pair of Normals is one for :func:`joint_kl`."""
    return pair[0].loc.numel() <= MAX_SIZE


def joint_kl(pairs: Iterable[tuple[Any, Any]]) -> list[Tensor]:
    """The divergence of all pairs of Normals together, in one operation for each dtype and device.

    In networks of many layers, what costs time is to call operations.
    """
    groups: dict[Any, list[tuple[Any, Any]]] = defaultdict(list)
    for q, p in pairs:
        groups[q.loc.dtype, q.loc.device, joint_of(q)].append((q, p))
    return [normal_kl(*map(as_one, zip(*g, strict=True))) for g in groups.values()]


def add_up(divergences: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, which may be on several devices; on that of the last one."""
    terms = list(divergences)
    return reduce(lambda total, kl: total.to(kl.device) + kl, terms) if terms else torch.zeros(())
