"""Inputs of any form, batch by batch, where the weights are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._tensors import map_tensors
from ..guides._sites import referred_modules
from ._batches import batches


def inputs(model: Any, guide: Any, x: Any, batch_size: int | None) -> Iterator[Any]:
    """Batches of inputs as a model takes them."""
    device, dtype = device_and_dtype(model, guide)
    for batch in _batches(x, batch_size, dtype):
        yield map_tensors(lambda t: t.to(device), batch)


def _batches(x: Any, batch_size: int | None, dtype: torch.dtype) -> Iterator[Any]:
    if isinstance(x, DataLoader):
        if batch_size is not None:
            batches(x, batch_size)  # says what is wrong
        for batch in x:
            if isinstance(batch, Mapping):
                yield batch["x"]
            else:
                yield batch[0] if isinstance(batch, (tuple, list)) else batch
        return
    if not isinstance(x, (Tensor, np.ndarray, tuple, dict)):
        raise TypeError(
            f"`x` (={type(x).__name__}) must be a tensor or an array, a tuple or dictionary of "
            "them for a network with several inputs, or a DataLoader"
        )
    for (batch,) in batches((x,), batch_size, shuffle=False, dtype=dtype, name="x").epoch():
        yield batch


def device_and_dtype(model: Any, guide: Any) -> tuple[torch.device, torch.dtype]:
    """Those of the weights."""
    modules = [m for m in (guide, *referred_modules(model, nn.Module)) if isinstance(m, nn.Module)]
    own = [t for m in modules for t in itertools.chain(m.parameters(), m.buffers())]
    given = [*guide.values()] if isinstance(guide, Mapping) else []
    like = next((t for t in (*own, *given) if t.is_floating_point()), torch.empty(()))
    return like.device, like.dtype
