"""Guides as training sees them: one of this library, or a list with some of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..guides._lists import posterior_guides
from ..posteriors._groups import parameter_groups


def check_guide(guide: Any) -> None:
    """Raises a TypeError if no part of a guide is of this library."""
    if not posterior_guides(guide):
        raise TypeError(
            f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides, such as "
            "`AutoLRT(model)`, or an `AutoGuideList` with one of them"
        )


def groups_of(
    guide: Any, others: Iterable[Tensor], lr: float, scale_lr: float
) -> list[dict[str, Any]]:
    """The parameters of a guide and others in groups: those of posteriors' scales, and the rest."""
    posteriors = [part[name] for part in posterior_guides(guide) for name in part]
    return parameter_groups([*guide.parameters(), *others], posteriors, lr, scale_lr)
