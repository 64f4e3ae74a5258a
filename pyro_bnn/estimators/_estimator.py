"""How a draw of a weight meets its input."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from ._draw import SharedSample, draw, plain


class Estimator(ABC):
    """Turns a posterior into draws; has no state of its own."""

    @abstractmethod
    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        """Draws from ``base``, with pathwise gradients.

        Args:
            base: the posterior, of shape ``samples + weight shape``.
            sample_shape: further sample dimensions, in front.
            event_dim: number of dimensions of the weight.
        """


class Shared(Estimator):
    """One sample of the weight for all examples (Blundell et al. 2015, arXiv:1505.05424)."""

    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        value = base.rsample(sample_shape)
        # An ordinary tensor is all that torch needs, unless there are sample dimensions.
        return value if value.dim() == event_dim else draw(SharedSample(value))


class Estimated(dist.Independent):
    """A posterior over one weight whose draws meet inputs by an estimator's rule.

    Its density, moments and divergences are those of ``base``; only :meth:`rsample` differs.

    Args:
        base: the posterior.
        event_dim: number of dimensions of the weight, all of them one event.
        estimator: how draws meet inputs.

    Example:
        >>> q = Estimated(dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)), 2, Flipout())
        >>> torch.nn.functional.linear(torch.ones(5, 2), q.rsample()).shape
        torch.Size([5, 3])
    """

    def __init__(self, base: Distribution, event_dim: int, estimator: Estimator) -> None:
        super().__init__(base, event_dim - len(base.event_shape), validate_args=False)
        self.estimator = estimator

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
        return super().log_prob(plain(value))
