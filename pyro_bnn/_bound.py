"""Functions and containers that refer to modules, and the same ones with others in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

# Torch's registries, and Pyro's, refer to modules in ways of their own.
_REGISTRIES = {*vars(nn.Module()), "_pyro_samples", "_pyro_params"}


def kept(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that may refer to modules."""
    return {k: v for k, v in vars(module).items() if k not in _REGISTRIES and is_bound(v)}


def is_bound(value: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a value may refer to modules: a closure, a method, a partial, or some of them.

    Args:
        value: what a module keeps.
        seen: identities of containers that this value is in.
    """
    if isinstance(value, (list, tuple, dict)) and id(value) not in seen:
        seen = seen | {id(value)}
        values = value.values() if isinstance(value, dict) else value
        return any(isinstance(x, nn.Module) or is_bound(x, seen) for x in values)
    is_closure = isinstance(value, FunctionType) and value.__closure__ is not None
    return is_closure or isinstance(value, (MethodType, partial))


def rebound(value: Any, other: Callable[[Any], Any], inside: frozenset[int] = frozenset()) -> Any:
    """What is bound, to the others of what it is bound to; of all else, its other.

    Args:
        value: a method, a partial, a closure or a container, which may refer to one another.
        other: what to take for something that is none of them; itself, if there is no other.
        inside: identities of what refers to this value, which may be one of them.
    """
    if id(value) in inside or not is_bound(value):
        return other(value)
    again = partial(rebound, other=other, inside=inside | {id(value)})
    if isinstance(value, MethodType):
        return MethodType(value.__func__, again(value.__self__))
    if isinstance(value, partial):
        function, *args = map(again, (value.func, *value.args))
        return partial(function, *args, **{key: again(x) for key, x in value.keywords.items()})
    if isinstance(value, tuple):
        values = map(again, value)
        return value._make(values) if hasattr(value, "_make") else type(value)(values)
    if isinstance(value, (list, dict)):
        new = copy.copy(value)
        for key in value if isinstance(value, dict) else range(len(value)):
            new[key] = again(value[key])
        return new
    return _closure(value, again)


def _closure(function: FunctionType, again: Callable[[Any], Any]) -> FunctionType:
    itself = CellType()  # what a recursive function calls
    cells = []
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # it is empty
            value = new = None
        else:
            new = again(value)
        # Variables without another value stay those of the function, which may assign to them.
        cells.append(itself if value is function else cell if new is value else CellType(new))
    code, names = function.__code__, function.__globals__
    made = FunctionType(code, names, function.__name__, function.__defaults__, tuple(cells))
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    itself.cell_contents = made
    return made
