"""What is said of a network whose code looks for parameters that are random now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_READERS = {"parameters", "named_parameters", "_parameters", "state_dict"}


@contextmanager
def parameters_explained() -> Iterator[None]:
    """Says of a network that finds no parameter, with an empty message, what to read instead.

    Raises:
        TypeError: if the code that failed reads parameters of modules.
    """
    try:
        yield
    except (IndexError, KeyError, StopIteration) as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        code = None if traceback is None else traceback.tb_frame.f_code
        found = sorted(_READERS.intersection(code.co_names)) if code is not None else []
        if code is None or not found:
            raise
        raise TypeError(
            f"`{code.co_name}` of the network looks for a parameter by `{found[0]}` ({error!r}), "
            "but weights that are random are none: read the weight as an attribute, "
            "`self.layer.weight` for `next(self.parameters())`, or take dtype and device from the "
            "input, `x.device`"
        ) from error
