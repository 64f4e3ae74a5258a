"""Vectorized particles, whose samples stand where a function may look for the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import nn

from ..estimators._draw import plain
from ..guides import AutoPosterior
from ..guides._dry_run import dry_run
from ..guides._sites import referred_modules

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def check_particles(
    vectorized: Callable[[Any], Any],
    dim: int,
    model: Callable[..., Any],
    guide: Any,
    args: Any,
    kwargs: Any,
) -> None:
    """Compares the first of vectorized particles with the same one alone, once for each guide.

    Args:
        vectorized: puts model and guide into the plate of particles.
        dim: the dimension of that plate, from the right.
        model, guide, args, kwargs: as of the ELBO.

    Raises:
        ValueError: if the model finds another likelihood, or none.
    """
    if not isinstance(guide, AutoPosterior) or vars(guide).get("_are_particles_checked"):
        return
    guide._are_particles_checked = True
    with poutine.block(), dry_run(), torch.no_grad(), guide.shared_draws(), _no_dropout(model):
        one: Any = poutine.trace(guide).get_trace(*args, **kwargs)
        many: Any = poutine.trace(vectorized(guide)).get_trace(*args, **kwargs)
        for name, site in one.nodes.items():
            if site["type"] == "sample":
                value = plain(many.nodes[name]["value"])
                same = site_is_subsample(site) or value.shape == site["value"].shape
                site["value"] = value if same else value[0].reshape(site["value"].shape)
        first = lambda seed: _likelihoods(poutine.replay(model, trace=one), args, kwargs, seed)
        alone = first(0)
        replayed = poutine.replay(vectorized(model), trace=many)
        try:
            together = _likelihoods(replayed, args, kwargs, 0, dim)
        except (RuntimeError, IndexError) as error:
            cause = str(error).partition("\n")[0]  # Pyro adds the shapes of all sites
            raise ValueError(
                "the model runs with one draw of the weights, but not with vectorized particles, "
                f"whose dimension is in front of the rows: {cause}. Leave out `vectorize_particles`"
            ) from error
        for name, value in alone.items():
            # Nothing is known of a model that has random numbers of its own.
            if not _agree(together[name], value) and _agree(first(1)[name], value):
                raise ValueError(
                    f"the log likelihood of `{name}` is {value:.4g} for a draw of the weights, but "
                    f"{together[name]:.4g} for the same draw among vectorized particles, whose "
                    "dimension is in front of the rows: count dimensions from the last, as in "
                    "`softmax(dim=-1)`, or leave out `vectorize_particles`"
                )


def _likelihoods(
    model: Callable[..., Any], args: Any, kwargs: Any, seed: int, dim: int | None = None
) -> dict[str, float]:
    """The log likelihood of each observed site; with a dimension of particles, of the first one."""
    torch.manual_seed(seed)
    trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob(lambda name, site: site["is_observed"])
    found = {}
    for name in trace.observation_nodes:
        value = trace.nodes[name]["log_prob"]
        if dim is not None and value.dim() >= -dim:
            value = value.select(dim, 0)
        found[name] = value.sum(dtype=torch.float64 if value.is_cpu else None).item()
    return found


def _agree(a: float, b: float) -> bool:
    """Whether two numbers are the same but for rounding, in half precision, too."""
    return not math.isfinite(b) or abs(a - b) <= 0.01 * (1 + abs(b))


@contextmanager
def _no_dropout(model: Callable[..., Any]) -> Iterator[None]:
    modules = [m for root in referred_modules(model, nn.Module) for m in root.modules()]
    active = [m for m in modules if isinstance(m, _DROPOUTS) and m.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True
