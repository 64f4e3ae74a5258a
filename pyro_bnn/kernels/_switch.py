"""The setting that switches all kernels off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from .._torch import is_transformed

_ENABLED = ContextVar("enabled", default=os.environ.get("PYRO_BNN_KERNELS", "1") != "0")


@contextmanager
def enabled(flag: bool = True) -> Iterator[None]:
    """Runs the kernels of pyro_bnn, or the plain formulas that they stand for.

    It holds in the thread that it is entered in. The environment variable ``PYRO_BNN_KERNELS=0``
    switches them off everywhere. Distributions are the same; the order of random numbers is not
    where several small weights are drawn at once.

    Args:
        flag: whether kernels run.

    Example:
        >>> with enabled(False):
        ...     print(are_enabled())
        False
    """
    token = _ENABLED.set(flag)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def are_enabled() -> bool:
    """Whether kernels run, where torch neither traces nor transforms."""
    return torch.compiler.is_compiling() or _ENABLED.get()  # which a compiler cannot read


def is_plain() -> bool:
    """Whether the plain formulas run: kernels are off, or torch differentiates by itself."""
    return is_transformed() or not _ENABLED.get()
