"""The KL divergences of correlated Normals, in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence, register_kl

from ._correlated_normal import CorrelatedNormal, FullNormal, MatrixNormal, solve
from ._normal import innermost


@register_kl(CorrelatedNormal, Independent)
def _kl_correlated_normal(q: CorrelatedNormal, p: Independent) -> Tensor:
    base: Any = innermost(p)
    if not isinstance(base, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError
    squares = (q.variance + (q.loc - base.loc).square()) / base.scale.square()
    terms = q.flat(0.5 * (squares - 1) + base.scale.log().expand_as(squares)).sum(-1)
    return terms - q.log_scale()


@register_kl(CorrelatedNormal, CorrelatedNormal)
def _kl_correlated_normals(q: CorrelatedNormal, p: CorrelatedNormal) -> Tensor:
    """By the whitened columns of the posterior's factor, one for each independent noise."""
    if p.event_shape != q.event_shape:
        raise NotImplementedError
    size = q.event_shape.numel()
    unit = torch.eye(size, dtype=q.loc.dtype, device=q.loc.device)
    unit = unit.reshape(size, *[1] * len(q.batch_shape), *q.event_shape)
    unit = unit.expand(size, *torch.broadcast_shapes(q.batch_shape, p.batch_shape), *q.event_shape)
    spread = p.flat(p.whitened(q.coloured(unit))).square().sum((0, -1))
    shift = p.flat(p.whitened(q.loc - p.loc)).square().sum(-1)
    return 0.5 * (spread + shift - size) + p.log_scale() - q.log_scale()


@register_kl(MatrixNormal, MatrixNormal)
def _kl_matrix_normals(q: MatrixNormal, p: MatrixNormal) -> Tensor:
    if p.event_shape != q.event_shape:
        raise NotImplementedError
    rows = solve(p.row_tril, q.row_tril).square().sum((-2, -1))
    columns = solve(p.column_tril, q.column_tril).square().sum((-2, -1))
    shift = p.flat(p.whitened(q.loc - p.loc)).square().sum(-1)
    squares = rows * columns + shift - q.event_shape.numel()
    return 0.5 * squares + p.log_scale() - q.log_scale()


@register_kl(Independent, CorrelatedNormal)
def _kl_independent_correlated(q: Independent, p: CorrelatedNormal) -> Tensor:
    base: Any = innermost(q)
    if p.event_shape != q.event_shape:
        raise NotImplementedError
    if isinstance(base, Normal):
        tril = torch.diag_embed(p.flat(base.scale))
        base = FullNormal(base.loc, tril, p.event_dim, validate_args=False)
    if not isinstance(base, CorrelatedNormal):
        raise NotImplementedError
    return kl_divergence(base, p)
