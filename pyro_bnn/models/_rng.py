"""The states of all random number generators that training draws from, as plain data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch


def get_state() -> dict[str, Any]:
    """Of torch (on all devices), Python and NumPy."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": devices,
        "python": _as_lists(random.getstate()),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def set_state(state: dict[str, Any]) -> None:
    """Of all generators that there are here."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value, device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def part(rank: int) -> None:
    """Makes the random numbers from here on those of a rank, from a state that all ranks have."""
    if rank:
        seed = int(torch.randint(1 << 31, ()))
        pyro.set_rng_seed((seed + rank) % (1 << 32))


@contextmanager
def preserved() -> Iterator[None]:
    """Leaves the generators as they are, whatever is drawn inside."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
