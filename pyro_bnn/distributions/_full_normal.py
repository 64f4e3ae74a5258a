"""A Normal over all entries of a weight together, and its divergences."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Independent, Normal, register_kl

from ._divergence import innermost


class FullNormal(TorchDistribution):
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
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        event_dim: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        split = loc.dim() - event_dim
        shape = loc.shape
        size = shape[max(split, 0) :].numel()
        if not 0 <= split <= loc.dim() or scale_tril.shape[-2:] != (size, size):
            raise ValueError(
                f"`scale_tril` has the shape {tuple(scale_tril.shape)}, but an event of the last "
                f"`event_dim` (={event_dim}) dimensions of `loc` {tuple(shape)} needs "
                f"{(size, size)}"
            )
        self.loc, self.scale_tril = loc, scale_tril
        super().__init__(shape[:split], shape[split:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self._shaped(self.scale_tril.square().sum(-1)).expand_as(self.loc)

    def expand(self, batch_shape, _instance=None) -> FullNormal:
        new = self._get_checked_instance(FullNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale_tril = self.scale_tril  # broadcasts, so that many samples share one
        super(FullNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        flat = self._flat(noise).unsqueeze(-2) @ self.scale_tril.mT
        return self.loc + flat.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        noise = _solve(self.scale_tril, self._flat(value - self.loc))
        return -0.5 * noise.square().sum(-1) - self._log_scale() - self._size * _HALF_LOG_2_PI

    def entropy(self) -> Tensor:
        entropy = self._log_scale() + self._size * (0.5 + _HALF_LOG_2_PI)
        return entropy.expand(self.batch_shape)

    @property
    def _size(self) -> int:
        return self.event_shape.numel()

    def _log_scale(self) -> Tensor:
        """Half the logarithm of the determinant of the covariance."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - self.event_dim], self._size)

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *self.event_shape)


_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def _solve(tril: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(tril, x.unsqueeze(-1), upper=False).squeeze(-1)


@register_kl(FullNormal, Independent)
def _kl_full_normal_independent(q: FullNormal, p: Independent) -> Tensor:
    base: Any = innermost(p)
    if not isinstance(base, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError
    squares = (q.variance + (q.loc - base.loc).square()) / base.scale.square()
    terms = q._flat(0.5 * (squares - 1) + base.scale.log().expand_as(squares)).sum(-1)
    return terms - q._log_scale()


@register_kl(Independent, FullNormal)
def _kl_independent_full_normal(q: Independent, p: FullNormal) -> Tensor:
    base: Any = innermost(q)
    if p.event_shape != q.event_shape:
        raise NotImplementedError
    if isinstance(base, Normal):
        tril = torch.diag_embed(p._flat(base.scale))
        base = FullNormal(base.loc, tril, p.event_dim, validate_args=False)
    if not isinstance(base, FullNormal):
        raise NotImplementedError
    return _kl_full_normal(base, p)


@register_kl(FullNormal, FullNormal)
def _kl_full_normal(q: FullNormal, p: FullNormal) -> Tensor:
    if p.event_shape != q.event_shape:
        raise NotImplementedError
    spread = torch.linalg.solve_triangular(p.scale_tril, q.scale_tril, upper=False)
    shift = _solve(p.scale_tril, q._flat(q.loc - p.loc))
    squares = spread.square().sum((-2, -1)) + shift.square().sum(-1)
    return 0.5 * (squares - q._size) + p._log_scale() - q._log_scale()
