"""The code that runs, for what nothing else tells of who asks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType


def callers() -> Iterator[FrameType]:
    """The frames of all functions that are running, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
