"""Checks of the arguments of layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from .._validation import check_positive


def check_sizes(**sizes: Any) -> None:
    """Refuses what is no positive integer, and no tuple of such where there are several."""
    for name, value in sizes.items():
        for size in value if isinstance(value, (tuple, list)) else (value,):
            try:
                is_size = operator.index(size) > 0
            except TypeError:
                raise TypeError(f"`{name}` (={value!r}) must be an integer") from None
            if not is_size:
                raise ValueError(f"`{name}` (={value!r}) must be positive")


def check_convolution(
    in_channels: int, out_channels: int, kernel_size: Any, stride: Any, dilation: Any, groups: int
) -> None:
    check_sizes(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
    check_sizes(stride=stride, dilation=dilation, groups=groups)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"`{name}` (={channels}) must be divisible by `groups` (={groups})")


def check_finite(**values: float | Tensor) -> None:
    """Refuses what is no finite number, and no tensor of such."""
    for name, value in values.items():
        if isinstance(value, str) or not torch.isfinite(_tensor(name, value)).all():
            raise ValueError(f"`{name}` (={value!r}) must be finite")


def check_variances(**values: float | Tensor) -> None:
    """Refuses what is no positive number, and no tensor of such."""
    check_finite(**values)
    for name, value in values.items():
        check_positive(**{name: float(_tensor(name, value).min())})


def check_broadcasts(name: str, value: float | Tensor, shape: torch.Size) -> None:
    given = _tensor(name, value).shape
    try:
        fits = torch.broadcast_shapes(given, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` has shape {tuple(given)}, which does not broadcast to the shape "
            f"{tuple(shape)} of a weight: give a number"
        )


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` (={value!r}) must be a number or a tensor") from None
