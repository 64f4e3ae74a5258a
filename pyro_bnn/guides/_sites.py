"""Reads the latent variables of a model off its modules, without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamHandler
from pyro.poutine.trace_messenger import TraceHandler
from torch import nn

from .._callers import callers
from .._parameter_store import isolated_context
from .._pyro import BoundPartial, make_name
from .._threads import PYRO
from ..nn._prior import Prior
from ._references import modules_of


def module_sites(model: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The sites of PyroSample attributes of a model's modules, as its handlers leave them latent.

    Args:
        model: a PyroModule or its method, or a function that refers to PyroModules, maybe
            inside handlers such as ``poutine.block``.

    Yields:
        The ``pyro.sample`` messages, with ``name``, ``fn`` and so on; ``infer["prior"]`` is the
        module of the prior, if there is one.

    Raises:
        ValueError: if PyroModules sit inside a module that is none, where Pyro would give them
            names that collide.
    """
    handlers, function = _unwrap(model)
    for root in modules_of(function, PyroModule):
        for name, module, key, fn in sample_attributes(root):
            yield from _latent_sites(handlers, name, fn, getattr(module, key + "_prior", None))


def sample_attributes(root: nn.Module) -> Iterator[tuple[str, PyroModule, str, Any]]:
    """Full name, module, key and prior of each PyroSample attribute that is random."""
    for owner in pyro_modules(root):
        for key, fn in samples_of(owner):
            yield make_name(owner._pyro_name, key), owner, key, fn


def samples_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Key and prior of the PyroSample attributes of a module that are random."""
    for key, prior in dict(vars(module).get("_pyro_samples", {})).items():
        fn = prior if hasattr(prior, "sample") else prior(module)
        if not isinstance(fn, torch.Tensor):  # a deterministic function of other sites
            yield key, fn


def model_parameters(model: Callable[..., Any]) -> Iterator[nn.Parameter]:
    """The parameters of the modules that a model is, or refers to; maybe of no use to it."""
    for root in referred_modules(model, nn.Module):
        yield from root.parameters()


def attribute_names(model: Callable[..., Any]) -> set[str]:
    """Full names of the PyroSample attributes of a model's modules."""
    return {
        make_name(module._pyro_name, key)
        for root in referred_modules(model)
        for module in root.modules()
        if isinstance(module, PyroModule)
        for key in vars(module).get("_pyro_samples", ())
    }


def own_state(model: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """The deterministic parameters and buffers of a model's modules, by name."""
    roots = [m for m in modules_of(_unwrap(model)[1], PyroModule) if isinstance(m, nn.Module)]
    return {name: value for root in roots for name, value in root.state_dict().items()}


def other_names(model: Callable[..., Any]) -> dict[str, str]:
    """Sites by the names that their weights have elsewhere in the model, where they are shared."""
    found = {}
    for root in modules_of(_unwrap(model)[1], PyroModule):
        for path, module in root.named_modules(remove_duplicate=False):
            own = {key: (module, key) for key in vars(module).get("_pyro_samples", ())}
            for key, (owner, own_key) in (own | vars(module).get("_ties", {})).items():
                path_in_model = make_name(getattr(root, "_pyro_name", ""), path)
                found[make_name(path_in_model, key)] = make_name(owner._pyro_name, own_key)
    return found


def own_model_parameters(model: Callable[..., Any]) -> None:
    """Keeps the parameters of a model's modules apart from those of other models."""
    for root in modules_of(_unwrap(model)[1], PyroModule):
        # A module with a name is part of another, or was named by the user to keep it apart.
        if isinstance(root, PyroModule) and not root._pyro_name:
            isolated_context(root).claim(names_in_use=True)


def referred_modules(
    model: Callable[..., Any], kind: type[nn.Module] = PyroModule
) -> list[nn.Module]:
    """The modules that a model, maybe inside handlers, is, is a method of, or names in its body."""
    return modules_of(_unwrap(model)[1], kind)


def is_handled(model: Callable[..., Any]) -> bool:
    """Whether a model is inside handlers such as ``poutine.block``, which may hide its data."""
    return bool(_unwrap(model)[0])


def may_observe() -> bool:
    """Whether the code that calls the running ``pyro.sample`` passes ``obs`` to such a call.

    Pyro does not tell ``obs=None`` from no ``obs``, but the code of a function lists the keywords
    that it passes.
    """
    caller = None
    for frame in callers():
        if frame.f_code is pyro.sample.__code__:  # of several, the model's encloses a handler's
            caller = frame.f_back
    keywords = () if caller is None else caller.f_code.co_consts
    return any(isinstance(names, tuple) and "obs" in names for names in keywords)


def pyro_modules(root: nn.Module) -> list[PyroModule]:
    """All PyroModules of a network, checked to share names and context with their root."""
    modules = []
    for path, module in root.named_modules():
        if not isinstance(module, PyroModule):
            continue
        for key in module._modules:
            getattr(module, key)  # lets Pyro name what was converted in place
        if not isinstance(root, PyroModule) or module._pyro_context is not root._pyro_context:
            raise ValueError(
                f"the PyroModule `{path}` is inside a module that is none, so that Pyro does not "
                f"know its full name: convert the whole {type(root).__name__} by "
                "`pyro.nn.module.to_pyro_module_(net)`, or build it of PyroModule[...]"
            )
        modules.append(module)
    return modules


def _unwrap(model: Callable[..., Any]) -> tuple[list[Messenger], Any]:
    handlers = []
    while True:
        if isinstance(model, BoundPartial):
            model = model.func
        elif isinstance(model, partial) and isinstance((*model.args, None)[0], Messenger):
            handlers.append(model.args[0])
            model = model.args[1]
        elif isinstance(model, (ReparamHandler, TraceHandler)):
            handlers.append(model.msngr)
            model = model.fn
        else:
            return handlers, model


def _latent_sites(handlers: list[Messenger], name: str, fn: Any, prior: Any) -> Iterator[Any]:
    infer: Any = {"prior": prior} if isinstance(prior, Prior) else {}

    def statement() -> None:
        pyro.sample(name, fn, infer=infer)

    wrapped: Callable[[], None] = InitMessenger(_placeholder)(statement)
    for handler in reversed(handlers):
        wrapped = handler(wrapped)
    with PYRO, poutine.block():
        trace = poutine.trace(wrapped).get_trace()
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"]:
            yield site


def _placeholder(site: dict[str, Any]) -> torch.Tensor:
    """A value that costs nothing, and that reparameterizers may replace."""
    value = torch.zeros(()).expand(site["fn"].shape())
    value._pyro_custom_init = False  # type: ignore[attr-defined]
    return value
