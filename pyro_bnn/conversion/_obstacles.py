"""What stands in the way of a network's conversion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..nn import BayesianEmbedding
from ..nn._prior import Prior
from ._classes import bayesian_class
from ._weights import Weight


def check_convertible(net: nn.Module, chosen: list[Weight]) -> None:
    """Refuses modules, and parameters to become random, that cannot be converted."""
    for path, module in net.named_modules():
        reason = _obstacle(module)
        if reason:
            raise TypeError(f"`{path or 'net'}`, a {type(module).__name__}, {reason}")
    for weight in chosen:
        for path, module, key in weight.places:
            reason = _reason(module, key, weight)
            if reason:
                raise TypeError(
                    f"`{path or 'net'}`, a {type(module).__name__}, cannot have a random "
                    f"`{key}`: {reason}. Leave it deterministic by `where=lambda name, module: "
                    f'name != "{weight.name}"`, or by another `where`'
                )
    _check_references(net, {id(w.parameter): w for w in chosen if w.parameter is not None})


def _obstacle(module: nn.Module) -> str | None:
    """Why a network with this module cannot be converted, whatever its parameters."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript: convert the network that it was made of"
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "copies or registers parameters by itself: convert its `.module` before wrapping it"
    if any(p is not None and is_lazy(p) for p in module._parameters.values()):
        return "has no shapes yet: run the network once, so that it gets them"
    if type(module).__name__ == "OptimizedModule":
        return "is compiled: convert the network first, and compile it then"
    return None


def _reason(module: nn.Module, key: str, weight: Weight) -> str | None:
    """Why an attribute of a module cannot be random."""
    parameter = weight.parameter
    if parameter is not None and not parameter.is_floating_point():
        return f"its dtype is {parameter.dtype}, and priors are over real numbers"
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    is_parametrization = isinstance(module, nn.utils.parametrize.ParametrizationList)
    if isinstance(module, containers) and not is_parametrization:
        return "the priors would be among the modules that it goes through"
    if not isinstance(getattr(module, key + "_prior", None), (Prior, type(None))):
        return f"it has another attribute `{key}_prior`"
    if getattr(module, "sparse", False) is True:
        return "it is `sparse`, but the KL divergence from the prior has a gradient in all rows"
    if getattr(module, "max_norm", None) is not None:
        cls = type(module) if parameter is None else bayesian_class(type(module))
        if not issubclass(cls, BayesianEmbedding):
            return "its `max_norm` would change the drawn weight in place"
    return None


def _check_references(net: nn.Module, chosen: dict[int, Weight]) -> None:
    """Refuses parameters that a module also keeps where Pyro cannot draw them."""
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if name in _REGISTRIES or (isinstance(module, nn.RNNBase) and name == "_flat_weights"):
                continue
            for tensor in _tensors_in(value):
                if id(tensor) in chosen:
                    weight = chosen[id(tensor)]
                    raise TypeError(
                        f"`{path or 'net'}`, a {type(module).__name__}, keeps the parameter "
                        f"`{weight.name}` in its attribute `{name}` too, where no draw can take "
                        f"its place. Read it as an attribute, or leave it deterministic by "
                        f'`where=lambda name, module: name != "{weight.name}"`'
                    )


_REGISTRIES = {"_parameters", "_buffers", "_modules", "_ties", "_pyro_samples", "_pyro_params"}


def _tensors_in(value: Any, depth: int = 3) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth - 1)
