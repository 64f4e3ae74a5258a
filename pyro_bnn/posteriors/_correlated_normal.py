"""Normal posteriors whose weights are correlated."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Normal

from ..distributions import FullNormal, MatrixNormal
from ..distributions._correlated_normal import rows_and_columns
from ._posterior import Posterior, trailing

_MAX_SIZE = 2**13  # of whose covariance 256 MiB are stored in single precision


class _Correlated(Posterior):
    """Normals whose factors are a diagonal times a unit triangular matrix, stored row by row."""

    def quantiles(self, probs: Tensor) -> Tensor:
        base = self.base()
        return Normal(base.mean, base.stddev).icdf(trailing(probs, base.mean)).detach()

    def _init_factor(self, scale: Tensor, name: str, lower: str) -> None:
        size = scale.shape[-1]
        if size > _MAX_SIZE:
            raise ValueError(
                f"a covariance of {size} weights, or rows or columns of them, has {size**2} "
                "entries: choose a smaller layer, or another posterior for it"
            )
        setattr(self, name, PyroParam(scale.contiguous(), constraints.softplus_positive, 1))
        free = scale.new_zeros(*scale.shape[:-1], size * (size - 1) // 2)
        setattr(self, lower, PyroParam(free, constraints.real, 1))

    def _factor(self, scale: Tensor, lower: Tensor) -> Tensor:
        size = scale.shape[-1]
        row, column = torch.tril_indices(size, size, -1, device=scale.device)
        place = (row * size + column).expand(lower.shape)
        unit = torch.eye(size, dtype=scale.dtype, device=scale.device).flatten()
        unit = unit.expand(*scale.shape[:-1], -1).scatter(-1, place, lower)
        return scale.unsqueeze(-1) * unit.reshape(*scale.shape, size)

    def _batch(self, loc: Tensor) -> torch.Size:
        return loc.shape[: loc.dim() - self.event_dim]

    def _set_event_dim(self, event_dim: int) -> None:
        if event_dim != self.event_dim:
            raise ValueError(
                f"the posterior is of {self.event_dim} dimensions together, its site in the model "
                f"has an event of {event_dim}: the state was saved for another model"
            )


class FullNormalPosterior(_Correlated):
    r"""A Normal with full covariance: :math:`q(w) = N(w; \mu, L L^T)`.

    .. math:: L = \mathrm{diag}(\sigma)\,(I + C)

    with a strictly lower triangular :math:`C`, which starts at 0, so that the weights are
    independent with the standard deviations :math:`\sigma` then. Made for the last layer of a
    network: ``AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})``. The
    covariance of :math:`D` weights has :math:`D (D + 1) / 2` parameters. It needs shared samples,
    since the signs of flipout would change the covariance. Its KL divergence from Normal priors is
    exact.

    Args and errors are those of :class:`Posterior`.

    Raises:
        ValueError: if there are more than 8,192 weights, too.

    Example:
        >>> q = FullNormalPosterior(torch.zeros(2, 3), 0.1)
        >>> q.distribution().entropy().shape
        torch.Size([])
    """

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        self._init_factor(scale.reshape(*self._batch(loc), -1), "scale", "lower")

    def base(self) -> dist.TorchDistribution:
        tril = self._factor(self.read("scale"), self.read("lower"))
        return FullNormal(self.read("loc"), tril, self.event_dim, validate_args=False)

    @torch.no_grad()
    def set(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Becomes the Normal with a mean and a Cholesky factor of the covariance.

        Args:
            loc: shape of the weight.
            scale_tril: shape ``(D, D)``.
        """
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        size = scale.shape[-1]
        row, column = torch.tril_indices(size, size, -1, device=scale.device)
        values: dict[str, Any] = {"loc": loc, "scale": scale}
        values["lower"] = (scale_tril / scale.unsqueeze(-1))[..., row, column]
        for name, value in values.items():
            setattr(self, name, value)


class MatrixNormalPosterior(_Correlated):
    r"""A Normal whose covariance is that of the outputs times that of the inputs of a layer.

    .. math:: W = M + A E B^T, \quad E_{ij} \sim N(0, 1), \quad
        A = \mathrm{diag}(a)\,(I + C), \quad B = \mathrm{diag}(b)\,(I + D)

    with strictly lower triangular :math:`C` and :math:`D`, which start at 0. For layers that are
    too large for :class:`FullNormalPosterior`: a weight of 1,000 outputs and 500 inputs has 625,750
    parameters of the covariance. The scales :math:`a_i b_j` start at ``scale``, as far as that is a
    product of the two. It needs shared samples. Its KL divergence from Normal priors is exact.

    Args and errors are those of :class:`Posterior`.

    Raises:
        ValueError: if there are more than 8,192 inputs or outputs, too.

    References:
        Louizos and Welling (2016), "Structured and efficient variational deep learning with matrix
        Gaussian posteriors", arXiv:1603.04733.

    Example:
        >>> MatrixNormalPosterior(torch.zeros(2, 3), 0.1).distribution().stddev
        tensor([[0.1000, 0.1000, 0.1000],
                [0.1000, 0.1000, 0.1000]], grad_fn=...)
    """

    SCALES = ("row_scale", "column_scale")

    def init_parameters(self, loc: Tensor, scale: Tensor) -> None:
        self.loc = PyroParam(loc, constraints.real, self.event_dim)
        batch = self._batch(loc)
        log = scale.log().reshape(*batch, *rows_and_columns(loc.shape[len(batch) :]))
        half = 0.5 * log.mean((-2, -1), keepdim=True)
        self._init_factor((log - half).mean(-1).exp(), "row_scale", "row_lower")
        self._init_factor((log - half).mean(-2).exp(), "column_scale", "column_lower")

    def base(self) -> dist.TorchDistribution:
        rows = self._factor(self.read("row_scale"), self.read("row_lower"))
        columns = self._factor(self.read("column_scale"), self.read("column_lower"))
        return MatrixNormal(self.read("loc"), rows, columns, self.event_dim, validate_args=False)
