"""The log density of held-out data, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .._threads import PYRO
from ..guides._lists import shared_draws
from ..infer._data import arguments
from . import _rng
from ._bnn import BNN
from ._contexts import evaluating
from ._rows import counts
from ._state import Module, Store

_SEED = 0  # of all evaluations, whose difference is then that of the weights


@torch.no_grad()
def log_density(
    model: Callable[..., Any],
    guide: Any,
    data: Iterable[Any],
    num_samples: int = 20,
    total: Callable[..., tuple[float, ...]] = lambda *sums: sums,
) -> float:
    r"""The mean over the data that count of :math:`\log \frac{1}{S} \sum_s p(y_n \mid x_n, w_s)`.

    Args:
        data: batches, as the model takes them.
        num_samples: number of draws :math:`S`.
        total: adds up sums over the data of several processes.
    """
    density, num_rows = 0.0, 0.0
    # One weight for all rows, as in predictions: rows may interact in the network.
    with PYRO, _rng.preserved(), evaluating(model, guide), shared_draws(guide):
        torch.manual_seed(_SEED)
        for batch in data:
            args, kwargs = arguments(batch)
            rows = [_log_probs(model, guide, args, kwargs) for _ in range(num_samples)]
            densities = torch.stack(rows).logsumexp(0) - math.log(num_samples)
            times = _times(model, densities, kwargs)
            density += float((densities * times).sum())
            num_rows += float(times.sum())
    density, num_rows = total(density, num_rows)
    return density / num_rows


def _times(model: Any, densities: Tensor, given: Mapping[str, Any]) -> Tensor:
    """How often each row counts: by the mask and the weights that a BNN is given."""
    if not isinstance(model, BNN):
        return torch.ones_like(densities)
    mask, weight = given.get("mask"), given.get("weight")
    if mask is not None:
        mask = mask.reshape(len(densities), -1).any(1)
    return counts(densities, mask, weight)[1]


def _log_probs(model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
    """The log density of each row under one draw, which is the last dimension of all sites."""
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    run = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    sites: list[Any] = [
        site for site in prune_subsample_sites(run).nodes.values() if _is_observed(site)
    ]
    if not sites:
        raise ValueError(
            "the model observes nothing of the validation data: give it the targets, too"
        )
    terms = [site["fn"].log_prob(site["value"]) for site in sites]
    return sum(term.reshape(-1, *term.shape[-1:]).sum(0) for term in terms)


def _is_observed(site: Any) -> bool:
    return site["type"] == "sample" and site["is_observed"]


class EarlyStopping:
    """Remembers the best state of a model and guide, and tells when none was better for long.

    Args:
        parts: whose states are meant: modules, and parameters that belong to none.
        patience: number of scores without a better one after which to stop; None for never.
    """

    def __init__(self, parts: Iterable[Module | Store], patience: int | None) -> None:
        self.parts = list(parts)
        self.patience = patience
        self.best = -math.inf
        self.waited = 0
        self.states: list[dict[str, Tensor]] = []

    def update(self, score: float) -> bool:
        """Takes a score, and returns whether to stop."""
        if score > self.best:
            self.best, self.waited = score, 0
            states = [part.state() for part in self.parts]
            self.states = [{n: x.clone() for n, x in state.items()} for state in states]
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def restore(self) -> None:
        """Gives the parts their best state."""
        for part, state in zip(self.parts, self.states, strict=False):
            part.load(state)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "states": self.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
