"""Posteriors of which some weights are zero for good."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence, register_kl

from ..distributions import NormalMixture, Radial, hierarchical_kl_bound
from ..distributions._grouped import Grouped
from ..distributions._normal import innermost, trusted_normal
from ..estimators import Estimated, Estimator
from ..estimators._estimator import one_weight
from ..kernels import exact_sum


class Pruned(Estimated):
    """A posterior over the weights that are kept; the others are zero.

    Its density and its KL divergence are those of the kept weights alone, so that a pruned weight
    costs nothing.

    Args:
        base: the posterior of all weights, of which the kept ones count.
        event_dim: number of dimensions of the weight.
        estimator: how outputs are computed from draws.
        kept: mask, shape of the weight.
    """

    def __init__(
        self, base: Distribution, event_dim: int, estimator: Estimator, kept: Tensor
    ) -> None:
        super().__init__(_masked(base, kept), event_dim, estimator)
        self.full = base
        self.kept = kept

    def expand(self, batch_shape, _instance=None) -> Pruned:
        new = super().expand(batch_shape, self._get_checked_instance(Pruned, _instance))
        new.full = self.full.expand(new.base_dist.batch_shape)
        new.kept = self.kept
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if isinstance(self.full, Radial):
            return super().log_prob(value)
        density = self.full.log_prob(one_weight(value))
        return self.sum_kept(density)

    def log_prior(self, p: Distribution, value: Tensor) -> Tensor:
        """The log density of the kept weights under a prior.

        It is that of all weights where these depend on each other otherwise than by groups.
        """
        if isinstance(p, Grouped):
            return p.log_prob(value, self.kept)
        if isinstance(p, Independent) and not innermost(p).event_shape:
            return self.sum_kept(innermost(p).log_prob(value))
        return p.log_prob(value)

    def sum_kept(self, x: Tensor) -> Tensor:
        return exact_sum(torch.where(self.kept, x, 0), tuple(range(-self.event_dim, 0)))


class _KeptMixture(NormalMixture):
    """A mixture whose draws are masked."""

    kept: Tensor

    def expand(self, batch_shape, _instance=None) -> _KeptMixture:
        new = super().expand(batch_shape, self._get_checked_instance(_KeptMixture, _instance))
        new.kept = self.kept
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        return torch.where(self.kept, super().rsample(sample_shape), 0)


@singledispatch
def _masked(base: Distribution, kept: Tensor) -> Distribution:
    raise TypeError(
        f"a posterior whose `base()` is a {type(base).__name__} cannot be pruned: Normals, "
        "NormalMixtures and Radials can; leave the others out by `sites`"
    )


@_masked.register
def _(base: Normal, kept: Tensor) -> Distribution:
    return trusted_normal(base.loc * kept, base.scale * kept)


@_masked.register
def _(base: Radial, kept: Tensor) -> Distribution:
    return Radial(base.loc * kept, base.scale, base.event_dim, kept=kept, validate_args=False)


@_masked.register
def _(base: NormalMixture, kept: Tensor) -> Distribution:
    new = _KeptMixture(logits=base.logits, loc=base.loc, scale=base.scale, validate_args=False)
    new.kept = kept
    return new


@register_kl(Pruned, Independent)
def _kl_pruned(q: Pruned, p: Independent) -> Tensor:
    if isinstance(q.full, Radial):
        return kl_divergence(q.base_dist, p)
    base = innermost(p)
    if base.event_shape:
        raise NotImplementedError  # the weights of a prior of this kind depend on each other
    return q.sum_kept(kl_divergence(q.full, base))


@register_kl(Pruned, Grouped)
def _kl_pruned_grouped(q: Pruned, p: Grouped) -> Tensor:
    # Of the full posterior: the entropy of a scale of 0 has no finite gradient.
    base = q if isinstance(q.full, Radial) else Independent(q.full, q.event_dim)
    return hierarchical_kl_bound(base, p, kept=q.kept)
