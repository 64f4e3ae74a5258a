"""Parameters by the learning rates that they are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._validation import check_positive
from ._posterior import Posterior


def parameter_groups(
    parameters: Iterable[Tensor], posteriors: Iterable[Posterior], lr: float, scale_lr: float
) -> list[dict[str, Any]]:
    """Parameters in groups for an optimizer: those of the posteriors' scales, and all others.

    Args:
        parameters: all of them; those that are frozen are left out.
        posteriors: the posteriors whose scales are meant.
        lr, scale_lr: the two learning rates.

    Raises:
        ValueError: if a rate is not positive and finite.
    """
    check_positive(lr=lr, scale_lr=scale_lr)
    scales = {id(scale) for posterior in posteriors for scale in posterior.scales().values()}
    trained = {id(p): p for p in parameters if p.requires_grad}
    groups = [
        {"params": [p for i, p in trained.items() if i not in scales], "lr": lr},
        {"params": [p for i, p in trained.items() if i in scales], "lr": scale_lr},
    ]
    return [group for group in groups if group["params"]]
