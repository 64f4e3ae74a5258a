"""The fraction of predictions whose uncertainty agrees with their errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._util import _as

EPS = 1e-10


def soft_agreement(good: Tensor, weight: Tensor, unc: Tensor, thresholds: float | Tensor) -> Tensor:
    """The part of the weights where good predictions are certain and others are not."""
    certain = unc.double() <= thresholds
    doubt = unc.tanh()
    return part(weight * torch.where(certain, 1 - doubt, doubt), good == certain)


def part(weight: Tensor, agrees: Tensor) -> Tensor:
    """The part of the weights, along the last dimension, where predictions agree."""
    return (weight * agrees).sum(-1) / (weight.sum(-1) + EPS)


def thresholds_between(unc: Tensor) -> tuple[Tensor, Tensor]:
    """Levels from 0 to 1, and the thresholds so far between the extreme uncertainties."""
    levels = torch.linspace(0, 1, 21, dtype=torch.double, device=unc.device)
    least, most = unc.aminmax()
    return levels, least + levels * (most - least)


def accuracy_vs_uncertainty(
    pred_label: Any, true_label: Any, uncertainty: Any, optimal_threshold: Any
) -> Any:
    """The fraction of predictions that are accurate and certain, or neither.

    Args:
        pred_label, true_label: labels of shape ``(batch,)``, tensors or arrays.
        uncertainty: likewise, say of :func:`predictive_entropy`.
        optimal_threshold: up to which a prediction counts as certain.

    Returns:
        A number between 0 and 1; a tensor for tensors.
    """
    given = uncertainty
    pred_label, true_label, uncertainty = map(
        torch.as_tensor, (pred_label, true_label, uncertainty)
    )
    certain = uncertainty.double() <= optimal_threshold
    return _as(given, ((pred_label == true_label) == certain).double().mean(-1))


def eval_avu(pred_label: Any, true_label: Any, uncertainty: Any) -> tuple[Any, Any]:
    """Accuracy versus uncertainty at 21 thresholds between the extreme uncertainties.

    Args:
        pred_label, true_label, uncertainty: as for :func:`accuracy_vs_uncertainty`.

    Returns:
        The fractions and the thresholds, each of shape ``(21,)``; arrays for arrays.
    """
    given = torch.as_tensor(uncertainty)
    _, thresholds = thresholds_between(given)
    curve = accuracy_vs_uncertainty(pred_label, true_label, given, thresholds.unsqueeze(-1))
    return _as(uncertainty, curve), _as(uncertainty, thresholds)
