"""Normals of one weight tensor with a scale for each group of entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..kernels import HALF_LOG_2_PI, in_double
from ._grouped import Grouped, Groups
from ._normal import trusted_normal

if TYPE_CHECKING:
    from typing_extensions import Unpack


class GroupedNormal(Grouped):
    r"""One weight tensor of independent Normals, whose scale is that of a group of entries.

    .. math:: w_i \sim N(m, s_{g(i)}^2)

    As a prior whose scales are learned it is that of automatic relevance determination. Its KL
    divergence is exact for Normal and Radial posteriors.

    Args:
        shape: shape of the weight, which is one event.
        scale: the standard deviation :math:`s > 0` of each group, shape ``group_shape``, or a
            scalar.
        loc, group_dims, view, validate_args: as for :class:`HierarchicalNormal`.

    Raises:
        ValueError: if ``scale`` is not positive or does not fit the groups, ``view`` has another
            number of entries than ``shape``, or ``group_dims`` are no dimensions of it.

    References:
        MacKay (1996), "Bayesian methods for backpropagation networks", section 4; Neal (1996),
        "Bayesian learning for neural networks", section 4.3.

    Example:
        >>> from pyro_bnn.distributions import GroupedNormal
        >>> prior = GroupedNormal((3, 2), torch.tensor([1.0, 0.1]), group_dims=(1,))
        >>> prior.variance[0], prior.log_prob(torch.zeros(3, 2))
        (tensor([1.0000, 0.0100]), tensor(1.3941))
    """

    scale: Tensor
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self,
        shape: tuple[int, ...],
        scale: Tensor | float = 1.0,
        loc: Tensor | float = 0.0,
        **groups: Unpack[Groups],
    ) -> None:
        super().__init__(shape, {"loc": loc, "scale": scale}, **groups)
        if self.scale.shape not in (torch.Size(), self.group_shape):
            raise ValueError(
                f"`scale` of shape {tuple(self.scale.shape)} must be a scalar, or have one entry "
                f"for each group, shape {tuple(self.group_shape)}"
            )
        self.scale = self.scale.expand(self.group_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        return self.spread(self.scale.square()).expand(self._extended_shape())

    @property
    def entries(self) -> dist.Normal:
        """The Normal of each entry."""
        return trusted_normal(self.loc.expand(self.event_shape), self.spread(self.scale))

    def group_scale(self, batch_shape: torch.Size) -> Tensor:
        return self.scale.expand(batch_shape + self.group_shape)

    def expected_log_density(self, half: Tensor, size: int | Tensor) -> Tensor:
        scale, half = in_double(self.scale), in_double(half)
        return -self.sum_groups(size * (scale.log() + HALF_LOG_2_PI) + half / scale.square())

    def density_and_precision(self, half: Any) -> tuple[Any, Any]:
        scale = in_double(self.scale)
        precision = scale.square().reciprocal_()
        if isinstance(half, Tensor):
            half = in_double(half).reshape(self.group_shape)
        constant = self.group_shape.numel() * self.group_size * HALF_LOG_2_PI
        log_scales = scale.log().sum() * self.group_size
        return -(precision * half).sum() - log_scales - constant, precision
