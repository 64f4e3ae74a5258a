"""Reads off a function which modules it uses."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import nn


def modules_of(function: Any, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules that a function is or is a method of, or those of a kind that its code names.

    These are global variables, those of enclosing functions, and attributes of the object of which
    it is a method; also where it is wrapped, or names them in functions inside of it.
    """
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, partial):
        candidates = [function.func, *function.args, *function.keywords.values()]
        return [m for c in candidates for m in modules_of(c, kind)]
    if callable(function) and not inspect.isroutine(function):  # an object with `__call__`
        function = function.__call__
    if inspect.ismethod(function) and isinstance(function.__self__, nn.Module):
        return [function.__self__]
    found: list[Any] = []
    if inspect.ismethod(function):
        attributes = getattr(function.__self__, "__dict__", {})
        names = {n for code in _codes(function.__func__) for n in code.co_names}
        found += [value for name, value in attributes.items() if name in names]
    for plain in _unwrapped(function):
        cells = plain.__closure__ or ()
        found += [cell.cell_contents for cell in cells if not _is_empty(cell)]
        found += [plain.__globals__.get(name) for name in _global_names(plain)]
    unique = {id(x): x for x in found if isinstance(x, kind) and not isinstance(x, AutoGuide)}
    return list(unique.values())


def _unwrapped(function: Any) -> Iterator[Any]:
    """A function of Python and those that it wraps by ``functools.wraps``."""
    function = getattr(function, "__func__", function)
    while function is not None:
        if inspect.isfunction(function):
            yield function
        function = getattr(function, "__wrapped__", None)


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function and of the functions inside of it."""
    waiting = [plain.__code__ for plain in _unwrapped(function)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]


def _global_names(function: Callable[..., Any]) -> list[str]:
    """In the order of their use; those of attributes, which ``co_names`` has, too, are left out."""
    loads = (i for code in _codes(function) for i in dis.get_instructions(code))
    return [i.argval for i in loads if i.opname == "LOAD_GLOBAL"]


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a variable that is assigned later
        return True
    return False
