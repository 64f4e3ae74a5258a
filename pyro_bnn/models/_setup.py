"""What is checked, read off the data and tried out before training changes anything."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Collection
from numbers import Integral
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import nn
from torch.distributions import Categorical, constraints

from .._untrained import untrained
from .._validation import check_kl_weight, check_numbers, check_positive, is_count
from ..guides._lists import posterior_guides
from ..guides._sites import referred_modules
from ..infer._data import arguments
from . import _rng
from ._batches import Batches, TensorBatches
from ._bnn import BNN
from ._contexts import evaluating
from ._held_out import log_density
from ._rows import innermost
from ._run import Objective


def check_counts(**given: Any) -> list[Any]:
    """Integers; raises a ValueError for what is none, nor None where that has a meaning."""
    for name, value in given.items():
        is_none = value is None and name in ("epochs", "num_data", "patience")
        if not is_none and not is_count(value):
            raise ValueError(f"`{name}` (={value}) must be a positive integer")
    return [None if value is None else int(value) for value in given.values()]


def check_rates(
    lr: float,
    scale_lr: float,
    kl_weight: float,
    warmup: float,
    clip_norm: float | None,
    clip_factor: float | None,
) -> None:
    check_positive(lr=lr, scale_lr=scale_lr)
    check_kl_weight(kl_weight)
    clips = {"clip_norm": clip_norm, "clip_factor": clip_factor}
    given = {name: value for name, value in clips.items() if value is not None}
    check_numbers(warmup=warmup, **given)
    if not 0 <= warmup < 1:
        raise ValueError(
            f"`warmup` (={warmup}) is a fraction of the steps: it must be at least 0 and below 1"
        )
    if warmup and not kl_weight:
        raise ValueError("`kl_weight` (=0) leaves nothing to warm up: pass `warmup=0`, too")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"`clip_norm` (={clip_norm}) must be positive and finite")
    if clip_factor is not None and not 1 < clip_factor < math.inf:
        raise ValueError(
            f"`clip_factor` (={clip_factor}) must be above 1 and finite, or None for no such limit"
        )


def check_options(
    autocast: Any, callbacks: Any, device: Any, seed: Any, vectorize_particles: Any
) -> None:
    if not isinstance(vectorize_particles, bool):
        raise TypeError(f"`vectorize_particles` (={vectorize_particles!r}) must be True or False")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"`autocast` (={autocast}) must be torch.bfloat16, torch.float16 or None")
    if not isinstance(callbacks, Collection) or not all(map(callable, callbacks)):
        raise TypeError(f"`callbacks` (={callbacks!r}) must be a list of functions of the run")
    if seed is not None and (type(seed) is bool or not isinstance(seed, Integral)):
        raise TypeError(f"`seed` (={seed!r}) must be an integer")
    if seed is not None and not 0 <= int(seed) < 2**32:
        raise ValueError(f"`seed` (={seed}) must be at least 0 and below 2**32")
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
            cause = str(error).partition("\n")[0]
            raise ValueError(
                f"`device` (={str(device)!r}) cannot be used ({cause}): give one to train on"
            ) from error


def check_checkpoint(checkpoint: Any, resume: bool) -> None:
    if resume and checkpoint is None:
        raise ValueError("`resume` (=True) needs the file: give it as `checkpoint`")
    if checkpoint is not None:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise TypeError(f"`checkpoint` (={checkpoint!r}) must be the path of a file")
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
            loss = elbo(model, guide)(*args, **kwargs)  # type: ignore[arg-type]
        _check_rows(model, guide, train, move)
        if held_out is not None:
            try:
                _check_rows(model, guide, held_out, move)
            except ValueError as error:
                raise ValueError(f"in `validation`: {error}") from error
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
    message = untrained(loss, known | {id(p) for p in found.values()})
    if message is not None:
        warnings.warn(message, stacklevel=3)
    return number, [name for name, p in found.items() if id(p) not in known]


def _check_rows(model: Any, guide: Any, given: Batches, move: Callable[[Any], Any]) -> None:
    """Checks all rows that are at hand, so that no step finds bad ones."""
    if not isinstance(given, TensorBatches):
        return
    for part in posterior_guides(guide):
        part._check_nan(*arguments(given.data))
    if not isinstance(model, BNN):
        return
    distribution = None
    for batch in given.all_rows():
        args, kwargs = arguments(batch)
        if distribution is None:
            with torch.no_grad():  # held-out data may have more rows than the training
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
