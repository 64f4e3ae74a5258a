"""What is checked, read off the data and tried out before training changes anything."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import nn
from torch.distributions import Categorical, constraints

from .._validation import check_numbers, check_positive, is_count
from ..guides._sites import referred_modules
from ..infer._data import arguments
from . import _rng
from ._batches import Batches, TensorBatches
from ._bnn import BNN
from ._contexts import evaluating
from ._held_out import log_density
from ._rows import innermost
from ._run import Objective


def check_counts(**given: Any) -> None:
    """Raises a ValueError for what is no positive integer, nor None where that has a meaning."""
    for name, value in given.items():
        is_none = value is None and name in ("epochs", "num_data", "patience")
        if not is_none and not is_count(value):
            raise ValueError(f"`{name}` (={value}) must be a positive integer")


def check_rates(
    lr: float, scale_lr: float, warmup: float, clip_norm: float | None, clip_factor: float | None
) -> None:
    check_positive(lr=lr, scale_lr=scale_lr)
    clips = {"clip_norm": clip_norm, "clip_factor": clip_factor}
    given = {name: value for name, value in clips.items() if value is not None}
    check_numbers(warmup=warmup, **given)
    if not 0 <= warmup < 1:
        raise ValueError(
            f"`warmup` (={warmup}) is a fraction of the steps: it must be at least 0 and below 1"
        )
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"`clip_norm` (={clip_norm}) must be positive and finite")
    if clip_factor is not None and not 1 < clip_factor < math.inf:
        raise ValueError(
            f"`clip_factor` (={clip_factor}) must be above 1 and finite, or None for no such limit"
        )


def check_options(autocast: Any, callbacks: Any, device: Any, vectorize_particles: Any) -> None:
    if not isinstance(vectorize_particles, bool):
        raise TypeError(f"`vectorize_particles` (={vectorize_particles!r}) must be True or False")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"`autocast` (={autocast}) must be torch.bfloat16, torch.float16 or None")
    if not isinstance(callbacks, Collection) or not all(map(callable, callbacks)):
        raise TypeError(f"`callbacks` (={callbacks!r}) must be a list of functions of the run")
    if device is not None and torch.device(device).type == "meta":
        raise ValueError("`device` (='meta') has no values: give one to train on")


def check_checkpoint(checkpoint: Any, resume: bool) -> None:
    if resume and checkpoint is None:
        raise ValueError("`resume` (=True) needs the file: give it as `checkpoint`")
    if checkpoint is not None:
        path = Path(checkpoint)
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"`checkpoint` (={str(path)!r}) must be a file in an existing folder")


def num_batches(train: Batches) -> int:
    """The number of batches of an epoch, which schedules count."""
    try:
        number = len(train)
    except TypeError:
        raise ValueError(
            "the number of batches is unknown, since the dataset of the DataLoader has no length, "
            "but warm-up and learning rates depend on it: give the dataset a `__len__`"
        ) from None
    if number == 0:
        raise ValueError("`data` is a DataLoader without batches: give it data")
    return number


def prepare(
    elbo: Objective,
    model: Callable[..., Any],
    guide: Any,
    train: Batches,
    held_out: Batches | None,
    num_data: int | None,
    move: Callable[[Any], Any],
) -> tuple[int, list[str]]:
    """Tells the model the number of data, and evaluates the ELBO once.

    This finds latent sites that only a run reveals, and data that do not suit the model. Random
    numbers and buffers stay as they are.

    Returns:
        The number of data, and the names of the parameters by ``pyro.param``.
    """
    parts = [*referred_modules(model, nn.Module), guide]
    models = [part for part in parts if isinstance(part, BNN)]
    known_number = next((part.num_data for part in models if part.num_data is not None), None)
    number = _num_data(train, num_data, known_number)
    for part in models:
        part.num_data = number
    with _rng.preserved(), evaluating(*parts):
        args, kwargs = arguments(move(train.first()))
        if not poutine.trace(model).get_trace(*args, **kwargs).observation_nodes:
            raise ValueError(
                "the model observes nothing of `data`: give it what it is to be trained on, say as "
                "a tuple `(x, y)`"
            )
        with poutine.trace(param_only=True) as capture:
            elbo(model, guide)(*args, **kwargs)  # type: ignore[arg-type]
        for given in (train,) if held_out is None else (train, held_out):
            _check_targets(model, given, move)
        if held_out is not None:
            log_density(model, guide, [move(held_out.first())], num_samples=1)
    if (len(train) > 1 or train.is_part) and not elbo.is_scaled:
        guide._batches = None  # lest it be said again
        warnings.warn(
            "the model counts a mini-batch as all data: sample its observations inside "
            f"`pyro.plate('data', {number}, subsample_size=len(x))`, or use `pyro_bnn.BNN`",
            stacklevel=3,
        )
    known = {id(p) for part in parts for p in part.parameters()}
    nodes: dict[str, Any] = dict(capture.trace.nodes.items())
    found = {name: site["value"].unconstrained() for name, site in nodes.items()}
    return number, [name for name, p in found.items() if id(p) not in known]


def _check_targets(model: Any, given: Batches, move: Callable[[Any], Any]) -> None:
    """Checks the targets of all rows that are at hand, so that no step finds bad ones."""
    if not isinstance(model, BNN) or not isinstance(given, TensorBatches):
        return
    distribution = None
    for batch in given.all_rows():
        args, kwargs = arguments(batch)
        if distribution is None:
            run = poutine.trace(model).get_trace(*move(args), **move(kwargs))
            distribution = run.nodes["obs"]["fn"]
            inner = innermost(distribution)
            is_fixed = not constraints.is_dependent(type(inner).support)
            if not is_fixed and not isinstance(inner, Categorical):
                return  # other rows have other supports
        named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        targets = move([named.get(key) for key in ("y", "mask", "weight")])
        model.observations(distribution, *targets)


def _num_data(train: Batches, given: int | None, of_model: int | None) -> int:
    if given is not None:
        return given
    number = of_model if train.num_data is None else train.num_data
    if number is None:
        raise ValueError(
            "the number of data is unknown, since the DataLoader has an iterable dataset, a "
            "sampler that does not tell it, or `batch_size=None`: give it as `num_data`"
        )
    if of_model not in (None, number):
        raise ValueError(
            f"the model has `num_data` (={of_model}), but there are {number} data: set "
            "`model.num_data = None` to read it off the data, or pass the number that counts as "
            "`num_data`"
        )
    return number


def parameters(names: list[str]) -> list[torch.Tensor]:
    """Unconstrained parameters in Pyro's store."""
    held = dict(pyro.get_param_store().named_parameters())
    return [held[name] for name in names]
