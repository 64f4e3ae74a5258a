"""Pyro modules made of torch's in place, and weights made random in them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from pyro.nn import PyroModule
from torch import nn

from .._parameter_store import isolated_context
from .._pyro import Context, make_name
from ..nn import BayesianEmbedding
from ..nn._layer import SitePrior
from ..nn._prior import Prior
from ._classes import bayesian_class, pyro_class
from ._weights import Weight


def make_pyro(net: nn.Module, random: set[int]) -> None:
    """Makes Pyro modules of all that have parameters, and of all that these are in.

    Args:
        random: the ``id`` of modules with parameters that become random.
    """
    for module in [m for m in net.modules() if _has_weights(m)]:
        if id(module) in random:
            module.__class__ = bayesian_class(type(module))
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
        elif not isinstance(module, PyroModule):
            module.__class__ = pyro_class(type(module))
        if isinstance(module, nn.RNNBase):  # Pyro's class reads the attributes themselves
            vars(module).pop("_flat_weights", None)
        for name, make in _PYRO_STATE.items():
            vars(module).setdefault(name, make())


def _has_weights(module: nn.Module) -> bool:
    return any(m._parameters or vars(m).get("_pyro_samples") for m in module.modules())


_PYRO_STATE: dict[str, Any] = {
    "_pyro_name": str,
    "_pyro_context": Context,
    "_pyro_params": OrderedDict,
    "_pyro_samples": OrderedDict,
}


def make_random(module: Any, key: str, prior: Prior) -> None:
    """Gives a module a site with this prior."""
    module._modules[key + "_prior"] = prior
    module._pyro_samples[key] = SitePrior(key + "_prior")


def randomize(weight: Weight, prior: Prior) -> None:
    """Makes a weight random in all of its places."""
    module: Any
    owner: Any = weight.module
    make_random(owner, weight.key, prior)
    is_shared = len({(id(module), key) for _, module, key in weight.places}) > 1
    for _, module, key in weight.places:
        if module._parameters.pop(key, None) is not None and isinstance(module, BayesianEmbedding):
            # A row that other modules share is as live as theirs.
            module.keep_padding(None if is_shared else prior.initial)
        if (module, key) != (owner, weight.key):
            vars(module).setdefault("_ties", {})[key] = (owner, weight.key)


def join(net: Any) -> None:
    """Gives all Pyro modules of a network their names, and one context."""
    if not isinstance(net, PyroModule):
        return
    root = net._pyro_name
    context = net._pyro_context if root else Context()  # as if it had never run
    for path, module in net.named_modules():
        if isinstance(module, PyroModule):
            module._pyro_name = make_name(root, path) if path else root
            module._pyro_context = context
    if not root:
        isolated_context(net)
