"""Networks inside of plates, where each element has weights of its own."""

from __future__ import annotations

import torch

from .._callers import callers
from .._pyro import FIRST_RUNS


def check_plate(name: str, samples: torch.Size) -> None:
    """Refuses weights that are drawn for each row of the data, where inference finds its sites.

    Args:
        name: of the weight.
        samples: its sample dimensions. The last is that of the rows; one network for each element
            of a plate to the left of the rows' is what the plate may be there for.

    Raises:
        ValueError: if there is a weight for each row.
    """
    if samples[-1] == 1 or torch.compiler.is_compiling():
        return
    frame = next((f for f in callers() if f.f_code in FIRST_RUNS), None)
    # Guides of this library know which plates may be around a network.
    inference = None if frame is None else frame.f_locals.get("self")
    if frame is None or hasattr(inference, "_network_plates"):
        return
    raise ValueError(
        f"the weight `{name}` is sampled inside a plate of {samples[-1]} elements in the dimension "
        "of the data: a network for each of them. Call the network before the plate is entered; "
        "or, if one for each element is meant, give the plate a `dim` to the left, "
        f'`pyro.plate("networks", {samples[-1]}, dim=-2)`'
    )
