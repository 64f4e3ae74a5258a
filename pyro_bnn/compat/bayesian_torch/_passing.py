"""Layers without posteriors that take and return ``(output, kl)``."""

from __future__ import annotations

from typing import Any

from torch import nn


class _PassesOn:
    def forward(self: Any, input: Any) -> Any:
        if not isinstance(input, tuple):
            return super().forward(input)
        output, kl = input
        return super().forward(output), kl


class ReLU(_PassesOn, nn.ReLU):
    """``nn.ReLU`` that takes ``(input, kl)`` and returns ``(output, kl)``; also a tensor alone.

    Example:
        >>> net = torch.nn.Sequential(LinearFlipout(3, 4), ReLU())
        >>> out, kl = net(torch.ones(5, 3))
        >>> bool((out >= 0).all()), bool(kl == net[0].kl_loss())
        (True, True)
    """


class Dropout(_PassesOn, nn.Dropout):
    """``nn.Dropout`` that takes ``(input, kl)`` and returns ``(output, kl)``; see :class:`ReLU`."""


class BatchNorm1dLayer(_PassesOn, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that takes ``(input, kl)`` and returns ``(output, kl)``.

    See :class:`ReLU`.
    """


class BatchNorm2dLayer(_PassesOn, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that takes ``(input, kl)`` and returns ``(output, kl)``.

    See :class:`ReLU`.
    """


class BatchNorm3dLayer(_PassesOn, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` that takes ``(input, kl)`` and returns ``(output, kl)``.

    See :class:`ReLU`.
    """
