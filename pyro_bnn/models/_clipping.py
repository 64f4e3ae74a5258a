"""Limits of gradients, fixed or by what they have been."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Clipping:
    """Scales gradients down whose norm is large, or jumps.

    In a deep network, a few steps along gradients far larger than those that Adam has normalized
    before throw the parameters so far off that training does not recover.

    Args:
        max_norm: the largest norm; None for any.
        factor: the largest ratio of the norm to its mean in the steps before; None for any.
    """

    def __init__(self, max_norm: float | None, factor: float | None) -> None:
        self.max_norm, self.factor = max_norm, factor
        self.mean_norm = 0.0  # of gradients after clipping, over some 100 steps
        self.num_steps = 0

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit."""
        return self.max_norm is not None or self.factor is not None

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Tensor]) -> None:
        """Clips the gradients of parameters, and counts their norm."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        limit = math.inf if self.max_norm is None else self.max_norm
        if self.factor is not None and self.mean_norm:
            limit = min(limit, self.factor * self.mean_norm)
        # That of torch.nn.utils scales always, which costs as much again, and refuses sparse ones.
        norms = [g.norm() if g.is_sparse else torch.linalg.vector_norm(g) for g in gradients]
        device = norms[0].device
        norm = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms])).item()
        if not norm or not math.isfinite(norm):  # float16 has overflowed, which is no step
            return
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)
        self.num_steps += 1
        self.mean_norm += (min(norm, limit) - self.mean_norm) / min(self.num_steps, 100)

    def state_dict(self) -> dict[str, Any]:
        """What is known of the norms so far."""
        return {"mean_norm": self.mean_norm, "num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what another run has seen."""
        self.mean_norm, self.num_steps = state["mean_norm"], state["num_steps"]
