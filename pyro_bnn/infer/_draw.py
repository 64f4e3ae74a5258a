"""One sample of the weights for all data: what it makes of them, and its densities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..guides import AutoPosterior
from ..posteriors._pruned import Pruned
from ._sites import Site, integrable, may_have_kl, site_kl

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # what a model is called with


@dataclass
class Draw:
    """Log-likelihoods by observed site, and densities and KL divergences by latent site."""

    likelihood: dict[str, float]
    ratio: dict[str, float]  # log q - log p
    kl: dict[str, float]  # by a formula where there is one, given what is drawn before


def draw(
    model: Callable[..., Any], guide: AutoPosterior, batch: Batch
) -> tuple[Draw, dict[str, tuple[Any, Any]], dict[str, Site]]:
    """A sample of the posterior that all rows share.

    Returns:
        Its numbers; posterior and prior of each latent site; and the observed sites.
    """
    with guide.shared_draws():
        proposed: Any = prune_subsample_sites(trace(guide, batch))
    run: Any = prune_subsample_sites(trace(poutine.replay(model, trace=proposed), batch))
    run.compute_log_prob()
    proposed.compute_log_prob()
    observed: dict[str, Any] = {n: run.nodes[n] for n in run.observation_nodes}
    latent = {n: run.nodes[n] for n in run.stochastic_nodes if n in proposed.nodes}
    guided = {n: proposed.nodes[n] for n in proposed.stochastic_nodes if n in latent}
    ratio = {
        n: (guided[n]["log_prob_sum"] - _log_prior(p, guided[n])).item() for n, p in latent.items()
    }
    names = (n for n in integrable(latent, guided) if may_have_kl(latent[n], guided[n]))
    kls = {n: site_kl(latent[n], guided[n]) for n in names}
    numbers = Draw(
        {n: site["log_prob_sum"].item() for n, site in observed.items()},
        ratio,
        ratio | {n: kl.sum().item() for n, kl in kls.items() if kl is not None},
    )
    return numbers, {n: (guided[n]["fn"], p["fn"]) for n, p in latent.items()}, observed


def _log_prior(prior: Site, posterior: Site) -> Tensor:
    """The log density that the posterior's replaces; of pruned weights, neither has one."""
    q = posterior["fn"]
    if not isinstance(q, Pruned):
        return prior["log_prob_sum"]
    density = q.log_prior(prior["fn"], prior["value"])
    return scale_and_mask(density, prior["scale"], prior["mask"]).sum()


def trace(function: Callable[..., Any], batch: Batch) -> Any:
    """The trace of a model or guide that is called with a batch."""
    args, kwargs = batch
    return poutine.trace(function).get_trace(*args, **kwargs)


@torch.no_grad()
def likelihood(model: Callable[..., Any], batch: Batch) -> dict[str, float]:
    """The log-likelihood of a batch by observed site, with what the model samples."""
    run = trace(model, batch)
    run.compute_log_prob(lambda name, site: site["is_observed"])
    return {n: run.nodes[n]["log_prob_sum"].item() for n in run.observation_nodes}
