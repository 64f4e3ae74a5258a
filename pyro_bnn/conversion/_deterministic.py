"""A Bayesian network as a plain torch network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import transform_to

from .._parameter_store import ROOT
from ..estimators._draw import plain
from ..guides import AutoPosterior
from ..guides._checks import check_posteriors
from ..guides._sites import sample_attributes, samples_of
from ..nn import BayesianEmbedding
from ..nn._prior import Prior
from ._classes import torch_class
from ._weights import copied


@torch.no_grad()
def to_deterministic(
    net: nn.Module, guide: AutoPosterior, draw: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A plain torch network with the means of the posteriors as its weights, or with one draw.

    No class and no attribute of Pyro is left in it, so that it saves, compiles and exports
    (``torch.export``, ONNX) as any network of torch. Names, ties, buffers, hooks and modes are
    those of ``net``, which stays as it is.

    Args:
        net: a network with random weights, of torch's modules, this library's, ``PyroModule[...]``,
            or what :func:`~pyro_bnn.bayesianize` made of others.
        guide: a guide of it, or of a model that it is part of.
        draw: values by site name, as a call of the guide returns them. By default each weight is
            the mean of its posterior (the median where a prior has a constraint).

    Returns:
        The network, whose output is that of ``net`` with these weights.

    Raises:
        TypeError: if a forward is written in a PyroModule, so that there is no plain class of it,
            or an attribute is a function of other draws.
        ValueError: if a site has no posterior in the guide, or ``draw`` no value of its shape.

    Example:
        >>> net = bayesianize(torch.nn.Linear(3, 2))
        >>> guide = AutoLRT(net)
        >>> to_deterministic(net, guide)
        Linear(in_features=3, out_features=2, bias=True)
        >>> to_deterministic(net, guide, draw=guide(torch.ones(5, 3)))
        Linear(in_features=3, out_features=2, bias=True)
    """
    check_posteriors(net, guide)
    for path, module in net.named_modules():
        if not isinstance(module, Prior):
            _check_plain(path or "net", module)
    values = {
        (id(module), key): _value(name, fn.shape(), guide, draw)
        for name, module, key, fn in sample_attributes(net)
    }
    memo: dict[int, Any] = {}
    new = copied(net, memo)
    for module in list(net.modules()):
        if isinstance(module, PyroModule) and not isinstance(module, Prior):
            own = {key: values[id(module), key] for key, _ in samples_of(module)}
            _strip(memo[id(module)], own)
    for module in net.modules():
        for key, (owner, own_key) in vars(module).get("_ties", {}).items():
            memo[id(module)]._parameters[key] = memo[id(owner)]._parameters[own_key]
    modes = {module: module.training for module in new.modules()}
    new.eval()  # in which reading a parametrized weight changes nothing
    for module in modes:
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    for module, mode in modes.items():
        module.training = mode
    return new


def _check_plain(path: str, module: nn.Module) -> None:
    if torch_class(type(module)) is None:
        raise TypeError(
            f"`{path}`, a {type(module).__name__}, has its forward in a PyroModule: write it as a "
            "torch.nn.Module and convert it by `bayesianize`, or pass the network inside it"
        )
    functions = set(vars(module).get("_pyro_samples", ())) - {k for k, _ in samples_of(module)}
    if functions:
        raise TypeError(
            f"`{path}`, a {type(module).__name__}, has attributes that are functions of draws, "
            f"{sorted(functions)}: compute them in the forward of a torch.nn.Module"
        )


def _value(
    name: str, shape: torch.Size, guide: AutoPosterior, draw: Mapping[str, Tensor] | None
) -> Tensor:
    if draw is None:
        return guide[name].center()
    if name not in draw:
        raise ValueError(f"`draw` has no value for the site `{name}`: give one, as the guide does")
    value = plain(draw[name])
    if value.numel() != shape.numel():
        raise ValueError(
            f"`draw` has a value of shape {tuple(value.shape)} for `{name}`, whose shape is "
            f"{tuple(shape)}: take one draw of several, `value[i]`"
        )
    return value.reshape(shape)


_PYRO_STATE = ("_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples")


def _strip(module: Any, values: dict[str, Tensor]) -> None:
    """Makes a Pyro module a plain one, with given weights."""
    if isinstance(module, BayesianEmbedding) and module.padding_row is not None:
        values["weight"] = values["weight"].clone()
        values["weight"][module.padding_idx] = module.padding_row
    parameters, modules = module._parameters, module._modules
    for key, (constraint, _) in module._pyro_params.items():
        values[key] = transform_to(constraint)(parameters.pop(key + "_unconstrained"))
    for key, child in list(modules.items()):
        if isinstance(child, Prior):
            del modules[key]
    module._buffers.pop("padding_row", None)
    module.__class__ = torch_class(type(module))
    for key in (*_PYRO_STATE, "_ties", ROOT):
        vars(module).pop(key, None)
    parameters.update({key: nn.Parameter(value.clone()) for key, value in values.items()})
    if hasattr(module, "_become_plain"):  # a layer of another library's names
        module._become_plain()
