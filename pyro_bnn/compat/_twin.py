"""Second bodies of modules: the same state, with attributes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from pyro.nn import PyroModule
from torch import nn

from .._bound import kept, rebound
from .._recomputation import again

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


class Twins:
    """Makes twins of the modules of a network, again and again.

    A twin computes what its module does, on the very same parameters and buffers, and has
    attributes of its own: the weights of one call, which no other call can see, be it in another
    thread or in the midst of this one. Whatever is assigned to it is the module's, too. A
    PyroModule reads each attribute through Pyro's handlers; its twin reads it directly.

    Args:
        root: the network.
        kind: class of the modules that need a twin. All that contain one have twins, too.
        other: class of modules that need none, nor does what is in them.

    Attributes:
        index: the position among twins, by the ``id`` of a module. The root comes last.
    """

    def __init__(
        self, root: nn.Module, kind: type[nn.Module], other: type[nn.Module] | tuple[()] = ()
    ) -> None:
        self.index: dict[int, int] = {}
        self._parts: list[tuple[nn.Module, type, list[tuple[str, int]]]] = []
        self._kind, self._other = kind, other
        self._add(root)
        # What is kept, as by `layer.forward = wrapped(layer.forward)`, refers to the modules.
        self._bound = [
            (i, key) for i, (module, *_) in enumerate(self._parts) for key in kept(module)
        ]

    def _add(self, module: nn.Module) -> int | None:
        if id(module) in self.index:
            return self.index[id(module)]
        if isinstance(module, self._other):
            return None
        found = {k: self._add(m) for k, m in module._modules.items() if m is not None}
        children = [(key, i) for key, i in found.items() if i is not None]
        if not children and not isinstance(module, self._kind):
            return None
        self._parts.append((module, _twin_class(type(module)), children))
        self.index[id(module)] = len(self._parts) - 1
        return self.index[id(module)]

    def __call__(self) -> list[Any]:
        """New twins with all attributes that the modules have now."""
        twins: list[Any] = []
        for module, cls, children in self._parts:
            new = _body(module, cls)
            if children:
                modules = new.__dict__["_modules"] = module._modules.copy()
                for key, i in children:
                    modules[key] = twins[i]
            twins.append(new)
        return self._rebound(twins)

    def lasting(self) -> list[Any]:
        """New twins that ask the modules for attributes at the time of asking."""
        twins: list[Any] = []
        for module, cls, children in self._parts:
            new: Any = object.__new__(cls)
            state = new.__dict__
            state.update({key: vars(module)[key] for key in _SHARED if key in vars(module)})
            state["_modules"] = module._modules | {key: twins[i] for key, i in children}
            state["_original"] = module
            state["_drawn"] = {}
            twins.append(new)
        return self._rebound(twins)

    def _rebound(self, twins: list[Any]) -> list[Any]:
        def other(value: Any) -> Any:
            return twins[self.index[id(value)]] if id(value) in self.index else value

        for i, key in self._bound:
            twins[i].__dict__[key] = rebound(vars(self._parts[i][0]).get(key), other)
        return twins


def twin(module: nn.Module) -> Any:
    """A twin of one module alone."""
    return _body(module, _twin_class(type(module)))


def _body(module: nn.Module, cls: type) -> Any:
    new: Any = object.__new__(cls)
    state = new.__dict__
    state.update(module.__dict__)
    state["_original"] = module
    state["_drawn"] = {}
    return new


class _Twin:
    """The part of a twin's class in front of the module's."""

    def __init_subclass__(cls) -> None:  # a module's class may want arguments
        pass

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        if name in state["_drawn"]:
            return again(state["_drawn"][name])
        for store in ("_parameters", "_buffers", "_modules"):
            if name in state[store]:
                return state[store][name]
        if name in state.get("_ties", ()):
            return getattr(*state["_ties"][name])
        if name in state.get("_pyro_samples", ()):  # without a draw: a function of other sites
            return state["_pyro_samples"][name](self)
        return getattr(state["_original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        original = self.__dict__["_original"]
        setattr(original, name, value)
        if name in vars(original) and name in self.__dict__:
            self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_original"], name)
        self.__dict__.pop(name, None)

    def extra_repr(self) -> str:  # torch's looks into the __dict__ itself
        return self.__dict__["_original"].extra_repr()


def _defaults(cls: type) -> Iterator[str]:
    """Attributes that a class has a value for, which a module may have its own value of."""
    for base in cls.__mro__:
        if base not in (nn.Module, PyroModule, object):
            for name, value in vars(base).items():
                if not name.startswith("__") and not hasattr(value, "__get__"):
                    yield name


def _reader(name: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        state = self.__dict__
        return state[name] if name in state else getattr(state["_original"], name)

    return read


# By the id of a class, which lives as long as its twin's class does.
_CLASSES: WeakValueDictionary[int, type] = WeakValueDictionary()


def _twin_class(cls: Any) -> type:
    if issubclass(cls, _Twin):
        return cls
    made = _CLASSES.get(id(cls))
    if made is None:
        members: dict[str, Any] = {name: property(_reader(name)) for name in _defaults(cls)}
        if cls.__call__ is PyroModule.__call__:
            members["__call__"] = nn.Module.__call__
        members["__module__"] = cls.__module__
        made = _CLASSES[id(cls)] = type(cls)(cls.__name__, (_Twin, cls), members)
    return made
