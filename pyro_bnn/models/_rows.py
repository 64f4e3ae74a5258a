"""Targets, masks and weights against the rows of a distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.runtime import get_plates
from torch import Tensor

from .. import _tensors
from .._validation import is_checked


def num_batch_dims() -> int:
    """The number of dimensions of rows and of the plates around them."""
    return max([1, *(-frame.dim for frame in get_plates() if frame.dim is not None)])


def by_rows(distribution: Any) -> Any:
    """A distribution with one event for each row."""
    if not distribution.batch_shape:
        raise ValueError(
            "the likelihood makes one distribution of all outputs, not one for each row: let the "
            "network keep the rows of `x` in the first dimension of its outputs"
        )
    num_dims = len(distribution.batch_shape) - num_batch_dims()
    return distribution if num_dims <= 0 else dist.Independent(distribution, num_dims)


def innermost(distribution: Any) -> Any:
    """What is inside of events and masks."""
    while isinstance(distribution, (dist.Independent, dist.MaskedDistribution)):
        distribution = distribution.base_dist
    return distribution


def parameter(distribution: Any) -> Tensor:
    """A tensor of a distribution, for its dtype and device."""
    own = (vars(distribution).get(name) for name in distribution.arg_constraints)
    tensors = [x for x in own if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors and hasattr(distribution, "base_dist"):
        return parameter(distribution.base_dist)
    return tensors[0] if tensors else torch.empty(())


def target_shape(distribution: Any) -> torch.Size:
    """The shape of the targets of all rows."""
    return torch.Size((distribution.batch_shape[-1], *distribution.event_shape))


def as_tensor(name: str, value: Any, distribution: Any) -> Tensor:
    """Numbers for the rows of a distribution as a tensor on its device."""
    device = parameter(innermost(distribution)).device
    if not isinstance(value, Tensor):
        try:
            value = _tensors.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"`{name}` cannot be made a tensor ({error}): give numbers") from error
    if value.is_complex():
        raise TypeError(f"`{name}` (of dtype {value.dtype}) must be real")
    if value.layout is not torch.strided:
        raise TypeError(f"`{name}` (of layout {value.layout}) must be dense: `{name}.to_dense()`")
    if value.device != device:
        raise ValueError(
            f"`{name}` is on the device {value.device}, but the outputs of the network are on "
            f"{device}: move it by `{name}.to({str(device)!r})`"
        )
    return value


def fits(value: Tensor, shape: torch.Size) -> bool:
    """Whether a shape differs in dimensions of size 1 only, other than the rows."""
    if value.shape == shape:
        return True
    sizes = [[size for size in s[1:] if size != 1] for s in (value.shape, shape)]
    return bool(value.dim()) and value.shape[0] == shape[0] and sizes[0] == sizes[1]


def as_mask(mask: Any, distribution: Any) -> Tensor | None:
    """A mask as a boolean tensor, for each row or in the shape of the targets."""
    if mask is None:
        return None
    mask = as_tensor("mask", mask, distribution)
    shape = target_shape(distribution)
    if mask.dtype is not torch.bool:
        raise TypeError(
            f"`mask` (of dtype {mask.dtype}) must be boolean: true where a target counts; to weigh "
            "rows use `weight`"
        )
    if mask.shape == shape[:1]:
        return mask
    if not fits(mask, shape):
        raise ValueError(
            f"`mask` has the shape {tuple(mask.shape)}: give it that of the rows, "
            f"{tuple(shape[:1])}, or of the targets, {tuple(shape)}"
        )
    return mask.reshape(shape)


def as_weight(weight: Any, distribution: Any) -> Tensor:
    """Weights of the rows, checked."""
    weight = as_tensor("weight", weight, distribution)
    shape = target_shape(distribution)[:1]
    if not fits(weight, shape):
        raise ValueError(
            f"`weight` has the shape {tuple(weight.shape)}: give one for each row, {tuple(shape)}"
        )
    if (
        not torch.jit.is_tracing()
        and is_checked(weight)
        and not bool((weight.isfinite() & (weight >= 0)).all())
    ):
        raise ValueError("`weight` must be finite and not negative")
    return weight.reshape(shape).to(parameter(innermost(distribution)).dtype)


def counts(y: Tensor, mask: Any = None, weight: Any = None) -> tuple[Tensor, Tensor]:
    """How often each target counts, and each row, by a mask and weights that suit the targets."""
    targets = torch.ones(y.shape, dtype=torch.double, device=y.device)
    for given in (mask, weight):
        if given is not None:
            given = torch.as_tensor(given, device=y.device)
            is_of_rows = given.numel() == len(y)
            targets *= given.reshape(-1, *([1] * (y.dim() - 1) if is_of_rows else y.shape[1:]))
    return targets, targets.reshape(len(y), -1).amax(1)


def masked(distribution: Any, mask: Tensor) -> Any:
    """A distribution that counts what a mask tells."""
    if mask.dim() == 1:
        return distribution.mask(mask)
    inner = innermost(distribution)
    if inner.batch_shape[len(inner.batch_shape) - mask.dim() :] != mask.shape:
        raise ValueError(
            f"`mask` has the shape {tuple(mask.shape)}, but the likelihood has one density for "
            f"each row: mask whole rows, by one of shape {tuple(mask.shape[:1])}"
        )
    return dist.Independent(inner.mask(mask), mask.dim() - 1)


def filled(y: Tensor, mask: Tensor | None) -> Tensor:
    """Targets with one that counts in the place of those that do not, whose gradient may be NaN."""
    if mask is None or not mask.numel():
        return y
    if mask.dim() == 1:
        first = y[mask.int().argmax()]
        return torch.where(mask.reshape(-1, *[1] * (y.dim() - 1)), y, first)
    return torch.where(mask, y, y.flatten()[mask.flatten().int().argmax()])
