"""Functions that users define, whose weights may be sampled by any estimator."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from ._draw import RULES, Draw, apply_map
from ._maps import LinearMap


def register_map(
    function: Callable[..., Tensor], map: LinearMap | Callable[..., LinearMap]
) -> Callable[..., Tensor]:
    """Lets a function accept weights and biases that are sampled by any estimator.

    Args:
        function: called as ``function(input, weight, bias=None, ...)``, linear in the input and in
            the weight.
        map: what it computes, as a map that equals any other of the same options; or a function of
            the further arguments that returns it.

    Returns:
        A function of the same arguments, to be called in place of ``function``. A function of
        torch itself may be called as before.

    Raises:
        TypeError: if ``function`` cannot be called, or ``map`` is neither a map nor a function.

    Example:
        See :doc:`/extending`.
    """
    if not callable(function):
        raise TypeError(f"`function` (={function!r}) must be a function of input, weight and bias")
    if not callable(map):
        raise TypeError(f"`map` (={map!r}) must be a LinearMap, or a function that returns one")

    def rule(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        made: Any = map if isinstance(map, LinearMap) else map(*args, **kwargs)
        return apply_map(made, input, weight, bias)

    @wraps(function)
    def of_draws(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if isinstance(weight, Draw) or isinstance(bias, Draw):
            return rule(input, weight, bias, *args, **kwargs)
        return function(input, weight, bias, *args, **kwargs)

    RULES[function] = rule
    return of_draws
