"""Normals of several small weights as one: in networks of many layers, calls cost the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from ..kernels import flatten, joint
from ._normal import trusted_normal


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
        loc, scale, *self.drawn = joint(quantity, is_rho, locs, scales)
        self.normal = trusted_normal(loc, scale)

    def split(self) -> list[Part]:
        """The Normal of each weight, to be asked for once, since what a draw needs goes once."""
        # Not kept, since a cycle would keep the vectors until the next garbage collection.
        return [Part(self, i) for i in range(len(self.locs))]

    @cached_property
    def scales(self) -> tuple[Tensor, ...]:
        """The standard deviations of the weights, each as a vector."""
        with torch.enable_grad():  # kept, and may be asked for first where there is none
            return self.normal.scale.split([loc.numel() for loc in self.locs])


class Part(dist.Normal):
    """One of the Normals of a :class:`Joint`."""

    joint: Joint | None = None

    def __init__(self, joint: Joint, index: int) -> None:
        self.loc = joint.locs[index]
        self.joint, self.index, self._is_drawn = joint, index, False
        Distribution.__init__(self, self.loc.shape, validate_args=False)

    @cached_property
    def scale(self) -> Tensor:  # type: ignore[override]
        assert self.joint is not None
        with torch.enable_grad():
            return self.joint.scales[self.index].view(self.loc.shape)

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
    return trusted_normal(flatten([d.loc for d in normals]), flatten([d.scale for d in normals]))
