"""Guides as training sees them: one of this library, or a list with some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro.infer.autoguide import AutoGuideList
from torch import Tensor

from ..guides import AutoPosterior
from ..posteriors._groups import parameter_groups


def posterior_guides(guide: Any) -> list[AutoPosterior]:
    """The guides of this library that a guide is, or has as parts."""
    if isinstance(guide, AutoGuideList):
        return [found for part in guide for found in posterior_guides(part)]
    return [guide] if isinstance(guide, AutoPosterior) else []


def check_guide(guide: Any) -> None:
    """Raises a TypeError if no part of a guide is of this library."""
    if not posterior_guides(guide):
        raise TypeError(
            f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides, such as "
            "`AutoLRT(model)`, or an `AutoGuideList` with one of them"
        )


@contextmanager
def shared_draws(guide: Any) -> Iterator[None]:
    """One ordinary weight for all data (:meth:`AutoPosterior.shared_draws`)."""
    with ExitStack() as stack:
        for part in posterior_guides(guide):
            stack.enter_context(part.shared_draws())
        yield


def groups_of(
    guide: Any, others: Iterable[Tensor], lr: float, scale_lr: float
) -> list[dict[str, Any]]:
    """The parameters of a guide and others in groups: those of posteriors' scales, and the rest."""
    posteriors = [part[name] for part in posterior_guides(guide) for name in part]
    return parameter_groups([*guide.parameters(), *others], posteriors, lr, scale_lr)
