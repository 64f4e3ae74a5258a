"""Runs of a model that leave its buffers as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts buffers back in the end, such as running statistics that a run has moved.

    Args:
        modules: networks.
    """
    found = {id(module): module for root in modules for module in root.modules()}
    saved = [
        (module, key, buffer, buffer.detach().clone())
        for module in found.values()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, key, buffer, copy in saved:
            module._buffers[key] = buffer
            # By values, since batch normalisation does not count its writes as others do; and not
            # always, since a write would spoil a backward pass that has the buffer to come.
            if not buffer.is_meta and not torch.equal(buffer, copy):
                buffer.detach().copy_(copy)
