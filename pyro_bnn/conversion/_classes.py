"""Classes of modules: torch's, Pyro's of the same computation, and those with random weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from pyro.nn import PyroModule
from torch import nn

from .. import nn as layers
from .._pyro import MADE_CLASSES
from ..nn._layer import BayesianLayer, show_arguments

# Torch's layers that are linear in their input and in their weight.
LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

_MADE: dict[tuple[str, type], Any] = {}


def torch_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The plain class that computes what a Pyro class does; None if there is none.

    There is one for what this library and ``PyroModule[...]`` make, and for their subclasses that
    leave the computation alone; a network whose forward is written in a PyroModule has none.
    """
    if not issubclass(cls, PyroModule):
        return cls
    plain: Any = next(c for c in cls.__mro__ if _is_plain(c))
    written = [c for c in cls.__mro__[: cls.__mro__.index(plain)] if not _is_made(c)]
    return None if plain is nn.Module or any("forward" in vars(c) for c in written) else plain


def bayesian_class(cls: Any) -> Any:
    """The subclass of a module's class whose parameters may be random."""
    if issubclass(cls, BayesianLayer):
        return cls
    if cls in MADE_CLASSES.values():
        cls = torch_class(cls) or cls
    base = _layer(cls)
    if base is not None and torch_class(base) is cls:
        return base
    mixins = (BayesianLayer,) if base is None else (base,)
    if issubclass(cls, nn.ParameterList):
        mixins = (_Slices, *mixins)
    return _made("Bayesian", cls, mixins)


def pyro_class(cls: Any) -> Any:
    """The subclass of a module's class that Pyro can handle, with deterministic parameters."""
    if issubclass(cls, nn.Sequential):
        return _made("Pyro", cls, (_Slices,))
    return _pyros(cls)


def _pyros(cls: Any) -> Any:
    """``PyroModule[cls]``, also of a class of which Pyro can make or copy none."""
    if cls not in MADE_CLASSES and not issubclass(cls, PyroModule) and _is_beyond_pyro(cls):
        bases = tuple(_pyros(base) for base in cls.__bases__ if issubclass(base, nn.Module))
        # There, so that `PyroModule[...]` of this class and of those derived from it finds it.
        MADE_CLASSES[cls] = _subclass("Pyro", cls, (), (cls, *bases))
    return PyroModule[cls]


def _is_beyond_pyro(cls: type) -> bool:
    """Whether a class has another metaclass, an ``__init_subclass__``, or ``__slots__``."""
    own = {name for c in cls.__mro__[:-1] for name in vars(c)}
    return type(cls) is not type or not own.isdisjoint({"__init_subclass__", "__slots__"})


def _made(prefix: str, cls: Any, mixins: tuple[type, ...]) -> Any:
    """A class of its own for ``cls`` with mixins, always the same."""
    if (prefix, cls) not in _MADE:
        made = _subclass(prefix, cls, mixins, (*mixins, _pyros(cls)))
        if issubclass(made, BayesianLayer):
            show_arguments(made)
        _MADE[prefix, cls] = made
    return _MADE[prefix, cls]


def _subclass(prefix: str, cls: Any, mixins: tuple[type, ...], bases: tuple[Any, ...]) -> Any:
    members = {
        "__reduce__": _reduce,
        "__module__": cls.__module__,
        "_converted": (prefix, cls, mixins),
    }
    metas = set(map(type, bases))
    metas = {m for m in metas if not any(issubclass(n, m) for n in metas - {m})}
    metaclass: Any = type("_Metaclass", tuple(metas), {}) if len(metas) > 1 else metas.pop()
    name = prefix + cls.__name__.removeprefix("Pyro")
    return metaclass(name, (_silent(), *bases), members)


def _silent() -> type:
    """A base that keeps what a class does to its subclasses from those that are made here.

    It may want arguments, and what it sets on a class it has set on the one that is converted. A
    new base for each, since one for all could not be in front of every class.
    """

    class Silent:
        def __init_subclass__(cls, **kwargs: Any) -> None:
            if "_converted" not in vars(cls):
                super().__init_subclass__(**kwargs)

    return Silent


class _Slices:
    """A slice of a converted container is not another one, which would rename what is in it."""

    def __getitem__(self: Any, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)  # type: ignore[misc]
        if isinstance(self, nn.Sequential):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return [self[i] for i in range(*index.indices(len(self)))]


def _layer(cls: type[nn.Module]) -> Any:
    """The layer of this library for a class of torch's, or for one that computes like it."""
    for name in layers.__all__:
        layer = getattr(layers, name)
        plain: Any = torch_class(layer)
        # A layer with a forward of its own would replace that of the class.
        same = cls.forward is plain.forward or "forward" not in vars(layer)
        if issubclass(cls, plain) and same:
            return layer
    return None


def _is_made(cls: type) -> bool:
    """Whether a class is this library's, or one that Pyro or it has made of another."""
    is_pyros = cls in MADE_CLASSES.values()
    return is_pyros or "_converted" in vars(cls) or cls.__module__.startswith(layers.__name__)


def _is_plain(cls: type) -> bool:
    return issubclass(cls, nn.Module) and not issubclass(cls, PyroModule)


def _reduce(self: Any) -> tuple[Any, ...]:
    # The class has no name to be found by, as that of a layer has.
    return _new, self._converted, self.__getstate__()


def _new(prefix: str, cls: type[nn.Module], mixins: tuple[type, ...]) -> Any:
    new = _made(prefix, cls, mixins) if mixins else _pyros(cls)
    return new.__new__(new)
