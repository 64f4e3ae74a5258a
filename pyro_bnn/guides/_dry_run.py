"""Runs of a model that are there to look at it, and change nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

Saved = dict[str, tuple[Tensor | None, Tensor | None]]  # a buffer, and what was in it


@contextmanager
def dry_run() -> Iterator[None]:
    """Leaves random generators as they were, and the buffers of all modules that run inside.

    A resumed training draws the same numbers then, and has the same statistics of batch
    normalisation, as one without an interruption.
    """
    thread = threading.get_ident()
    buffers: dict[nn.Module, Saved] = {}

    def save(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread or module in buffers:
            return
        buffers[module] = {
            name: (value, None if value is None else value.detach().clone())
            for name, value in module._buffers.items()
            if not is_lazy(value)
        }

    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    state, of_devices = pyro.util.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []
    handle = register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        handle.remove()
        pyro.util.set_rng_state(state)
        if cuda:
            torch.cuda.set_rng_state_all(of_devices)
        for module, saved in buffers.items():
            _restore(module, saved)


@torch.no_grad()
def _restore(module: nn.Module, saved: Saved) -> None:
    for name, (buffer, value) in saved.items():
        module._buffers[name] = buffer  # a module may have put another one there
        if buffer is not None and value is not None and not torch.equal(buffer, value):
            buffer.copy_(value)
