"""Priors of independent weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch

from .. import distributions
from .._axes import Axes
from .._validation import check_finite_numbers, check_positive, check_probability
from ._groups import GROUPS, group_dims


@dataclass(frozen=True)
class _Rule:
    learnable_scale: bool | str = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.learnable_scale not in (False, True, *GROUPS, "entry"):
            raise ValueError(
                f"`learnable_scale` (={self.learnable_scale!r}) must be True, False, "
                '"tensor", "input", "output" or "entry"'
            )

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters of the distribution that become parameters of the layer."""
        return ("scale",) if self.learnable_scale else ()

    def _shaped(self, scale: float, shape: torch.Size) -> Any:
        return torch.full(shape, scale) if self.learnable_scale == "entry" else scale


class _NormalRule(_Rule):
    def by_axes(self: Any, shape: torch.Size, fan_in: int, axes: Axes) -> dist.TorchDistribution:
        """The prior of a weight whose inputs and outputs are known."""
        normal = self(shape, fan_in)
        dims = group_dims(self.learnable_scale, axes)
        if not dims:
            return normal
        scale, loc = normal.scale, normal.loc
        return distributions.GroupedNormal(
            shape, scale, loc, group_dims=dims, view=axes.view, validate_args=False
        )


@dataclass(frozen=True)
class _LocationScale(_Rule):
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite_numbers(loc=self.loc)
        check_positive(scale=self.scale)


@dataclass(frozen=True)
class Normal(_LocationScale, _NormalRule):
    r"""Independent Normals, :math:`w \sim N(\mu, \sigma^2)`.

    Args:
        loc: the mean :math:`\mu`.
        scale: the standard deviation :math:`\sigma`, positive.
        learnable_scale: make the scale a parameter, which is learned by maximizing the ELBO
            (empirical Bayes): one for the whole weight (True or ``"tensor"``), for each of its
            inputs (``"input"``, automatic relevance determination, ARD), for each of its outputs
            (``"output"``), or for each entry (``"entry"``, sparse Bayesian learning). It starts at
            ``scale``.

    Raises:
        ValueError: if ``scale`` is not positive and finite, ``loc`` not finite, or
            ``learnable_scale`` none of these.

    References:
        MacKay (1996), "Bayesian methods for backpropagation networks"; Neal (1996), "Bayesian
        learning for neural networks", section 4.3; Tipping (2001), "Sparse Bayesian learning and
        the relevance vector machine", JMLR 1; Kharitonov, Molchanov and Vetrov (2018), "Variational
        dropout via empirical Bayes", arXiv:1811.00596.
    """

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self._shaped(self.scale, shape), validate_args=False)


@dataclass(frozen=True)
class Laplace(_LocationScale):
    r"""Independent Laplace variables, with density :math:`e^{-|w-\mu|/b} / 2b`.

    Args:
        loc: the mean :math:`\mu`.
        scale: the scale :math:`b`, positive; the standard deviation is :math:`\sqrt2\,b`.
        learnable_scale: True makes the scale, one for the whole weight, a parameter; ``"entry"``,
            one for each entry.

    Raises:
        ValueError: as for :class:`Normal`; if ``learnable_scale`` is ``"input"`` or ``"output"``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learnable_scale in ("input", "output"):
            raise ValueError(
                f'`learnable_scale` (={self.learnable_scale!r}) must be True, False or "entry": '
                "a Laplace prior has no scales for inputs or outputs, as Normal ones have"
            )

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return dist.Laplace(self.loc, self._shaped(self.scale, shape), validate_args=False)


@dataclass(frozen=True)
class FanInNormal(_NormalRule):
    r"""Independent Normals that keep the variance of activations, :math:`w \sim N(0, g^2/n)`.

    Args:
        gain: :math:`g`, positive; :math:`\sqrt2` suits ReLU.
        learnable_scale: as for :class:`Normal`; the scale starts at :math:`g / \sqrt n`.

    Raises:
        ValueError: if ``gain`` is not positive and finite, or ``learnable_scale`` as there.

    References:
        Neal (1996), "Bayesian learning for neural networks", section 2.1.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(gain=self.gain)

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        scale = self.gain / math.sqrt(max(1, fan_in))
        return dist.Normal(0.0, self._shaped(scale, shape), validate_args=False)


@dataclass(frozen=True)
class ScaleMixture:
    r"""A spike and a slab, :math:`\pi N(0, \sigma_1^2) + (1-\pi) N(0, \sigma_2^2)`.

    Args:
        prob: the weight :math:`\pi` of the slab, in (0, 1).
        scale1: standard deviation of the slab, positive.
        scale2: standard deviation of the spike, positive.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural
        networks", arXiv:1505.05424, section 3.3.
    """

    prob: float = 0.5
    scale1: float = 1.0
    scale2: float = math.exp(-6)

    def __post_init__(self) -> None:
        check_probability(prob=self.prob)
        check_positive(scale1=self.scale1, scale2=self.scale2)

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        probs = torch.tensor([self.prob, 1 - self.prob])
        scale = torch.tensor([self.scale1, self.scale2])
        return distributions.NormalMixture(probs, torch.zeros(2), scale, validate_args=False)
