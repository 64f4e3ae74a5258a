"""Steps of training: Adam, how its learning rates fall, and limits of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam by the recipe, in one operation where it can be."""
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=fused)


def optimizer_of(
    groups: list[dict[str, Any]], make: Callable[[Any], Any] | None
) -> torch.optim.Optimizer:
    """The optimizer of parameter groups that a function makes, by default :func:`adam`."""
    example = "`lambda groups: torch.optim.SGD(groups, momentum=0.9)`"
    if isinstance(make, torch.optim.Optimizer) or not (make is None or callable(make)):
        raise TypeError(
            f"`optimizer` (={type(make).__name__}) must be a function that makes an optimizer of "
            f"the parameter groups, {example}"
        )
    needs_closure = isinstance(make, type) and issubclass(make, torch.optim.LBFGS)
    made = make if needs_closure else (adam if make is None else make)(groups)
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        kind = made if isinstance(made, type) else type(made)
        raise TypeError(
            f"`optimizer` makes a {kind.__name__}: return an optimizer of torch that "
            f"needs no closure, {example}"
        )
    return made


def schedule(done: float) -> float:
    """The factor of the learning rates after a part of the steps."""
    return 1.0 if done < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * done - 1)))


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
        self.num_steps = 0
        self._mean_norm: Tensor | float = 0.0  # after clipping, over some 100 steps

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit."""
        return self.max_norm is not None or self.factor is not None

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Tensor]) -> None:
        """Clips the gradients of parameters, and counts their norm; a GPU is not waited for."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        # That of torch.nn.utils scales always, which costs as much again, and refuses sparse ones.
        norms = [g.norm() if g.is_sparse else torch.linalg.vector_norm(g) for g in gradients]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        mean = self._mean_norm
        mean = mean if isinstance(mean, Tensor) else norm.new_full((), mean)
        factor = math.inf if self.factor is None else self.factor
        limit = torch.where(mean > 0, factor * mean, math.inf)
        if self.max_norm is not None:
            limit = limit.clamp(max=self.max_norm)
        scale = (limit / norm).clamp(max=1)
        if scale.device.type != "cpu" or scale < 1:
            for gradient in gradients:
                gradient.mul_(scale.to(gradient.device))
        self.num_steps += 1
        clipped = norm * scale
        moved = torch.where(mean > 0, mean.lerp(clipped, 1 / min(self.num_steps, 100)), clipped)
        # Not so for 0, nor where float16 overflows, which is no step.
        self._mean_norm = torch.where(clipped > 0, moved, mean)

    def state_dict(self) -> dict[str, Any]:
        """What is known of the norms so far."""
        return {"mean_norm": float(self._mean_norm), "num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what another run has seen."""
        self._mean_norm, self.num_steps = state["mean_norm"], state["num_steps"]
