"""Rules that give a weight its prior.

A rule is a function of the weight's shape and its number of inputs that returns a distribution
which broadcasts to the shape, so ``lambda shape, fan_in: dist.StudentT(3.0)`` is one too (a named
function pickles). Layers turn its parameters into buffers; those that a rule names in an attribute
``learnable`` become parameters of the layer, learned by maximizing the ELBO (empirical Bayes).
A rule that treats the inputs and the outputs of a weight differently has a method ``by_axes(shape,
axes)``, which layers call instead; ``axes.view``, ``axes.inputs`` and ``axes.outputs`` are the
weight's shape and the dimensions that count its inputs and its outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch

from . import distributions
from ._axes import Axes
from ._validation import check_positive
from .distributions import NormalMixture


@dataclass(frozen=True)
class _Rule:
    learnable_scale: bool = field(default=False, kw_only=True)

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters of the distribution that become parameters of the layer."""
        return ("scale",) if self.learnable_scale else ()


@dataclass(frozen=True)
class _LocationScale(_Rule):
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.loc):
            raise ValueError(f"`loc` (={self.loc}) must be finite")
        check_positive(scale=self.scale)


@dataclass(frozen=True)
class Normal(_LocationScale):
    r"""Independent Normals, :math:`w \sim N(\mu, \sigma^2)`.

    Args:
        loc: the mean :math:`\mu`.
        scale: the standard deviation :math:`\sigma`, positive.
        learnable_scale: make the scale, one for the whole weight, a parameter.

    Raises:
        ValueError: if ``scale`` is not positive and finite, or ``loc`` not finite.
    """

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.scale, validate_args=False)


@dataclass(frozen=True)
class Laplace(_LocationScale):
    r"""Independent Laplace variables, with density :math:`e^{-|w-\mu|/b} / 2b`.

    Args:
        loc: the mean :math:`\mu`.
        scale: the scale :math:`b`, positive; the standard deviation is :math:`\sqrt2\,b`.
        learnable_scale: as for :class:`Normal`, as are the errors.
    """

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return dist.Laplace(self.loc, self.scale, validate_args=False)


@dataclass(frozen=True)
class FanInNormal(_Rule):
    r"""Independent Normals that keep the variance of activations, :math:`w \sim N(0, g^2/n)`.

    Args:
        gain: :math:`g`, positive; :math:`\sqrt2` suits ReLU.
        learnable_scale: make the scale, one for the whole weight, a parameter.

    Raises:
        ValueError: if ``gain`` is not positive and finite.

    References:
        Neal (1996), "Bayesian learning for neural networks", section 2.1.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_positive(gain=self.gain)

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        scale = self.gain / math.sqrt(max(1, fan_in))
        return dist.Normal(0.0, scale, validate_args=False)


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
        if not 0 < self.prob < 1:
            raise ValueError(f"`prob` (={self.prob}) must lie between 0 and 1")
        check_positive(scale1=self.scale1, scale2=self.scale2)

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        probs = torch.tensor([self.prob, 1 - self.prob])
        scale = torch.tensor([self.scale1, self.scale2])
        return NormalMixture(probs, torch.zeros(2), scale, validate_args=False)


@dataclass(frozen=True)
class HierarchicalNormal:
    r"""Normals with an unknown variance for each group of weights, which is integrated out.

    .. math:: \tau_g \sim \mathrm{InvGamma}(a, b), \qquad w_i \mid \tau \sim N(m, \tau_{g(i)})

    So the data determine the scale of the weights, with nothing to train: each group's is averaged
    over in closed form. See :class:`pyro_bnn.distributions.HierarchicalNormal` for the density and
    :func:`~pyro_bnn.distributions.hierarchical_kl_bound` for its KL divergence.

    What counts as inputs and outputs: of linear layers, features; of convolutions, also grouped and
    transposed ones, channels, with all positions of the kernel in one group; of recurrent layers,
    the inputs of a unit and units, a unit with all its gates; of embeddings, rows and columns. Of
    other modules' parameters, dimension 1 counts inputs and dimension 0 outputs. A parameter with
    fewer than two dimensions, such as a bias, has neither and is one group, whatever ``groups`` is.

    Args:
        groups: the weights with a variance in common: ``"tensor"``, all; ``"input"``, those of each
            input (automatic relevance determination, ARD); ``"output"``, those of each output.
        concentration: shape :math:`a` of the prior of the variances, positive. The weights have a
            variance for :math:`a > 1`, a mean for :math:`a > 1/2`.
        rate: its scale :math:`b`, positive; the mode of a variance is :math:`b / (a + 1)`.
        loc: the mean :math:`m`.
        learnable_loc: make the mean, one for the whole weight, a parameter.

    Raises:
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
        if self.groups not in ("tensor", "input", "output"):
            raise ValueError(f'`groups` (={self.groups!r}) must be "tensor", "input" or "output"')
        check_positive(concentration=self.concentration, rate=self.rate)
        if not math.isfinite(self.loc):
            raise ValueError(f"`loc` (={self.loc}) must be finite")

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters of the distribution that become parameters of the layer."""
        return ("loc",) if self.learnable_loc else ()

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        return self.by_axes(shape, Axes.of_shape(shape))

    def by_axes(self, shape: torch.Size, axes: Axes) -> dist.TorchDistribution:
        """The prior of a weight whose inputs and outputs are known."""
        group_dims = {"tensor": (), "input": axes.inputs, "output": axes.outputs}[self.groups]
        return distributions.HierarchicalNormal(
            shape,
            self.concentration,
            self.rate,
            self.loc,
            group_dims=group_dims,
            view=axes.view,
            validate_args=False,
        )


@dataclass(frozen=True)
class Pretrained:
    r"""Independent Normals around the weights :math:`w_0` of the network that is converted.

    .. math:: w \sim N(w_0, \sigma^2)

    Args:
        scale: the standard deviation :math:`\sigma`, positive.

    Raises:
        ValueError: if ``scale`` is not positive and finite.
        TypeError: if it is the prior of a new layer, which has no weights yet: only
            :func:`~pyro_bnn.bayesianize` knows them.

    References:
        Krishnan, Subedar and Tickoo (2020), "Specifying weight priors in Bayesian deep neural
        networks with empirical Bayes", arXiv:1906.05323 (MOPED).
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)

    def __call__(self, shape: torch.Size, fan_in: int) -> dist.TorchDistribution:
        raise TypeError(
            "`Pretrained` is a prior for `bayesianize(net, prior=...)`: a layer that is new has no "
            "trained weights"
        )

    def around(self, weight: torch.Tensor) -> dist.TorchDistribution:
        """The prior of a weight with that trained value."""
        return dist.Normal(weight.detach(), self.scale, validate_args=False)


__all__ = ["FanInNormal", "HierarchicalNormal", "Laplace", "Normal", "Pretrained", "ScaleMixture"]
