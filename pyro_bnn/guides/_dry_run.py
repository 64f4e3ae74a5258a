"""Runs of a model that are there to look at it, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch

from .._buffers import unchanged_buffers
from .._recomputation import unrecorded


@contextmanager
def dry_run() -> Iterator[None]:
    """Leaves random generators as they were, and the buffers of all modules that run inside.

    A resumed training draws the same numbers then, and has the same statistics of batch
    normalization, as one without an interruption.
    """
    has_devices = torch.cuda.is_available() and torch.cuda.is_initialized()
    state = pyro.util.get_rng_state()
    of_devices = torch.cuda.get_rng_state_all() if has_devices else []
    try:
        with unchanged_buffers(), unrecorded():
            yield
    finally:
        pyro.util.set_rng_state(state)
        if has_devices:
            torch.cuda.set_rng_state_all(of_devices)
