"""Gradients that can be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_with_graph(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """What the backward of a kernel returns where it is differentiated itself, by its formula.

    Args:
        outputs: of the plain formula, computed from ``inputs``.
        inputs: of the kernel; those that need no gradient get none.
        grads: of the outputs.
    """
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if t.requires_grad else None for t in inputs)
