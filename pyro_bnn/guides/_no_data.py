"""Steps of training that see no data."""

from __future__ import annotations

import warnings
from types import FrameType

from .._callers import callers, is_in_svi_step


def warn_of_no_data() -> None:
    # The bound of a network alone is its KL divergence, which one may ask for; not so a step.
    if is_in_svi_step():
        warnings.warn(
            "the model observes nothing, so that nothing but the KL divergence is trained, back to "
            'the prior: let it sample the data, `pyro.sample("obs", ..., obs=y)` in a data plate, '
            "or build it by `pyro_bnn.BNN`",
            stacklevel=to_caller(),
        )


def to_caller() -> int:
    """The level of the first frame outside of what runs a step."""
    inside = ("pyro.", "pyro_bnn.", "torch.", "contextlib")
    names = map(_module, callers())
    _, _, *names_above = names  # this function's, and those of what it calls, are no levels
    levels = enumerate(names_above, 1)
    return next((level for level, name in levels if not name.startswith(inside)), 1)


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")  # code that is run by `exec` may have none
