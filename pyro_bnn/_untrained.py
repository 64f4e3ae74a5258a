"""Parameters that a loss has and an optimizer has not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn


def untrained(loss: Any, trained: Collection[int]) -> str | None:
    """What to say of the parameters of a loss that are not among those trained, given by ids."""
    unknown = [p for p in _leaves(loss) if id(p) not in trained]
    if not unknown:
        return None
    return (
        f"the model uses {len(unknown)} parameters (of shapes "
        f"{[tuple(p.shape) for p in unknown[:3]]}) that are not trained, since they are of no "
        "module that it is or refers to: make their module an attribute of the model, or freeze "
        "them by `requires_grad_(False)`"
    )


def _leaves(loss: Any) -> list[nn.Parameter]:
    """The parameters that a loss is computed from."""
    found: dict[int, nn.Parameter] = {}
    seen, waiting = set(), [getattr(loss, "grad_fn", None)]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            found[id(leaf)] = leaf
        waiting += [after for after, _ in node.next_functions]
    return list(found.values())
