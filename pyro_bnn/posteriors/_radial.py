"""The radial posterior."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import Radial
from ..distributions._normal import trusted_normal
from ._posterior import Posterior


class RadialPosterior(Posterior):
    r"""A :class:`~pyro_bnn.distributions.Radial` with one radius for the whole weight tensor.

    Args and errors are those of :class:`Posterior`, except that ``scale`` stands for the
    standard deviation of an entry at the start: the parameter :math:`\sigma` starts at
    :math:`\sqrt{D}` times it. Shared samples and flipout work with it.

    References:
        Farquhar, Osborne and Gal (2020), "Radial Bayesian neural networks", arXiv:1907.00865.

    Example:
        >>> RadialPosterior(torch.zeros(3, 2), 0.1).distribution().entropy().shape
        torch.Size([])
    """

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        size = loc.shape[loc.dim() - self.event_dim :].numel()
        super().init_parameters(loc, math.sqrt(size) * scale)

    def base(self) -> dist.TorchDistribution:
        loc, scale = self.read("loc"), self.read("scale")
        if not self._num_kept():  # there is no direction without a weight
            return trusted_normal(loc, scale)
        return Radial(loc, scale, self.event_dim, validate_args=False)

    @torch.no_grad()
    def check_mask(self, kept: Tensor) -> None:
        if self.read("loc").dim() > self.event_dim:
            raise ValueError(
                "radial posteriors of many networks, one for each element of a plate, cannot be "
                "pruned: they would differ in their numbers of weights"
            )
        super().check_mask(kept)

    @torch.no_grad()
    def prune(self, kept: Tensor) -> None:
        """Prunes, and keeps the standard deviation of every weight that is kept."""
        size = self._num_kept()
        super().prune(kept)
        if self._num_kept():  # the variance of an entry is that of the radius over their number
            scale: Any = self.read("scale") * math.sqrt(self._num_kept() / size)
            self.scale = scale

    def signal_to_noise(self) -> Tensor:
        return super().signal_to_noise() * math.sqrt(
            self._num_kept() / max(1, self.read("loc").numel())
        )

    def _num_kept(self) -> int:
        return self.read("loc").numel() if self.kept is None else int(self.kept.sum())

    def quantiles(self, probs: Tensor) -> Tensor:
        raise NotImplementedError(
            "the entries of a radial posterior have no quantiles in closed form: take them from "
            "samples, say of `Predictive(model, guide=guide, num_samples=1000)`"
        )
