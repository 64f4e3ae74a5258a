"""The posterior of Normal mixtures."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from ..distributions import NormalMixture
from ..estimators import Estimator
from ._posterior import Posterior, trailing


class MixturePosterior(Posterior):
    r"""An independent mixture of Normals for each weight.

    .. math:: q(w) = \sum_k \pi_k \, N(w; \mu_k, \sigma_k^2)

    Args:
        loc: initial mean; gives the shape of the weight.
        scale: initial standard deviation of a component, positive.
        event_dim: number of rightmost dimensions of ``loc`` that are one event; all by default.
        estimator: how draws meet inputs; only :class:`~pyro_bnn.estimators.Shared` does.
        num_components: number of components K. They start with equal weights and means that are
            ``scale`` apart, since equal components would get equal gradients for ever.

    Raises:
        ValueError: if ``scale`` is not positive and finite, or ``num_components`` below 1.

    Example:
        >>> MixturePosterior(torch.zeros(3, 2), 0.1).base().loc.shape
        torch.Size([3, 2, 2])
    """

    component_dims: ClassVar[int] = 1

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor,
        event_dim: int | None = None,
        estimator: Estimator | None = None,
        *,
        num_components: int = 2,
    ) -> None:
        if num_components < 1:
            raise ValueError(f"`num_components` (={num_components}) must be at least 1")
        self._num_components = num_components
        super().__init__(loc, scale, event_dim, estimator)

    def _init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        size = self._num_components
        loc, scale = loc.unsqueeze(-1), scale.unsqueeze(-1)
        offset = torch.arange(size, dtype=loc.dtype, device=loc.device) - 0.5 * (size - 1)
        event_dim = self.event_dim + 1
        start = (loc + scale * offset).contiguous()
        self.logits = PyroParam(torch.zeros_like(start), constraints.real, event_dim)
        self.loc = PyroParam(start, constraints.real, event_dim)
        self.scale = PyroParam(
            scale.expand_as(start).contiguous(), constraints.softplus_positive, event_dim
        )

    def base(self) -> dist.TorchDistribution:
        return NormalMixture(
            logits=self._read("logits"),
            loc=self._read("loc"),
            scale=self._read("scale"),
            validate_args=False,
        )

    def median(self) -> Tensor:
        return self.quantiles(torch.tensor(0.5))

    def quantiles(self, probs: Tensor) -> Tensor:
        base = self.base()
        return base.icdf(trailing(probs, base.loc[..., 0])).detach()
