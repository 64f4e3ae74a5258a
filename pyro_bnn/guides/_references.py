"""Reads off a function which modules it uses."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
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
        names = {n for f in _unwrapped(function) for c in _codes(f.__code__) for n in c.co_names}
        found += [value for name, value in attributes.items() if name in names]
    for plain in _unwrapped(function):
        cells = plain.__closure__ or ()
        found += [cell.cell_contents for cell in cells if not _is_empty(cell)]
        found += [plain.__globals__.get(name) for name in _global_names(plain.__code__)]
    unique = {id(x): x for x in found if isinstance(x, kind) and not isinstance(x, AutoGuide)}
    return list(unique.values())


def _unwrapped(function: Any) -> Iterator[Any]:
    """A function of Python and those that it wraps by ``functools.wraps``."""
    function = getattr(function, "__func__", function)
    while function is not None:
        if inspect.isfunction(function):
            yield function
        function = getattr(function, "__wrapped__", None)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of the functions inside of it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _global_names(code: CodeType) -> list[str]:
    """Of variables alone; ``co_names``, of which ``getclosurevars`` makes them, has attributes."""
    loads = (i for part in _codes(code) for i in dis.get_instructions(part))
    return [i.argval for i in loads if i.opname == "LOAD_GLOBAL"]


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a variable that is assigned later
        return True
    return False
