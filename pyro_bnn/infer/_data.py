"""How a model is called with data, and what a step tells of those it is trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._tensors import has_values
from ..guides import AutoPosterior
from ..guides._no_data import to_caller, warn_of_no_data

_NUM_BATCHES = 4  # training data, those of a first call, and held-out ones are no batches yet
_NUM_CALLS = 40


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch: a tuple is its arguments, a dictionary its keywords."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


class Batches:
    """The data of the first steps, of which each may be all there are, or a batch of them."""

    def __init__(self) -> None:
        self.calls = 0
        self._known: dict[str, set[Any]] = {}
        self._number = 0

    def are_different(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether several steps have had data of their own, as mini-batches are."""
        self.calls += 1
        named = {str(i): x for i, x in enumerate(args)} | kwargs
        data = {key: x for key, x in named.items() if isinstance(x, Tensor) and x.dim()}
        if not data or not all(map(has_values, data.values())):
            return False
        found = {key: (x.shape, x.detach().sum().item()) for key, x in data.items()}
        self._number += all(x not in self._known.get(key, ()) for key, x in found.items())
        for key, x in found.items():
            self._known.setdefault(key, set()).add(x)
        return self._number >= _NUM_BATCHES


def check_data(model_trace: Any, guide: Any, args: Any, kwargs: Any, is_bound: bool) -> None:
    """Warns where a model is trained without data, or on batches that each count as all data.

    Args:
        model_trace: what the model did in a step.
        guide: the guide, which keeps what is known of the steps before.
        args, kwargs: what model and guide are called with.
        is_bound: whether the KL divergence has the weight that it has beside all data.
    """
    if getattr(guide, "_batches", True) is None:  # enough is known
        return
    sites = model_trace.nodes.values()
    observed = [site for site in sites if site["type"] == "sample" and site["is_observed"]]
    if not observed:
        warn_of_no_data()
        return
    if not isinstance(guide, AutoPosterior) or torch.compiler.is_compiling():
        return
    if any(isinstance(site["scale"], Tensor) or site["scale"] != 1 for site in observed):
        guide._batches = None
        return
    if not is_bound:
        return
    if "_batches" not in vars(guide):
        guide._batches = Batches()
    batches = guide._batches
    if batches.are_different(args, kwargs):
        guide._batches = None
        warnings.warn(
            "the model is trained on mini-batches and counts each of them as all data, so that "
            "the KL divergence has too much weight: tell it the number of all data, by "
            '`pyro.plate("data", num_data, subsample_size=len(x))` around the observations or '
            "`num_data` of a BNN",
            stacklevel=to_caller(),
        )
    elif batches.calls >= _NUM_CALLS:
        guide._batches = None
