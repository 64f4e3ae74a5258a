"""Which of the registered KL divergences are upper bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributions import Distribution, register_kl

from ._normal import innermost

_BOUNDS: list[tuple[type, type]] = []


def register_bound(q: type[Distribution], p: type[Distribution]) -> Callable[[Any], Any]:
    """``torch.distributions.register_kl`` for a function that returns an upper bound.

    Args:
        q, p: classes of the posterior and of the prior, without an ``Independent`` around them.

    Returns:
        A decorator of the function of two such distributions.
    """
    _BOUNDS.append((q, p))
    return register_kl(q, p)


def is_bound(q: Distribution, p: Distribution) -> bool:
    """Whether the KL divergence that is registered for a posterior and a prior is a bound."""
    q, p = innermost(q), innermost(p)
    return any(isinstance(q, kind) and isinstance(p, other) for kind, other in _BOUNDS)
