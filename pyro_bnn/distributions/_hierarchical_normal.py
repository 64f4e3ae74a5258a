"""Normals of an unknown variance, which is integrated out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..kernels import HALF_LOG_2_PI, in_double, number
from ._grouped import Grouped, Groups

if TYPE_CHECKING:
    from typing_extensions import Unpack


class HierarchicalNormal(Grouped):
    r"""One weight tensor, groups of whose entries have an unknown variance in common.

    .. math:: \tau_g \sim \mathrm{InvGamma}(a, b), \qquad w_i \mid \tau \sim N(m, \tau_{g(i)})

    The variances are integrated out: the :math:`n` entries of a group are a multivariate Student-t
    variable with :math:`2a` degrees of freedom,

    .. math::
        \log p(w) = \sum_g \log\Gamma(c) - \log\Gamma(a) + a \log b - \tfrac n2 \log 2\pi
        - c \log\Bigl(b + \tfrac12 \sum_{i \in g} (w_i - m)^2\Bigr),
        \qquad c = a + \tfrac n2.

    ``torch.distributions.kl_divergence`` has an upper bound on the KL divergence from it, see
    :func:`hierarchical_kl_bound`.

    Args:
        shape: shape of the weight, which is one event.
        concentration: shape parameter :math:`a > 0` of the prior of the variances, a scalar.
        rate: scale parameter :math:`b > 0` of it, a scalar; like a variance.
        loc: the mean :math:`m`, broadcastable to ``shape``.
        group_dims: the dimensions that tell groups apart, say ``(1,)`` for one variance for each
            column of a matrix; by default all entries are one group.
        view: the shape that ``group_dims`` refers to, if that is not ``shape`` but one of as many
            entries.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if ``concentration`` or ``rate`` is not positive, ``view`` has another number of
            entries than ``shape``, or ``group_dims`` are no dimensions of it.

    References:
        Tomczak, Swaroop, Foong and Turner (2021), "Collapsed variational bounds for Bayesian neural
        networks", NeurIPS 34.

    Example:
        >>> from pyro_bnn.distributions import HierarchicalNormal
        >>> prior = HierarchicalNormal((3, 4), concentration=2.0, rate=1.0, group_dims=(1,))
        >>> prior.sample().shape, prior.log_prob(torch.zeros(3, 4))
        (torch.Size([3, 4]), tensor(-6.2234))
    """

    concentration: Tensor
    rate: Tensor
    arg_constraints = {
        "loc": constraints.real,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }

    def __init__(
        self,
        shape: tuple[int, ...],
        concentration: Tensor | float = 0.5,
        rate: Tensor | float = 0.01,
        loc: Tensor | float = 0.0,
        **groups: Unpack[Groups],
    ) -> None:
        for name, value in (("concentration", concentration), ("rate", rate)):
            if isinstance(value, Tensor) and value.dim():
                raise ValueError(
                    f"`{name}` must be a scalar, the same for all groups, not of shape "
                    f"{tuple(value.shape)}"
                )
        parameters = {"loc": loc, "concentration": concentration, "rate": rate}
        super().__init__(shape, parameters, **groups)

    @property
    def mean(self) -> Tensor:
        r"""The mean; NaN where there is none, for :math:`a \le 1/2`."""
        mean = torch.where(self.concentration > 0.5, self.loc, math.nan)
        return mean.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        r"""The variance :math:`b / (a - 1)`; infinite for :math:`a \le 1`, NaN without a mean."""
        a, b = self.concentration, self.rate
        variance = torch.where(a > 1, b / (a - 1), math.inf)
        return torch.where(a > 0.5, variance, math.nan).expand(self._extended_shape())

    def group_scale(self, batch_shape: torch.Size) -> Tensor:
        dtype = torch.promote_types(self.rate.dtype, torch.float)  # torch draws in no lower one
        a, b = self.concentration.to(dtype), self.rate.to(dtype)
        gamma = torch.distributions.Gamma(a, b, validate_args=False)
        return gamma.rsample(batch_shape + self.group_shape).rsqrt().to(self.rate.dtype)

    def expected_log_density(self, half: Tensor, size: int | Tensor) -> Tensor:
        a, b, half = (in_double(t) for t in (self.concentration, self.rate, half))
        c = a + 0.5 * size
        constant = torch.lgamma(c) - torch.lgamma(a) - size * HALF_LOG_2_PI
        return self.sum_groups(constant + a * b.log() - c * (b + half).log())

    def density_and_precision(self, half: Any) -> tuple[Any, Any]:
        a, b = number(self.concentration), number(self.rate)
        if isinstance(half, Tensor) and not isinstance(a, float):
            density = self.expected_log_density(half.reshape(self.group_shape), self.group_size)
            return density, (a + 0.5 * self.group_size) / (b + half)
        c, b, constant = self._constants()
        if not isinstance(half, Tensor):
            return constant - c * math.log(b + half), c / (b + half)
        variance = in_double(half) + b
        total = variance.log().sum().item()
        return self.group_shape.numel() * constant - c * total, variance.reciprocal_().mul_(c)

    def _constants(self) -> tuple[float, float, float]:
        """What the log density of a group is made of, besides its sum of squares.

        Returns:
            :math:`c`, :math:`b` and all that does not depend on the weights.
        """
        size, a, b = self.group_size, self.concentration.item(), self.rate.item()
        c = a + 0.5 * size
        constant = math.lgamma(c) - math.lgamma(a) + a * math.log(b) - size * HALF_LOG_2_PI
        return c, b, constant
