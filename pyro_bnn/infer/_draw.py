"""One sample of the weights for all data: what it makes of them, and its densities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from ..guides import AutoPosterior

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # what a model is called with


@dataclass
class Draw:
    """Log-likelihoods by observed site, and densities by latent site."""

    likelihood: dict[str, float]
    ratio: dict[str, float]  # log q - log p
    sites: dict[str, tuple[Any, Any]]  # posterior and prior
    observed: dict[str, dict[str, Any]]


@torch.no_grad()
def draw(model: Callable[..., Any], guide: AutoPosterior, batch: Batch) -> Draw:
    """A sample of the posterior that all rows share."""
    with guide.shared_draws():
        proposed = prune_subsample_sites(trace(guide, batch))
    run: Any = prune_subsample_sites(trace(poutine.replay(model, trace=proposed), batch))
    run.compute_log_prob()
    proposed.compute_log_prob()
    observed = {n: run.nodes[n] for n in run.observation_nodes}
    latent = [n for n in run.stochastic_nodes if n in proposed.nodes]
    return Draw(
        {n: site["log_prob_sum"].item() for n, site in observed.items()},
        {
            n: (proposed.nodes[n]["log_prob_sum"] - run.nodes[n]["log_prob_sum"]).item()
            for n in latent
        },
        {n: (proposed.nodes[n]["fn"], run.nodes[n]["fn"]) for n in latent},
        observed,
    )


@torch.no_grad()
def trace(function: Callable[..., Any], batch: Batch) -> Any:
    """The trace of a model or guide that is called with a batch."""
    args, kwargs = batch
    return poutine.trace(function).get_trace(*args, **kwargs)


def likelihood(model: Callable[..., Any], batch: Batch) -> float:
    """The log-likelihood of a batch with what the model samples."""
    run = trace(model, batch)
    run.compute_log_prob(lambda name, site: site["is_observed"])
    return sum(run.nodes[n]["log_prob_sum"].item() for n in run.observation_nodes)
