"""Parameters that come into being after what is to train them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .._gradients import alive
from ._sites import referred_modules


@contextmanager
def watched(guide: Any) -> Iterator[None]:
    """Lets no optimizer pass over parameters of a guide and its model that are made inside.

    An optimizer that holds parameters of theirs already raises an error at its next step, if the
    new ones have gradients that no optimizer would apply.
    """
    before = {id(p): p for _, p in _parameters(guide)}
    yield
    late = {name: p for name, p in _parameters(guide) if id(p) not in before}
    for optimizer in alive(Optimizer) if late else ():
        if not before.keys().isdisjoint(_held(optimizer)):
            _refuse_steps(optimizer, late)


def check_no_ddp(guide: nn.Module, names: Collection[str]) -> None:
    """Refuses new parameters inside of DDP, which knows those alone that were there before it."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    for ddp in alive(nn.parallel.DistributedDataParallel) if names and distributed else ():
        if any(module is guide for module in ddp.modules()):
            raise ValueError(
                f"the sites {list(names)} of this guide are found inside of "
                "DistributedDataParallel, which would not reduce the gradients of their "
                "parameters, so that the ranks drift apart: call `guide(*args)` with the data "
                "once, or load its state, before it is wrapped"
            )


def _parameters(guide: Any) -> Iterator[tuple[str, nn.Parameter]]:
    yield from guide.named_parameters()
    for root in () if guide._model is None else referred_modules(guide._model[0], nn.Module):
        yield from root.named_parameters()


def _refuse_steps(optimizer: Optimizer, late: dict[str, nn.Parameter]) -> None:
    def check(optimizer: Optimizer, *_: Any) -> None:
        waiting = {n: p for n, p in late.items() if p.grad is not None}
        missing = [n for n, p in waiting.items() if id(p) not in _held(optimizer)]
        if missing:  # they may have another one
            held = set().union(*map(_held, alive(Optimizer)))
            missing = [n for n, p in waiting.items() if id(p) not in held]
        if missing:
            raise ValueError(
                f"this optimizer was built before the parameters {missing}, which the first run "
                "of the model revealed, so that it would not train them: call `guide(*args)` "
                "with the data once before `torch.optim.Adam(elbo.parameters())` or the like"
            )
        if len(waiting) == len(late):
            handle.remove()

    handle = optimizer.register_step_pre_hook(check)


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
