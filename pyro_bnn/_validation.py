"""Checks of arguments and data."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.nn.parameter import is_lazy

from ._tensors import has_values


def check_numbers(**values: Any) -> None:
    for name, value in values.items():
        if not _is_number(value) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise TypeError(f"`{name}` (={value!r}) must be a number")


def check_finite_numbers(**values: Any) -> None:
    check_numbers(**values)
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"`{name}` (={value}) must be finite")


def is_count(value: Any) -> bool:
    """Whether something is a positive integer, 1e3 for example."""
    return _is_number(value) and value >= 1 and value % 1 == 0


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_positive(**values: float) -> None:
    check_numbers(**values)
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` (={value}) must be positive and finite")


def check_probability(**values: float) -> None:
    check_numbers(**values)
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"`{name}` (={value}) must be a probability, between 0 and 1")


def check_kl_weight(value: float) -> None:
    check_numbers(kl_weight=value)
    if not 0 <= value < math.inf:
        raise ValueError(f"`kl_weight` (={value}) must be finite and not negative")


def plain_state(random: Collection[str]) -> str:
    """What to do with a state that has values of weights which are random here."""
    return (
        f"{sorted(random)[:3]} of the state are values of weights that are random here, as a "
        "deterministic network has them: they are where a guide starts, "
        "`AutoLRT(net, init_loc_fn=state)`, or load them before `bayesianize`"
    )


def size_mismatch(key: str, own: Any, saved: Any) -> str | None:
    """Torch's message on a saved tensor that has another shape than the one it is loaded into."""
    if not isinstance(own, Tensor) or is_lazy(own):
        return None
    if not isinstance(saved, Tensor):
        return f"`{key}` of the state (={saved!r:.50}) must be a tensor"
    # Torch takes a vector of one element for a scalar, as its first versions saved them.
    if own.shape == saved.shape or (not own.shape and saved.shape == (1,)):
        return None
    return (
        f"size mismatch for {key}: copying a param with shape {saved.shape} from checkpoint, the "
        f"shape in current model is {own.shape}."
    )


def is_checked(x: Tensor) -> bool:
    """Whether its values are checked: where Pyro validates nothing, no host waits for a GPU."""
    return has_values(x) and (x.is_cpu or is_validation_enabled())


def nan_arguments(
    function: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    among: Callable[[Tensor], bool] = has_values,
) -> list[str]:
    """Descriptions of the arguments of a function, ``among`` some, that have NaN."""
    return _arguments_with(torch.isnan, function, args, kwargs, among)


def infinite_arguments(
    function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Descriptions of the arguments of a function that have infinite values."""
    return _arguments_with(torch.isinf, function, args, kwargs)


def _arguments_with(
    test: Callable[[Tensor], Tensor],
    function: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    among: Callable[[Tensor], bool] = has_values,
) -> list[str]:
    named: dict[str, Any] = {str(i): arg for i, arg in enumerate(args)} | dict(kwargs)
    return [
        f"`{_name(function, key)}` ({int(test(x).sum())} of {x.numel()} values)"
        for key, x in named.items()
        if isinstance(x, Tensor) and x.is_floating_point() and among(x) and _has(test, x)
    ]


def _has(test: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    # A sum is several times cheaper than `isnan`, and not finite if any term is not.
    return not bool(x.detach().sum().isfinite()) and bool(test(x).any())


def _name(function: Callable[..., Any] | None, key: str) -> str:
    if not key.isdigit() or function is None:
        return key
    function = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # no signature to be had, as of some builtins
        return key
    return names[int(key)] if int(key) < len(names) else key
