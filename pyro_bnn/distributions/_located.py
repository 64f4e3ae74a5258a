"""What distributions over all real weights of an event have in common."""

from __future__ import annotations

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class Located(TorchDistribution):
    """Base class: an event of real numbers, around the mean ``loc``."""

    has_rsample = True
    loc: Tensor

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Tensor:
        return self.loc
