"""Layers that compute what torch's do without being instances of their classes."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import nn


@cache
def like(cls: type[nn.Module]) -> Any:
    """A base class with the constructor, attributes and computation of one of torch's.

    Its instances have no ``weight`` that could be set, so code that sets the weights of every
    ``nn.Conv2d`` of a network, as many an initialisation does, must pass them by.
    """

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(cls(*args, **kwargs)))

    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(nn.Module)]):
        members |= {name: value for name, value in vars(base).items() if _computes(name, value)}
    members |= {"_of": cls, "__init__": init, "__module__": __name__, "__doc__": cls.__doc__}
    return type(cls.__name__, (nn.Module,), members)


def _computes(name: str, value: Any) -> bool:
    if not inspect.isfunction(value) or name.startswith("__") or name == "reset_parameters":
        return False
    return "__class__" not in value.__code__.co_freevars  # `super` works in subclasses only
