"""A guide of this library, or a list with some of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro.infer.autoguide import AutoGuideList

from ._guide import AutoPosterior


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
