"""Normals of several small weights as one: in networks of many layers, calls cost the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Normal

from .._torch import flatten_dense_tensors, unflatten_dense_tensors
from ._divergence import trusted_normal

# Up to this size, the time of an operation is that of calling it.
MAX_SIZE = 1 << 13


class Joint:
    """Normals of several weights, end to end as a vector, with what a draw of each needs.

    Args:
        quantity: what that is: ``"value"``, a sample; ``"noise"``, a sample of mean zero; or
            ``"variance"``.
        locs: means of the weights, one tensor for each.
        scales: their standard deviations, or what softplus makes them of.
        is_rho: whether they are the latter.

    Attributes:
        normal: the Normal of the vector.
    """

    def __init__(
        self, quantity: str, locs: Sequence[Tensor], scales: Sequence[Tensor], is_rho: bool
    ) -> None:
        self.locs = tuple(locs)
        loc, scale, *self.drawn = _Joint.apply(quantity, is_rho, *locs, *scales)
        self.normal = trusted_normal(loc, scale)

    def split(self) -> list[Part]:
        """The Normal of each weight, to be asked for once, since what a draw needs goes once."""
        # Not kept, since a cycle would keep the vectors until the next garbage collection.
        ends = accumulate(loc.numel() for loc in self.locs)
        return [Part(self, i, end) for i, end in enumerate(ends)]


class Part(dist.Normal):
    """One of the Normals of a :class:`Joint`."""

    joint: Joint | None = None

    def __init__(self, joint: Joint, index: int, end: int) -> None:
        self.loc = joint.locs[index]
        self.joint, self.index, self._end, self._is_drawn = joint, index, end, False
        Distribution.__init__(self, self.loc.shape, validate_args=False)

    @cached_property
    def scale(self) -> Tensor:  # type: ignore[override]
        assert self.joint is not None
        own = slice(self._end - self.loc.numel(), self._end)
        with torch.enable_grad():  # it is kept, and may be asked for first where there is none
            return self.joint.normal.scale[own].view(self.loc.shape)

    def expand(self, batch_shape, _instance=None) -> dist.Normal:
        return trusted_normal(self.loc, self.scale).expand(batch_shape, _instance)

    def take(self, sample_shape: torch.Size) -> Tensor | None:
        """What a draw needs, for the first one; another draw has to make its own."""
        assert self.joint is not None
        no_longer = self.joint.normal.scale.requires_grad and not torch.is_grad_enabled()
        if self._is_drawn or sample_shape or no_longer:
            return None
        self._is_drawn = True
        return self.joint.drawn[self.index]


def is_normal(d: Distribution) -> bool:
    """Whether a distribution is a Normal itself; a subclass may have formulas of its own."""
    return type(d) in (Normal, dist.Normal, Part)


def take(base: Distribution, sample_shape: torch.Size) -> Tensor | None:
    """What a draw of a part needs, if it has been computed together with that of others."""
    return base.take(sample_shape) if type(base) is Part else None


def joint_of(base: Distribution) -> Joint | None:
    return getattr(base, "joint", None)


def as_one(normals: Sequence[Any]) -> Any:
    """The Normal of all entries of some Normals, as a vector; a single one as it is."""
    if len(normals) == 1:
        return normals[0]
    joint: Any = joint_of(normals[0])
    is_whole = joint is not None and len(joint.locs) == len(normals)
    if is_whole and all(joint_of(d) is joint and d.index == i for i, d in enumerate(normals)):
        return joint.normal
    return trusted_normal(_flatten([d.loc for d in normals]), _flatten([d.scale for d in normals]))


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return torch.cat([t.reshape(-1) for t in tensors])
    return flatten_dense_tensors(tensors)


def _vectors(
    quantity: str, is_rho: bool, params: Sequence[Tensor], noise: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Means, scales before and after softplus, and noise of all entries; and what draws need."""
    size = len(params) // 2
    loc, raw = _flatten(params[:size]), _flatten(params[size:])
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
            by_drawn = _flatten(filled)
        if torch.is_grad_enabled():  # gradients of gradients need all of the graph
            loc, _, scale, _, drawn = _vectors(ctx.quantity, ctx.is_rho, params, noise)
            pairs = [(loc, by_loc), (scale, by_scale), (drawn, by_drawn)]
            outputs, known = zip(*(p for p in pairs if p[1] is not None), strict=True)
            wanted = [p for p in params if p.requires_grad]
            found = iter(
                torch.autograd.grad(outputs, wanted, known, create_graph=True, allow_unused=True)
            )
            return None, None, *(next(found) if p.requires_grad else None for p in params)
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
