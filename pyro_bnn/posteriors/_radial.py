"""The radial posterior."""

from __future__ import annotations

import math

from torch import Tensor

from ..distributions import Radial
from ._posterior import Posterior


class RadialPosterior(Posterior):
    r"""A :class:`~pyro_bnn.distributions.Radial` with one radius for the whole weight tensor.

    Args and errors are those of :class:`Posterior`, except that ``scale`` stands for the
    standard deviation of an entry at the start: the parameter :math:`\sigma` starts at
    :math:`\sqrt{D}` times it. Shared and flipout draws work with it.

    References:
        Farquhar, Osborne and Gal (2020), "Radial Bayesian neural networks", arXiv:1907.00865.

    Example:
        >>> RadialPosterior(torch.zeros(3, 2), 0.1).distribution().entropy().shape
        torch.Size([])
    """

    def _init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        size = loc.shape[loc.dim() - self.event_dim :].numel()
        super()._init_parameters(loc, math.sqrt(size) * scale)

    def base(self) -> Radial:
        loc, scale = self._read("loc"), self._read("scale")
        return Radial(loc, scale, self.event_dim, validate_args=False)

    def quantiles(self, probs: Tensor) -> Tensor:
        raise NotImplementedError(
            "the entries of a radial posterior have no quantiles in closed form: take them from "
            "samples, say of `Predictive(model, guide=guide, num_samples=1000)`"
        )
