"""The code that runs, for what nothing else tells of who asks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType

from pyro.infer import SVI


def callers() -> Iterator[FrameType]:
    """The frames of all functions that are running, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_in_svi_step() -> bool:
    """Whether a step of ``SVI`` runs, which trains, not only its ELBO, which may be evaluated."""
    return any(frame.f_code is SVI.step.__code__ for frame in callers())
