"""What a checkpoint holds of each object, and what must agree with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from .._pyro import waiting_states
from ..guides import AutoPosterior
from ..guides._sites import referred_modules

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


class Stateful:
    """An object with ``state_dict`` and ``load_state_dict``."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def kind(self) -> Any:
        """What must be equal for a state to be this object's."""
        return {"": getattr(self.obj, "kind_of_state", type(self.obj).__name__)}

    def state(self) -> Any:
        return self.obj.state_dict()

    def load(self, state: Any) -> None:
        self.obj.load_state_dict(state)

    def differences(self, kind: Any, state: Any) -> Iterator[str]:
        yield from check(kind, self.kind())


class Module(Stateful):
    """A torch module: its architecture, and its parameters and buffers."""

    def kind(self) -> dict[str, str]:
        return {path: _described(module) for path, module in self.obj.named_modules()}

    def differences(self, kind: Any, state: Any) -> Iterator[str]:
        # A guide that has not been called yet makes room for more when it is loaded.
        late = tuple(
            f"{path}.posteriors.".lstrip(".")
            for path, module in self.obj.named_modules()
            if isinstance(module, AutoPosterior) and module.prototype_trace is None
        )
        own, kinds = self.state(), self.kind()
        added = {n for n in (*kind, *state) if n not in own and n not in kinds}
        added = {n for n in added if late and n.startswith(late)}
        yield from check({n: k for n, k in kind.items() if n not in added}, kinds)
        saved = {n: x for n, x in state.items() if n not in added}
        yield from check(_sizes(saved), _sizes(own))


class Optimizer(Stateful):
    """An optimizer of torch: its parameter groups, and the shapes of its states."""

    def kind(self) -> dict[str, Any]:
        sizes = [len(group["params"]) for group in self.obj.param_groups]
        return {"": type(self.obj).__name__, "sizes of groups": sizes}

    def differences(self, kind: Any, state: Any) -> Iterator[str]:
        yield from check(kind, self.kind())
        parameters = [p for group in self.obj.param_groups for p in group["params"]]
        for i, entries in state["state"].items():
            for key, value in entries.items():
                suits = i >= len(parameters) or value is None or not isinstance(value, Tensor)
                if not suits and value.dim() and value.shape != parameters[i].shape:
                    yield (
                        f"`{key}` of parameter {i} has the shape {tuple(value.shape)} there, "
                        f"{tuple(parameters[i].shape)} here"
                    )


class Store(Stateful):
    """Parameters in Pyro's store that belong to no module, by name."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(pyro.get_param_store())
        self.names = list(names)

    def state(self) -> dict[str, Tensor]:
        held = dict(self.obj.named_parameters())
        return {name: held[name].detach() for name in self.names}

    @torch.no_grad()
    def load(self, state: Any) -> None:
        held = dict(self.obj.named_parameters())
        for name, value in state.items():
            held[name].copy_(value)

    def differences(self, kind: Any, state: Any) -> Iterator[str]:
        held = dict(self.obj.named_parameters())
        missing = [name for name in state if name not in held]
        if missing:
            yield f"it has no {missing} yet: call model and guide once, with data, before"
        known = {name: value for name, value in state.items() if name in held}
        sizes = {name: _size(held[name]) for name in known}
        yield from check({name: _size(value) for name, value in known.items()}, sizes)


class PyroOptimizer(Stateful):
    """An optimizer of ``pyro.optim``."""

    def state(self) -> Any:
        # What has been loaded waits for the parameters' next step.
        return waiting_states(self.obj) | self.obj.get_state()

    def names(self) -> list[str]:
        """The names in Pyro's store of the parameters that have a state."""
        param_name = pyro.get_param_store().param_name
        return [*waiting_states(self.obj), *map(param_name, self.obj.optim_objs)]

    def load(self, state: Any) -> None:
        self.obj.optim_objs.clear()
        self.obj.grad_clip.clear()
        self.obj.set_state(dict(state))

    def kind(self) -> dict[str, Any]:
        return {"": getattr(self.obj.pt_optim_constructor, "__name__", "")}


class Generator(Stateful):
    """A random number generator."""

    def state(self) -> Any:
        return self.obj.get_state()

    def load(self, state: Any) -> None:
        self.obj.set_state(state)


def adapters(objects: dict[str, Any]) -> tuple[dict[str, Stateful], dict[str, Any]]:
    """Objects with a state by name, and the others, which are values."""
    found: dict[str, Stateful] = {}
    values = {}
    for name, obj in objects.items():
        parts = {name: obj}
        if isinstance(obj, SVI):
            parts = {f"{name}.{key}": getattr(obj, key) for key in ("guide", "optim")}
            parts |= modules(f"{name}.model", obj.model)
        for key, part in parts.items():
            if _has_state(part):
                found[key] = _adapter(part)
            else:
                values[key] = part
    held = dict(pyro.get_param_store().named_parameters())
    own = {id(p) for a in found.values() if isinstance(a, Module) for p in a.obj.parameters()}
    for key, adapter in list(found.items()):
        if isinstance(adapter, PyroOptimizer):
            others = [n for n in adapter.names() if n in held and id(held[n]) not in own]
            found[f"{key} (parameter store)"] = Store(others)
    return found, values


def modules(name: str, model: Callable[..., Any]) -> dict[str, nn.Module]:
    """The modules of a model, which may be a function or inside handlers, under names."""
    found = referred_modules(model, nn.Module)
    return {name: found[0]} if found == [model] else {f"{name}.{i}": m for i, m in enumerate(found)}


def _has_state(obj: Any) -> bool:
    kinds = (Stateful, PyroOptim, torch.Generator)
    return isinstance(obj, kinds) or (hasattr(obj, "state_dict") and not isinstance(obj, type))


def _adapter(obj: Any) -> Stateful:
    if isinstance(obj, Stateful):
        return obj
    if isinstance(obj, nn.Module):
        return Module(obj)
    if isinstance(obj, torch.optim.Optimizer):
        return Optimizer(obj)
    if isinstance(obj, PyroOptim):
        return PyroOptimizer(obj)
    return Generator(obj) if isinstance(obj, torch.Generator) else Stateful(obj)


def check(saved: Any, given: Any, path: str = "") -> list[str]:
    """What differs between the plain data of a checkpoint and those that are given."""
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        names = {key: f"{path}.{key}".lstrip(".") for key in (*saved, *given)}
        found = [f"`{names[k]}` is there, not here" for k in saved if k not in given]
        found += [f"`{names[k]}` is here, not there" for k in given if k not in saved]
        both = [k for k in saved if k in given]
        return found + [text for k in both for text in check(saved[k], given[k], names[k])]
    if isinstance(saved, (list, tuple)) and isinstance(given, (list, tuple)):
        return check(dict(enumerate(saved)), dict(enumerate(given)), path)
    if isinstance(saved, Tensor) and isinstance(given, Tensor):
        same = saved.shape == given.shape and torch.equal(saved, given.to(saved))
    else:
        same = type(saved) is type(given) and saved == given
    name = f"`{path}`" if path else "it"
    return [] if same else [f"{name} is {saved} there, {given} here"]


def plain(value: Any, name: str) -> Any:
    """Tensors and plain data as they are; others are refused."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        made = {plain(key, name): plain(x, f"{name}.{key}") for key, x in value.items()}
        if hasattr(value, "_metadata"):  # the versions of modules, in what `state_dict` returns
            made = OrderedDict(made)
            vars(made)["_metadata"] = value._metadata
        return made
    if isinstance(value, (list, tuple)):
        kind = tuple if hasattr(value, "_fields") else type(value)  # of a namedtuple
        return kind(plain(x, f"{name}.{i}") for i, x in enumerate(value))
    raise TypeError(
        f"`{name.lstrip('.')}` (={value!r}) is neither a tensor nor plain data, nor has it a "
        "`state_dict`: leave it out, or save what it is made of"
    )


def _described(module: nn.Module) -> str:
    """The class of a module and its constants, such as the stride of a convolution."""
    names = getattr(module, "__constants__", ())
    constants = [f"{n}={vars(module)[n]!r}" for n in names if n in vars(module)]
    return f"{type(module).__name__}({', '.join(constants)})"


def _sizes(state: Mapping[str, Any]) -> dict[str, str]:
    """Of what a module has, but what classes save besides, which they check themselves."""
    return {name: _size(x) for name, x in state.items() if not name.endswith("_extra_state")}


def _size(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
