"""Normals whose entries are correlated within a weight, and their KL divergences."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ..kernels import HALF_LOG_2_PI
from ._located import Located


class CorrelatedNormal(Located):
    """Base class: a linear function of independent standard Normals, around ``loc``."""

    def __init__(self, loc: Tensor, event_dim: int, validate_args: bool | None) -> None:
        self.loc = loc
        split = loc.dim() - event_dim
        super().__init__(loc.shape[:split], loc.shape[split:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> Any:
        new: Any = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        # The factors broadcast, so that many samples share them.
        vars(new).update({name: vars(self)[name] for name in self.arg_constraints})
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.coloured(noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        noise = self.whitened(value - self.loc)
        return -0.5 * self.flat(noise.square()).sum(-1) - self.log_scale() - self._constant()

    def entropy(self) -> Tensor:
        entropy = self.log_scale() + self._constant() + 0.5 * self.event_shape.numel()
        return entropy.expand(self.batch_shape)

    @abstractmethod
    def coloured(self, noise: Tensor) -> Tensor:
        """The noise of the weight, from independent standard noise."""

    @abstractmethod
    def whitened(self, noise: Tensor) -> Tensor:
        """The inverse of :meth:`coloured`."""

    @abstractmethod
    def log_scale(self) -> Tensor:
        """Half the logarithm of the determinant of the covariance."""

    def flat(self, x: Tensor) -> Tensor:
        """One dimension for an event."""
        return x.reshape(*x.shape[: x.dim() - self.event_dim], self.event_shape.numel())

    def _constant(self) -> float:
        return self.event_shape.numel() * HALF_LOG_2_PI


class FullNormal(CorrelatedNormal):
    r"""A Normal with a covariance between all entries of an event of any shape.

    .. math:: w = \mu + L \epsilon, \qquad \epsilon \sim N(0, I_D)

    where the entries of an event are counted in the order of memory. Unlike
    ``MultivariateNormal``, an event may be a matrix, such as the weight of a layer.

    Args:
        loc: mean, shape ``batch_shape + event_shape``.
        scale_tril: :math:`L`, lower triangular with a positive diagonal, shape ``(D, D)`` after
            dimensions that broadcast with ``batch_shape``.
        event_dim: number of rightmost dimensions of ``loc`` that are one event.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if the shapes do not fit, or an argument violates its constraint.

    Example:
        >>> FullNormal(torch.zeros(2, 3), torch.eye(6), event_dim=2).rsample().shape
        torch.Size([2, 3])
    """

    arg_constraints = {"loc": constraints.real, "scale_tril": constraints.lower_cholesky}

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        event_dim: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        _check(loc, event_dim, scale_tril=(scale_tril, loc.shape[loc.dim() - event_dim :].numel()))
        self.scale_tril = scale_tril
        super().__init__(loc, event_dim, validate_args)

    @property
    def variance(self) -> Tensor:
        variance = self.scale_tril.square().sum(-1)
        return variance.reshape(*variance.shape[:-1], *self.event_shape).expand_as(self.loc)

    def coloured(self, noise: Tensor) -> Tensor:
        return (self.flat(noise).unsqueeze(-2) @ self.scale_tril.mT).reshape(noise.shape)

    def whitened(self, noise: Tensor) -> Tensor:
        return solve(self.scale_tril, self.flat(noise).unsqueeze(-1)).reshape(noise.shape)

    def log_scale(self) -> Tensor:
        return _log_diagonal(self.scale_tril)


class MatrixNormal(CorrelatedNormal):
    r"""A Normal whose covariance is that of rows times that of columns.

    .. math:: W = M + A E B^T, \qquad E_{ij} \sim N(0, 1), \qquad
        \mathrm{cov}(W_{ij}, W_{kl}) = (A A^T)_{ik} (B B^T)_{jl}

    The rows are the first dimension of an event, the outputs of a layer; the columns are all
    others. An event of one dimension is one row.

    Args:
        loc: :math:`M`, shape ``batch_shape + event_shape``.
        row_tril: :math:`A`, lower triangular with a positive diagonal, after dimensions that
            broadcast with ``batch_shape``.
        column_tril: :math:`B`, likewise.
        event_dim: number of rightmost dimensions of ``loc`` that are one event.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if the shapes do not fit, or an argument violates its constraint.

    References:
        Louizos and Welling (2016), "Structured and efficient variational deep learning with matrix
        Gaussian posteriors", arXiv:1603.04733.

    Example:
        >>> MatrixNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(3), event_dim=2).rsample().shape
        torch.Size([2, 3])
    """

    arg_constraints = {
        "loc": constraints.real,
        "row_tril": constraints.lower_cholesky,
        "column_tril": constraints.lower_cholesky,
    }

    def __init__(
        self,
        loc: Tensor,
        row_tril: Tensor,
        column_tril: Tensor,
        event_dim: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        rows, columns = rows_and_columns(loc.shape[loc.dim() - event_dim :])
        _check(loc, event_dim, row_tril=(row_tril, rows), column_tril=(column_tril, columns))
        self.row_tril, self.column_tril = row_tril, column_tril
        super().__init__(loc, event_dim, validate_args)

    @property
    def variance(self) -> Tensor:
        rows, columns = (t.square().sum(-1) for t in (self.row_tril, self.column_tril))
        variance = rows.unsqueeze(-1) * columns.unsqueeze(-2)
        return variance.reshape(*variance.shape[:-2], *self.event_shape).expand_as(self.loc)

    def coloured(self, noise: Tensor) -> Tensor:
        return (self.row_tril @ self._matrix(noise) @ self.column_tril.mT).reshape(noise.shape)

    def whitened(self, noise: Tensor) -> Tensor:
        half = solve(self.row_tril, self._matrix(noise))
        return solve(self.column_tril, half.mT).mT.reshape(noise.shape)

    def log_scale(self) -> Tensor:
        rows, columns = rows_and_columns(self.event_shape)
        return columns * _log_diagonal(self.row_tril) + rows * _log_diagonal(self.column_tril)

    def _matrix(self, x: Tensor) -> Tensor:
        shape = rows_and_columns(self.event_shape)
        return x.reshape(*x.shape[: x.dim() - self.event_dim], *shape)


def rows_and_columns(shape: torch.Size) -> tuple[int, int]:
    """The sizes of an event as a matrix."""
    return (shape[0], shape[1:].numel()) if len(shape) > 1 else (1, shape.numel())


def _check(loc: Tensor, event_dim: int, **factors: tuple[Tensor, int]) -> None:
    for name, (factor, size) in factors.items():
        if not 0 <= event_dim <= loc.dim() or factor.shape[-2:] != (size, size):
            raise ValueError(
                f"`{name}` has the shape {tuple(factor.shape)}, but an event of the last "
                f"`event_dim` (={event_dim}) dimensions of `loc` {tuple(loc.shape)} needs "
                f"{(size, size)}"
            )


def solve(tril: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(tril, x, upper=False)


def _log_diagonal(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
