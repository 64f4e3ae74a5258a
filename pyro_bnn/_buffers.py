"""Runs of a model that leave its buffers as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy


@contextmanager
def unchanged_buffers() -> Iterator[None]:
    """Puts back the buffers of all modules that run inside, such as statistics of normalization."""
    thread = threading.get_ident()
    saved: dict[nn.Module, dict[str, tuple[Tensor | None, Tensor | None]]] = {}

    def save(module: nn.Module, args: Any) -> None:
        if module not in saved and threading.get_ident() == thread:
            buffers = module._buffers.items()
            saved[module] = {
                name: (buffer, None if buffer is None else buffer.detach().clone())
                for name, buffer in buffers
                if buffer is None or not is_lazy(buffer)
            }

    hook = register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        hook.remove()
        for module, buffers in saved.items():
            for name, (buffer, value) in buffers.items():
                module._buffers[name] = buffer  # a module may have put another one there
                if buffer is None or value is None or buffer.is_meta:
                    continue
                # Not always, since a write would spoil a backward pass that is still to come.
                if not torch.equal(buffer, value):
                    buffer.detach().copy_(value)
