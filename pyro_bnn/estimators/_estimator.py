"""How outputs are computed from a draw of a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Gumbel,
    Independent,
    Laplace,
    Normal,
    kl_divergence,
    register_kl,
)

from ..distributions import GroupedNormal, HierarchicalNormal, NormalMixture
from ..distributions._joint import is_normal, take
from ..distributions._joint_grouped import is_joinable
from ..distributions._mixture_kl import summed_mixture_kl_bound
from ..distributions._normal import innermost, normal_kl
from ..kernels import MAX_SIZE, are_enabled
from ._draw import Draw, SharedSample, draw, plain
from ._importance import check_bound


class Estimator(ABC):
    """Samples from a posterior; has no state.

    Attributes:
        needs: what the noise of a posterior must be: ``"any"``, ``"symmetric"`` in each entry by
            itself, or ``"normal"``, independent Normals.
        supports_transpose: whether a weight may be used both as it is and transposed.
        quantity: what draws from a Normal are made of, which may be computed for many small
            weights together: ``"value"``, ``"noise"``, ``"variance"``, or None.
    """

    needs: ClassVar[str] = "any"
    supports_transpose: ClassVar[bool] = True
    quantity: ClassVar[str | None] = None

    @abstractmethod
    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        """Draws from ``base``, with pathwise gradients.

        Args:
            base: the posterior, of shape ``samples + weight shape``.
            sample_shape: further sample dimensions, in front.
            event_dim: number of dimensions of the weight.

        Raises:
            ValueError: if the noise of ``base`` is not what the estimator needs.
        """

    def check(self, base: Distribution) -> None:
        """Raises an error for a posterior whose noise is not what the estimator needs.

        Raises:
            ValueError: names an estimator that works.
        """
        noise = noise_of(base)
        if _NOISES[noise] < _NOISES[self.needs]:
            raise ValueError(
                f"`estimator` (={self!r}) needs a posterior {_NEEDED[self.needs]}, and a "
                f"{type(base).__name__} is none: use {_WORKING[noise]} with it"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


# From what is known least of to what is known most of.
_NOISES = {"any": 0, "symmetric": 1, "normal": 2}
_NEEDED = {
    "symmetric": "with symmetric noise in each entry, as Normal and radial ones have",
    "normal": "of independent Normals",
}
_WORKING = {"any": "`Shared()`", "symmetric": "`Shared()` or `Flipout()`"}


def noise_of(base: Distribution) -> str:
    """What a distribution says of its noise by an attribute ``noise_kind``, if it is no Normal."""
    return "normal" if isinstance(base, Normal) else getattr(base, "noise_kind", "any")


class Shared(Estimator):
    """One sample of the weight for all examples (Blundell et al. 2015, arXiv:1505.05424)."""

    quantity = "value"

    def draw(self, base: Any, sample_shape: torch.Size, event_dim: int) -> Tensor:
        value = take(base, sample_shape)
        if value is not None:
            return value
        if is_normal(base):
            shape = sample_shape + base.loc.shape
            noise = torch.randn(shape, dtype=base.loc.dtype, device=base.loc.device)
            value = (base.scale * noise).add_(base.loc)  # `addcmul` has a longer backward
        else:
            value = base.rsample(sample_shape)
        # An ordinary tensor is all that torch needs, unless there are sample dimensions.
        return value if value.dim() == event_dim else draw(SharedSample(value))


class Estimated(dist.Independent):
    """A posterior of one weight whose samples are applied to inputs by the rule of an estimator.

    Its density, moments and KL divergences are those of ``base``; only :meth:`rsample` differs.

    Args:
        base: the posterior.
        event_dim: number of dimensions of the weight, all of them one event.
        estimator: how outputs are computed from draws.

    Example:
        >>> q = Estimated(dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)), 2, Flipout())
        >>> torch.nn.functional.linear(torch.ones(5, 2), q.rsample()).shape
        torch.Size([5, 3])
    """

    def __init__(self, base: Distribution, event_dim: int, estimator: Estimator) -> None:
        # What `Independent` does, without its checks: this is made for each weight at each step.
        shape = base.batch_shape + base.event_shape
        split = len(shape) - event_dim
        if not len(base.event_shape) <= event_dim <= len(shape):
            raise ValueError(f"`event_dim` (={event_dim}) does not fit a `base` of shape {shape}")
        self.base_dist = base
        self.reinterpreted_batch_ndims = event_dim - len(base.event_shape)
        self.estimator = estimator
        Distribution.__init__(self, shape[:split], shape[split:], validate_args=False)

    def expand(self, batch_shape, _instance=None) -> Estimated:
        new = super().expand(batch_shape, self._get_checked_instance(Estimated, _instance))
        new.estimator = self.estimator
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        return self.estimator.draw(self.base_dist, torch.Size(sample_shape), self.event_dim)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(one_weight(value))


def one_weight(value: Tensor) -> Tensor:
    """The ordinary weight of a draw, for a density."""
    if isinstance(value, Draw) and not isinstance(value.sample, SharedSample):
        check_bound()
    return plain(value)


def small_pair(q: Distribution, p: Distribution) -> tuple[Any, Any] | None:
    """The Normal of a small weight and its prior, if ``joint_kl`` takes their KL divergence."""
    pair = _of_one_weight(q, p)
    if pair is None or not is_normal(pair[0]) or not are_enabled():
        return None
    is_small = pair[0].loc.numel() <= MAX_SIZE
    return pair if is_small and (is_normal(pair[1]) or is_joinable(pair[1])) else None


def _of_one_weight(q: Distribution, p: Distribution) -> tuple[Any, Any] | None:
    """Posterior and prior of one weight without what says that it is one event."""
    if type(q) is not Estimated or q.batch_shape or q.event_shape != p.event_shape:
        return None
    base: Any = innermost(p)
    if isinstance(base, GroupedNormal) and p.event_shape.numel() <= MAX_SIZE:
        base = base.entries  # whose KL divergence is one operation with those of other weights
    if base.batch_shape != q.event_shape and not isinstance(base, HierarchicalNormal):
        return None
    return (q.base_dist, base) if q.base_dist.batch_shape == q.event_shape else None


@register_kl(Estimated, Independent)
def _kl_estimated(q: Estimated, p: Independent) -> Tensor:
    pair = _of_one_weight(q, p)
    if pair is not None and all(map(is_normal, pair)):
        return normal_kl(*pair)
    if pair is not None and isinstance(pair[0], NormalMixture):
        try:
            return summed_mixture_kl_bound(*pair)
        except NotImplementedError:  # the prior is no mixture, nor a Normal
            pass
    return kl_divergence(Independent(q.base_dist, q.reinterpreted_batch_ndims), p)


@register_kl(Estimated, Gumbel)
@register_kl(Estimated, Laplace)
@register_kl(Estimated, Normal)
def _kl_scalars(q: Estimated, p: Distribution) -> Tensor:
    """Of variables without dimensions of their own, whose priors are not made independent."""
    if q.reinterpreted_batch_ndims:
        raise NotImplementedError
    return kl_divergence(q.base_dist, p)
