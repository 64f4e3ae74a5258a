"""A second body for a network: the same state, without Pyro's part in the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from pyro.nn import PyroModule
from torch import nn

_SHARED = (
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_pyro_samples",
    "_pyro_params",
)


def twin(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    """A module that computes what ``module`` does, on the very same parameters and buffers.

    A PyroModule reads each attribute through Pyro's handlers. Its twin reads it directly, and
    finds a weight that has been put into its ``__dict__``; everything else that it is asked for
    it takes from the module, at the time of asking.

    Args:
        module: any module; one without PyroModules inside is its own twin.
        twins: twins made so far, by the ``id`` of their modules.
    """
    if id(module) in twins:
        return twins[id(module)]
    if not isinstance(module, PyroModule):
        return module
    new: nn.Module = object.__new__(_twin_class(type(module)))
    twins[id(module)] = new
    state = new.__dict__
    state["_ties"] = {
        key: (twin(owner, twins), own_key)
        for key, (owner, own_key) in module.__dict__.get("_ties", {}).items()
    }
    state.update({key: module.__dict__[key] for key in _SHARED if key in module.__dict__})
    state["_original"] = module
    state["_modules"] = {
        key: None if child is None else twin(child, twins) for key, child in module._modules.items()
    }
    return new


def _getattr(self: Any, name: str) -> Any:
    state = self.__dict__
    for store in ("_parameters", "_buffers", "_modules"):
        if name in state[store]:
            return state[store][name]
    if name in state["_ties"]:
        return getattr(*state["_ties"][name])
    if name in state["_pyro_samples"]:  # without a draw of its own: a function of other sites
        return state["_pyro_samples"][name](self)
    return getattr(state["_original"], name)


def _setattr(self: Any, name: str, value: Any) -> None:
    setattr(self.__dict__["_original"], name, value)


def _extra_repr(self: Any) -> str:  # torch's looks into the __dict__ itself
    return self.__dict__["_original"].extra_repr()


def _defaults(cls: type) -> Iterator[str]:
    """Attributes that a class has a value for, which a module may have its own value of."""
    for base in cls.__mro__:
        if base not in (nn.Module, PyroModule, object):
            for name, value in vars(base).items():
                if not name.startswith("__") and not hasattr(value, "__get__"):
                    yield name


def _reader(name: str) -> Callable[[Any], Any]:
    return lambda self: getattr(self.__dict__["_original"], name)


@cache
def _twin_class(cls: type) -> type:
    members: dict[str, Any] = {name: property(_reader(name)) for name in _defaults(cls)}
    members |= {
        "__getattr__": _getattr,
        "__setattr__": _setattr,
        "extra_repr": _extra_repr,
        "__call__": nn.Module.__call__,
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (cls,), members)
