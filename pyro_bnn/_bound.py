"""Functions that are bound to modules, and the same ones bound to others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any


def is_bound(value: Any) -> bool:
    """Whether a value is a function that may be bound to modules."""
    is_closure = isinstance(value, FunctionType) and value.__closure__ is not None
    return is_closure or isinstance(value, (MethodType, partial))


def rebound(value: Any, other: Callable[[Any], Any], inside: frozenset[int] = frozenset()) -> Any:
    """A function bound to the others of what it is bound to; of all else, its other.

    Args:
        value: a method, a partial or a closure, which may be bound to one another.
        other: what to take for something that is no such function; itself, if there is no other.
        inside: identities of closures that refer to this value, which may be one of them.
    """
    again = partial(rebound, other=other, inside=inside | {id(value)})
    if isinstance(value, MethodType):
        return MethodType(value.__func__, again(value.__self__))
    if isinstance(value, partial):
        function, *args = map(again, (value.func, *value.args))
        return partial(function, *args, **{key: again(x) for key, x in value.keywords.items()})
    if not is_bound(value):
        return other(value)
    return value if id(value) in inside else _closure(value, again)


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
