"""Importance weights, which hold for a draw that is one weight for all data."""

from __future__ import annotations

import torch
from pyro.infer import TraceTailAdaptive_ELBO

from .._callers import callers
from .._pyro import BOUND, WEIGHTS


def check_bound() -> None:
    """Refuses the density of a draw that is no weight of all data to those who weigh by it.

    Raises:
        ValueError: if an importance weight is made of the density that is computed now.
    """
    if torch.compiler.is_compiling():  # a compiler does not see who calls
        return
    # Nothing but who calls tells a factor of a weight from a term of a bound.
    frame = next((f for f in callers() if f.f_code is BOUND or f.f_code in WEIGHTS), None)
    if frame is None:
        return
    name = WEIGHTS.get(frame.f_code)
    loss = frame.f_locals.get("self")
    if isinstance(loss, TraceTailAdaptive_ELBO):
        name = type(loss).__name__
    if name is not None:
        raise ValueError(
            f"{name} multiplies the likelihoods of all data under one weight, but flipout gives "
            "each example a weight of its own and local reparameterization draws none: run it "
            "inside `with guide.shared_draws():`, or use AutoReparameterization"
        )
