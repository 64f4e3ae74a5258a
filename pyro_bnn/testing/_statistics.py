"""What the checks have in common: statistics with an error that is known, and messages."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ERRORS = 5.0  # standard errors, which a right one of a million numbers exceeds by chance


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers at each time, and the generator as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def require_mean(samples: Tensor, expected: Tensor | float, message: str) -> None:
    """The mean over the first dimension is what it should be, up to five standard errors."""
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    excess = (mean - expected).abs() - _ERRORS * error - 1e-7 * (1 + mean.abs())
    worst = int(excess.argmax())
    wanted = torch.as_tensor(expected).expand_as(mean).reshape(-1)[worst]
    require(
        bool((excess <= 0).all()),
        f"{message}: {mean.reshape(-1)[worst]:.4g} in the mean of {len(samples)} draws, not "
        f"{wanted:.4g}; the standard error is {error.reshape(-1)[worst]:.2g}",
    )


def require_gradients(
    named: Iterator[tuple[str, Tensor]], when: str, *, in_every_entry: bool = False
) -> None:
    """Every parameter, or even every entry of it, has a gradient that is finite and not 0."""
    for name, parameter in named:
        grad = parameter.grad
        found = grad is not None and bool(grad.isfinite().all())
        if found and grad is not None:
            is_used = grad != 0
            found = bool(is_used.all() if in_every_entry else is_used.any())
        require(found, f"`{name}` has the gradient {grad} {when}: it must be finite, and not 0")


def copies(x: Any) -> list[Any]:
    """A deep copy and, where a pickle finds the class by its name, one by pickling."""
    cls = type(x)
    is_found = getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
    return [copy.deepcopy(x), *([pickle.loads(pickle.dumps(x))] if is_found else [])]
