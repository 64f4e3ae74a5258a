"""Means, scales and draws of several small Normals, as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._torch import flatten_dense_tensors, unflatten_dense_tensors
from ._second_order import gradients_with_graph
from ._switch import is_plain

# Up to this size, the time of an operation is that of calling it.
MAX_SIZE = 1 << 13


def joint(
    quantity: str, is_rho: bool, locs: Sequence[Tensor], scales: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Means and scales of all entries, and what a draw of each tensor needs.

    Args:
        quantity: what that is: ``"value"``, a sample; ``"noise"``, a sample of mean zero; or
            ``"variance"``.
        is_rho: whether scales are those of :func:`torch.nn.functional.softplus`.
        locs, scales: one of each for each tensor.
    """
    return _Joint.apply(quantity, is_rho, *locs, *scales)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """The entries of all tensors, end to end."""
    # The one operation has neither a derivative nor a rule for `torch.vmap`.
    if is_plain() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return torch.cat([t.reshape(-1) for t in tensors])
    return flatten_dense_tensors(tensors)


def _vectors(
    quantity: str, is_rho: bool, params: Sequence[Tensor], noise: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Means, scales before and after softplus, and noise of all entries; and what draws need."""
    size = len(params) // 2
    loc, raw = flatten(params[:size]), flatten(params[size:])
    scale = F.softplus(raw) if is_rho else raw
    if quantity == "variance":
        return loc, raw, scale, scale.new_empty(0), scale.square()  # which needs no noise
    noise = torch.randn_like(scale) if noise is None else noise
    drawn = torch.addcmul(loc, scale, noise) if quantity == "value" else scale * noise
    return loc, raw, scale, noise, drawn


class _Joint(Function):
    """Composed of torch's own operations, it would be ten for each weight, with backwards."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        ctx.quantity, ctx.is_rho, *params = args
        loc, raw, scale, noise, drawn = _vectors(ctx.quantity, ctx.is_rho, params)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(raw, scale, noise, *params)
        # Disjoint parts of a vector that nothing else reads: to each its own, also in place.
        parts = (t.data for t in unflatten_dense_tensors(drawn, params[: len(params) // 2]))
        return loc, scale, *parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raw, scale, noise, *params = ctx.saved_tensors
        locs = params[: len(params) // 2]
        by_loc, by_scale, *by_parts = grads
        by_drawn = None
        if any(g is not None for g in by_parts):
            filled = [
                torch.zeros_like(loc) if g is None else g
                for g, loc in zip(by_parts, locs, strict=True)
            ]
            by_drawn = flatten(filled)
        if torch.is_grad_enabled():
            loc, _, scale, _, drawn = _vectors(ctx.quantity, ctx.is_rho, params, noise)
            pairs = [(loc, by_loc), (scale, by_scale), (drawn, by_drawn)]
            outputs, known = zip(*(p for p in pairs if p[1] is not None), strict=True)
            return None, None, *gradients_with_graph(outputs, params, known)
        if by_drawn is not None:
            if ctx.quantity == "value":
                by_loc = by_drawn if by_loc is None else by_loc + by_drawn
            by_noise = by_drawn * (scale + scale if ctx.quantity == "variance" else noise)
            by_scale = by_noise if by_scale is None else by_noise.add_(by_scale)
        if by_scale is not None and ctx.is_rho:
            by_scale = torch.ops.aten.softplus_backward(by_scale, raw, 1.0, 20.0)
        nothing = (None,) * len(locs)
        return (
            None,
            None,
            *(nothing if by_loc is None else unflatten_dense_tensors(by_loc, locs)),
            *(nothing if by_scale is None else unflatten_dense_tensors(by_scale, locs)),
        )
