"""A guide of this library, or a list with some of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro.infer.autoguide import AutoGuideList
from torch import Tensor

from .._untrained import untrained
from ..posteriors._groups import parameter_groups as groups
from ._guide import AutoPosterior
from ._no_data import to_caller
from ._rates import GROUPED, grouped, rates_by_name


def posterior_guides(guide: Any) -> list[AutoPosterior]:
    """The guides of this library that a guide is, or has as parts."""
    if isinstance(guide, AutoGuideList):
        return [found for part in guide for found in posterior_guides(part)]
    return [guide] if isinstance(guide, AutoPosterior) else []


@contextmanager
def shared_draws(guide: Any) -> Iterator[None]:
    """One ordinary weight for all data (:meth:`AutoPosterior.shared_draws`)."""
    with ExitStack() as stack:
        for part in posterior_guides(guide):
            stack.enter_context(part.shared_draws())
        yield


def parameter_groups(guide: Any, lr: float, scale_lr: float) -> list[dict[str, Any]]:
    """The parameters of an ``AutoGuideList`` and its model in groups for a torch optimizer.

    Args:
        guide: a guide of this library, or a list with some of them.
        lr, scale_lr: learning rates, see :meth:`AutoPosterior.parameter_groups`.

    Raises:
        TypeError: if no part of the guide is of this library.
        ValueError: as :meth:`AutoPosterior.parameter_groups`.
    """
    return grouped(checked_guides(guide), guide.parameters(), lr, scale_lr)


def optim_args(
    guide: Any, lr: float, scale_lr: float, **kwargs: Any
) -> Callable[[str], dict[str, Any]]:
    """The arguments of a ``pyro.optim`` optimizer for each parameter of an ``AutoGuideList``.

    Args:
        guide: a guide of this library, or a list with some of them.
        lr, scale_lr, kwargs: see :meth:`AutoPosterior.optim_args`.

    Raises:
        TypeError: if no part of the guide is of this library.
        ValueError: if a rate is not positive and finite.
    """
    return rates_by_name(checked_guides(guide), lr, scale_lr, kwargs)


def warn_of_ungrouped(guide: Any, loss: Any) -> None:
    """Warns once, at the first loss after ``parameter_groups``, of parameters that these lack."""
    if not GROUPED or not getattr(loss, "requires_grad", False):
        return
    known = [GROUPED.pop(part) for part in posterior_guides(guide) if part in GROUPED]
    message = untrained(loss, set().union(*known)) if known else None
    if message is not None:
        warnings.warn(message, stacklevel=to_caller())


def groups_of(
    guide: Any, others: Iterable[Tensor], lr: float, scale_lr: float
) -> list[dict[str, Any]]:
    """The parameters of a guide and others in groups: those of posteriors' scales, and the rest."""
    posteriors = [part[name] for part in posterior_guides(guide) for name in part]
    return groups([*guide.parameters(), *others], posteriors, lr, scale_lr)


def checked_guides(guide: Any) -> list[AutoPosterior]:
    """:func:`posterior_guides`, of which there must be one."""
    parts = posterior_guides(guide)
    if not parts:
        raise TypeError(
            f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides, such as "
            "`AutoLRT(model)`, or an `AutoGuideList` with one of them"
        )
    return parts
