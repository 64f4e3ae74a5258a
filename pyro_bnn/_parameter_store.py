"""Keeps networks of the same parameter names apart in Pyro's global parameter store."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._gradients import alive
from ._pyro import STACK, Context, held_parameters, make_name, put
from ._recomputation import Call, is_recomputing, is_recorded, recalled

ROOT = "_root_of_parameters"  # an attribute
# Parameters that some module has put into the store, as opposed to loaded ones.
_REGISTERED = WeakTensorKeyDictionary()


class IsolatedContext(Context):
    """The context of a module under which the global store holds that module's parameters.

    Pyro finds parameters by name in one store for the whole process, so that two models with a
    parameter ``0.bias`` train one and the same, or one of them not at all. Whenever a module
    with this context is entered, its own tensors take their names in the store. What has been
    loaded into the store from a file is first copied into the module, as Pyro does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._root: Callable[[], PyroModule | None] = _nothing
        self._calls: list[Call] = []
        self._max_calls = 8
        self._call: Call | None = None  # the last of them

    @property
    def root(self) -> PyroModule | None:
        """The module, if it is there."""
        return self._root()

    def __enter__(self) -> None:
        if not self.active:
            self.claim()
            self._call = None
        super().__enter__()

    def get(self, name: str) -> Tensor | None:
        value = super().get(name)
        # Outside of the handlers that gave it, unless they are recomputed, too.
        if value is None and is_recomputing() and not any(map(_traces_samples, STACK)):
            value = self._computed(name)
            value = recalled(self._calls, name) if value is None else value
            if value is None:
                raise ValueError(
                    f"the activations of a network are recomputed, and the value of `{name}` is no "
                    "longer known: train by `SVI`, `TraceKL_ELBO` or `pyro_bnn.compat.Standalone`"
                )
        return value

    def set(self, name: str, value: Tensor) -> None:
        super().set(name, value)
        if is_recorded():
            if self._call is None:
                self._call = Call()
                if len(self._calls) >= self._max_calls:  # seldom, since thousands may be alive
                    self._calls = [call for call in self._calls if call.is_alive]
                    self._max_calls = 2 * len(self._calls) + 8
                self._calls.append(self._call)
            self._call.add(name, value)

    def _computed(self, name: str) -> Tensor | None:
        """The value of a site that is a function of others, which is recomputed with them."""
        key = name.rpartition(".")[2]
        for module in () if self.root is None else self.root.modules():
            prior = vars(module).get("_pyro_samples", {}).get(key)
            if prior is not None and make_name(vars(module)["_pyro_name"], key) == name:
                value = None if hasattr(prior, "sample") else prior(module)
                return value if isinstance(value, Tensor) else None
        return None

    def claim(self, names_in_use: bool = False) -> None:
        """Puts the module's parameters into the store, maybe those only whose names it has."""
        root = self.root
        if root is None or pyro.settings.get("module_local_params"):
            return
        store = pyro.get_param_store()
        params = held_parameters(store)
        of_modules: set[int] | None = None
        for name, parameter, constraint in _store_entries(root):
            held = params.get(name)
            if held is parameter or (held is None and names_in_use):
                continue
            if held is not None and held not in _REGISTERED:
                of_modules = _of_modules() if of_modules is None else of_modules
                if id(held) not in of_modules:
                    _adopt(name, parameter, held)
            put(store, name, parameter, constraint)
            _REGISTERED[parameter] = True

    def __reduce__(self) -> tuple:
        return IsolatedContext, ()  # of a part that is copied or pickled without its root


OwnParameters = IsolatedContext  # its name in pickles of 0.1.0


class _Root:
    """An attribute of a root that gives its copies and pickles contexts of their own.

    The context cannot: it is an attribute of every part, which would take the root along.
    """

    def __init__(self, root: PyroModule, context: IsolatedContext) -> None:
        self.__setstate__((root, context))

    def __setstate__(self, state: tuple[PyroModule, IsolatedContext]) -> None:
        root, self._context = state
        self._ref = self._context._root = weakref.ref(root)

    def __reduce__(self) -> tuple:
        return copyreg.__newobj__, (_Root,), (self._ref(), self._context)  # type: ignore[attr-defined]


def _traces_samples(handler: Any) -> bool:
    """Unlike that of `SVI` around its backward pass, which is for parameters."""
    return isinstance(handler, TraceMessenger) and not handler.param_only


def _nothing() -> None:
    return None


def isolated_context(root: PyroModule) -> IsolatedContext:
    """Gives a module and all of its submodules a context that keeps their parameters apart."""
    if isinstance(root._pyro_context, IsolatedContext) and root._pyro_context.root is root:
        return root._pyro_context
    old, new = root._pyro_context, IsolatedContext()
    new.used = old.used
    vars(root)[ROOT] = _Root(root, new)
    for module in root.modules():
        if isinstance(module, PyroModule) and module._pyro_context is old:
            module._pyro_context = new
    return new


def _store_entries(
    root: PyroModule,
) -> Iterator[tuple[str, Tensor, constraints.Constraint]]:
    """The parameters of a module under the names that Pyro gives them in its store."""
    # By hand, since this is done at each step, and `modules()` takes several times longer.
    waiting: list[nn.Module | None] = [root]
    seen = set()
    while waiting:
        module = waiting.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        waiting.extend(module._modules.values())
        if not isinstance(module, PyroModule) or module._pyro_context is not root._pyro_context:
            continue
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = key
            constraint: constraints.Constraint = constraints.real
            if key.endswith("_unconstrained"):
                name = key[: -len("_unconstrained")]
                constraint, _ = module._pyro_params[name]
            yield make_name(module._pyro_name, name), parameter, constraint
        for key, child in module._modules.items():
            if child is not None and not isinstance(child, PyroModule):
                prefix = make_name(module._pyro_name, key)
                yield from _plain_entries(prefix, child)


def _plain_entries(
    prefix: str, module: nn.Module
) -> Iterator[tuple[str, Tensor, constraints.Constraint]]:
    for name, parameter in module.named_parameters():
        yield param_with_module_name(prefix, name), parameter, constraints.real


def _of_modules() -> set[int]:
    """The ids of the parameters of all modules: another model put them there, not a file."""
    modules = alive(nn.Module)
    return {id(p) for m in modules for p in vars(m).get("_parameters", {}).values()}


def _adopt(name: str, parameter: Tensor, loaded: Tensor) -> None:
    if loaded.shape != parameter.shape:
        raise ValueError(
            f"the parameter store holds `{name}` of shape {tuple(loaded.shape)}, but this module "
            f"has one of shape {tuple(parameter.shape)}: call `pyro.clear_param_store()` unless "
            "you loaded it for this module"
        )
    with torch.no_grad():
        parameter.copy_(loaded)
