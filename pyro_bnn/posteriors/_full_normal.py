"""A Normal posterior with a covariance between all entries of a weight."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Normal

from ..distributions import FullNormal
from ._posterior import Posterior, trailing

_MAX_SIZE = 2**13  # of whose covariance 256 MiB are stored in single precision


class FullNormalPosterior(Posterior):
    r"""A Normal with full covariance: :math:`q(w) = N(w; \mu, L L^T)`.

    .. math:: L = \mathrm{diag}(\sigma)\,(I + C)

    with a strictly lower triangular :math:`C`, which starts at 0, so that the weights are
    independent with the standard deviations :math:`\sigma` then. Made for the last layer of a
    network: ``AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})``. There are
    :math:`D (D + 1) / 2` parameters of the covariance of :math:`D` weights. Shared draws
    work with it (flipout's signs would change the covariance); its divergence from Normal priors is
    exact.

    Args and errors are those of :class:`Posterior`.

    Raises:
        ValueError: if there are more than 8,192 weights, too.

    Example:
        >>> q = FullNormalPosterior(torch.zeros(2, 3), 0.1)
        >>> q.distribution().entropy().shape
        torch.Size([])
    """

    def _init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        batch = loc.shape[: loc.dim() - self.event_dim]
        size = loc.shape[len(batch) :].numel()
        if size > _MAX_SIZE:
            raise ValueError(
                f"a full covariance of {size} weights has {size**2} entries: choose a smaller "
                "layer, or another posterior for it"
            )
        super()._init_parameters(loc, scale)
        # Only what is used: below the diagonal, row by row.
        self.lower = PyroParam(loc.new_zeros(*batch, size * (size - 1) // 2), constraints.real, 1)

    def base(self) -> dist.TorchDistribution:
        loc = self._read("loc")
        return FullNormal(loc, self._scale_tril(loc), self.event_dim, validate_args=False)

    @torch.no_grad()
    def set(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Becomes the Normal with a mean and a Cholesky factor of the covariance.

        Args:
            loc: shape of the weight.
            scale_tril: shape ``(D, D)``.
        """
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        row, column = self._places(scale.shape[-1])
        lower = (scale_tril / scale.unsqueeze(-1))[..., row, column]
        for name, value in (("loc", loc), ("scale", scale.reshape(loc.shape)), ("lower", lower)):
            setattr(self, name, value)

    def quantiles(self, probs: Tensor) -> Tensor:
        base = self.base()
        return Normal(base.mean, base.stddev).icdf(trailing(probs, base.mean)).detach()

    def _scale_tril(self, loc: Tensor) -> Tensor:
        batch = loc.shape[: loc.dim() - self.event_dim]
        scale = self._read("scale").reshape(*batch, -1)
        size = scale.shape[-1]
        row, column = self._places(size)
        unit = torch.eye(size, dtype=loc.dtype, device=loc.device).flatten()
        place = (row * size + column).expand(*batch, -1)
        unit = unit.expand(*batch, -1).scatter(-1, place, self._read("lower"))
        return scale.unsqueeze(-1) * unit.reshape(*batch, size, size)

    def _places(self, size: int) -> Any:
        return torch.tril_indices(size, size, -1, device=self._read("loc").device)

    def _set_event_dim(self, event_dim: int) -> None:
        if event_dim != self.event_dim:
            raise ValueError(
                f"the posterior is of {self.event_dim} dimensions together, its site in the model "
                f"has an event of {event_dim}: the state was saved for another model"
            )
