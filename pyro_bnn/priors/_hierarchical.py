"""Priors of unknown scales, which are integrated out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro.distributions as dist
import torch

from .. import distributions
from .._axes import Axes
from .._validation import check_finite_numbers, check_positive
from ._groups import GROUPS, group_dims


@dataclass(frozen=True)
class HierarchicalNormal:
    r"""Normals with an unknown variance for each group of weights, which is integrated out.

    .. math:: \tau_g \sim \mathrm{InvGamma}(a, b), \qquad w_i \mid \tau \sim N(m, \tau_{g(i)})

    So the data determine the scale of the weights, with nothing to train: each group's is averaged
    over in closed form. See :class:`pyro_bnn.distributions.HierarchicalNormal` for the density and
    :func:`~pyro_bnn.distributions.hierarchical_kl_bound` for its KL divergence.

    A parameter with fewer than two dimensions, such as a bias, is one group, whatever ``groups``
    is.

    Args:
        groups: the weights with a variance in common: ``"tensor"``, all; ``"input"``, those of each
            input (automatic relevance determination, ARD); ``"output"``, those of each output.
        concentration: shape :math:`a` of the prior of the variances, positive. The weights have a
            variance for :math:`a > 1`, a mean for :math:`a > 1/2`.
        rate: its scale :math:`b`, positive; the mode of a variance is :math:`b / (a + 1)`.
        loc: the mean :math:`m`.
        learnable_loc: make the mean, one for the whole weight, a parameter.

    Raises:
        TypeError: if ``learnable_loc`` is no bool, or another argument no number.
        ValueError: if ``groups`` is none of these, ``concentration`` or ``rate`` not positive and
            finite, or ``loc`` not finite.

    References:
        Tomczak, Swaroop, Foong and Turner (2021), "Collapsed variational bounds for Bayesian neural
        networks", NeurIPS 34.
    """

    groups: str = "tensor"
    concentration: float = 0.5
    rate: float = 0.01
    loc: float = 0.0
    learnable_loc: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.groups not in GROUPS:
            raise ValueError(f'`groups` (={self.groups!r}) must be "tensor", "input" or "output"')
        check_positive(concentration=self.concentration, rate=self.rate)
        check_finite_numbers(loc=self.loc)
        if not isinstance(self.learnable_loc, bool):
            raise TypeError(f"`learnable_loc` (={self.learnable_loc!r}) must be True or False")

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters of the distribution that become parameters of the layer."""
        return ("loc",) if self.learnable_loc else ()

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return self.by_axes(shape, fan_in, Axes.of_shape(shape))

    def by_axes(self, shape: torch.Size, fan_in: int, axes: Axes) -> dist.TorchDistribution:
        """The prior of a weight whose inputs and outputs are known."""
        return distributions.HierarchicalNormal(
            shape,
            self.concentration,
            self.rate,
            self.loc,
            group_dims=group_dims(self.groups, axes),
            view=axes.view,
            validate_args=False,
        )
