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
        offset = torch.arange(size, dtype=loc.dtype, device=loc.device) - 0.5 * (size - 1)
        offset = offset.view(-1, *(1,) * loc.dim())
        event_dim = self.event_dim + 1

        def parameter(values: Tensor, constraint: constraints.Constraint) -> PyroParam:
            # In memory, components come first: sums over them are far faster that way.
            return PyroParam(values.contiguous().movedim(0, -1), constraint, event_dim)

        start = loc + scale * offset
        self.logits = parameter(torch.zeros_like(start), constraints.real)
        self.loc = parameter(start, constraints.real)
        self.scale = parameter(scale.expand_as(start), constraints.softplus_positive)

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
