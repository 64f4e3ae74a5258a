"""Priors around the weights of a trained network."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch

from .._validation import check_positive


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
