"""Which weights have a scale in common."""

from __future__ import annotations

from .._axes import Axes

GROUPS = ("tensor", "input", "output")


def group_dims(groups: str | bool, axes: Axes) -> tuple[int, ...]:
    """The dimensions of ``axes.view`` that tell groups apart."""
    return {"input": axes.inputs, "output": axes.outputs}.get(str(groups), ())
