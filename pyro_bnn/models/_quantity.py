"""Positive quantities of likelihoods, such as a noise: fixed, learned or random."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import Distribution

from ..nn._layer import SitePrior
from ..nn._prior import Prior
from ._rows import num_batch_dims


def set_quantity(
    module: PyroModule,
    name: str,
    value: Any,
    initial: float,
    shape: tuple[int, ...] = (),
) -> None:
    """Gives a likelihood a positive quantity: a buffer, a parameter or a site.

    Args:
        value: a number or tensor that is fixed; None for a parameter; or a prior.
        initial: where a parameter starts.
        shape: that of a parameter.
    """
    if isinstance(value, Distribution):
        shape = value.batch_shape + value.event_shape
        prior = Prior(value, torch.zeros(shape, dtype=torch.double), 1, name)
        if not _is_positive(value):
            raise ValueError(
                f"`{name}` (={value}) must be a prior of positive numbers, such as "
                "`pyro.distributions.HalfNormal(1.0)`"
            )
        setattr(module, name + "_prior", prior)
        setattr(module, name, PyroSample(SitePrior(name + "_prior")))
    elif value is None:
        start = torch.full(shape, initial, dtype=torch.double)
        setattr(module, name, PyroParam(start, constraints.positive))
    else:
        try:
            fixed = torch.as_tensor(value, dtype=torch.double)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"`{name}` (={value!r}) must be a positive number, a prior, or None to be learned"
            ) from None
        if not bool((fixed.isfinite() & (fixed > 0)).all()):
            raise ValueError(f"`{name}` (={value}) must be positive and finite")
        module.register_buffer(name, fixed.detach().clone())
        shape = tuple(fixed.shape)
    vars(module).setdefault("_shapes", {})[name] = tuple(shape)


def quantity(module: PyroModule, name: str, output: Tensor) -> Tensor:
    """The value of a quantity, with dimensions that line up with those of the outputs."""
    value = getattr(module, name).to(output.dtype)
    shape = vars(module)["_shapes"][name]
    event = output.shape[num_batch_dims() :]
    if shape and not _broadcasts(shape, event):
        raise ValueError(
            f"`{name}` has the shape {tuple(shape)}, but a target has {tuple(event)}: give it that "
            "shape, or () for one value for all"
        )
    lead = value.dim() - len(shape)
    missing = (1,) * (len(event) - len(shape))
    return value.reshape(*value.shape[:lead], *missing, *value.shape[lead:]) if lead else value


def _broadcasts(shape: tuple[int, ...], to: torch.Size) -> bool:
    try:
        return len(shape) <= len(to) and torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _is_positive(prior: Distribution) -> bool:
    support: Any = prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    lower = getattr(support, "lower_bound", None)
    return lower is not None and bool(torch.as_tensor(lower >= 0).all())
