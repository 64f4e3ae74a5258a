"""Modes and states of modules for the time of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import _rng
from ._bnn import BNN


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Modules in evaluation mode, and as they were afterwards."""
    training = [m for part in modules if isinstance(part, nn.Module) for m in part.modules()]
    training = [m for m in training if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def training(*modules: nn.Module) -> Iterator[None]:
    """Modules in training mode, and in evaluation mode afterwards, however the block ends."""
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module in modules:
            module.eval()


@contextmanager
def unchanged_on_error(*modules: nn.Module) -> Iterator[None]:
    """Puts random numbers, numbers of data and the places of tensors back if the block raises."""
    random_numbers = _rng.get_state()
    parts = dict.fromkeys(part for module in modules for part in module.modules())
    num_data = [(part, part.num_data) for part in parts if isinstance(part, BNN)]
    buffers = [(part, dict(part._buffers)) for part in parts]
    parameters = [p for module in modules for p in module.parameters()]
    data = [(p, p.data) for p in parameters]
    grads = [(p, p.grad, p.grad.data) for p in parameters if p.grad is not None]
    try:
        yield
    except BaseException:
        _rng.set_state(random_numbers)
        for model, number in num_data:
            model.num_data = number
        for part, tensors in buffers:
            part._buffers.update(tensors)
        for parameter, value in data:
            parameter.grad = None  # torch refuses one that does not fit
            parameter.data = value
        for parameter, grad, value in grads:
            grad.data = value
            parameter.grad = grad
        raise
