"""Gradients that are averaged over ranks, by torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..infer._data import arguments
from . import _rng
from ._contexts import evaluating
from ._ranks import Ranks


class Averaging:
    """A loss whose backward pass averages gradients over ranks.

    All of them have the parameters of rank 0 from the start.

    Args:
        loss: an ELBO module.
        parts: modules whose parameters it has.
        stored: parameters that belong to no module.
        ranks: those that train together.
        batch: returns one, to see which parameters are used.
    """

    def __init__(
        self,
        loss: nn.Module,
        parts: Iterable[nn.Module],
        stored: Iterable[Tensor],
        ranks: Ranks,
        batch: Callable[[], Any],
    ) -> None:
        self.loss = loss
        self._ranks, self._stored = ranks, list(stored)
        if ranks.size == 1:
            return
        with torch.no_grad():
            for parameter in self._stored:
                dist.broadcast(parameter, src=0)
        module = _Loss(loss, parts)
        with _rng.preserved(), evaluating(*parts):
            args, kwargs = arguments(batch())
            found = _leaves(module(*args, **kwargs))
        unused = [p for p in module.parameters() if p.requires_grad and p not in found]
        self.loss = nn.parallel.DistributedDataParallel(
            module,
            find_unused_parameters=ranks.any(bool(found and unused)),
            gradient_as_bucket_view=True,
        )

    def batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """For the backward pass of one batch of a step, the last of which averages."""
        ddp: Any = self.loss
        return nullcontext() if is_last or self._ranks.size == 1 else ddp.no_sync()

    def finish(self) -> None:
        """Averages what belongs to no module, before the optimizer's step."""
        if self._ranks.size == 1:
            return
        for grad in [p.grad for p in self._stored if p.grad is not None]:
            dist.all_reduce(grad)
            grad /= self._ranks.size


def check_whole(parts: Iterable[nn.Module]) -> None:
    """Raises a ValueError if parameters are divided among ranks."""
    for name, parameter in (pair for part in parts for pair in part.named_parameters()):
        if hasattr(parameter, "to_local"):
            raise ValueError(
                f"the parameter `{name}` is divided by `fully_shard`, but `fit` averages gradients "
                "of whole parameters: leave `fully_shard` out, or train in a loop of your own, as "
                "in the documentation, with all of the ELBO module sharded"
            )


class _Loss(nn.Module):
    """A loss beside the modules it is made of: a model may be a function that refers to them."""

    def __init__(self, loss: nn.Module, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.loss_of = [loss]  # not as a module: it has the same ones

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.loss_of[0](*args, **kwargs)


def _leaves(loss: Tensor) -> set[Tensor]:
    """The parameters that a loss was made of; none where recomputation hides some."""
    seen: set[Any] = set()
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return set()
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [function for function, _ in node.next_functions]
    return found
