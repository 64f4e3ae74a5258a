"""The posterior of Normal mixtures."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from ..distributions._normal_mixture import trusted_mixture
from ._posterior import Posterior, trailing


class MixturePosterior(Posterior):
    r"""An independent mixture of Normals for each weight.

    .. math:: q(w) = \sum_k \pi_k \, N(w; \mu + \sigma_k \delta_k, \sigma_k^2)

    The mean of each component is :math:`\delta_k` of its standard deviations away from a common
    location :math:`\mu`. With free means, the noise of gradients would drive the components many
    standard deviations apart before the data have an effect.

    Args:
        loc: initial location; gives the shape of the weight.
        scale: initial standard deviation of a component, positive.
        event_dim: number of rightmost dimensions of ``loc`` that are one event; all by default.
        estimator: how outputs are computed from samples; only
            :class:`~pyro_bnn.estimators.Shared` works.
        num_components: number of components K. They start with equal weights and one standard
            deviation apart, since equal components would get equal gradients for ever.

    Raises:
        ValueError: if ``scale`` is not positive and finite, ``num_components`` below 1, or
            ``estimator`` another one.

    Example:
        >>> MixturePosterior(torch.zeros(3, 2), 0.1).base().loc.shape
        torch.Size([3, 2, 2])
    """

    def __init__(
        self, loc: Tensor, scale: float | Tensor, *args: Any, num_components: int = 2, **kwargs: Any
    ) -> None:
        if num_components < 1:
            raise ValueError(f"`num_components` (={num_components}) must be at least 1")
        self._num_components = num_components
        super().__init__(loc, scale, *args, **kwargs)

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        size = self._num_components
        steps = torch.arange(size, dtype=loc.dtype, device=loc.device) - 0.5 * (size - 1)
        offset = steps.view(-1, *(1,) * loc.dim()).expand(size, *loc.shape)

        def parameter(values: Tensor, constraint: constraints.Constraint) -> PyroParam:
            return PyroParam(values.movedim(0, -1).contiguous(), constraint, self.event_dim + 1)

        self.logits = parameter(torch.zeros_like(offset), constraints.real)
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        self.offset = parameter(offset, constraints.real)
        self.scale = parameter(scale.expand_as(offset), constraints.softplus_positive)

    def base(self) -> dist.TorchDistribution:
        logits, offset, scale = map(self._components, ("logits", "offset", "scale"))
        loc = torch.addcmul(self.read("loc").unsqueeze(-1), scale, offset)
        return trusted_mixture(logits, loc, scale)

    def _components(self, name: str) -> Tensor:
        """A parameter with its components in front in memory: sums over them are far faster."""
        return self.read(name).movedim(-1, 0).contiguous().movedim(0, -1)

    def median(self) -> Tensor:
        return self.quantiles(torch.tensor(0.5))

    def quantiles(self, probs: Tensor) -> Tensor:
        base = self.base()
        return self._masked(base.icdf(trailing(probs, base.loc[..., 0])).detach())
