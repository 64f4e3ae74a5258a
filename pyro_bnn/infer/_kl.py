"""The divergence of one site, analytic where there is a formula."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence


def analytic_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """The registered divergence in nats (for mixtures its bound), or None if there is none."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def kl_or_estimate(q: Distribution, p: Distribution, value: Tensor) -> Tensor:
    """The registered divergence, or its Monte Carlo estimate at a value drawn from ``q``."""
    kl = analytic_kl(q, p)
    return q.log_prob(value) - p.log_prob(value) if kl is None else kl


def add_up(divergences: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, which may be on several devices; on that of the last one."""
    terms = list(divergences)
    return reduce(lambda total, kl: total.to(kl.device) + kl, terms) if terms else torch.zeros(())
