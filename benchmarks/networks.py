"""Torch networks made Bayesian by each library."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

import pyro_bnn.compat.bayesian_torch
from pyro_bnn.compat import Standalone, WithKL
from pyro_bnn.nn import BayesianConv2d, BayesianLinear, BayesianLSTM

Layers = Mapping[type[nn.Module], Callable[..., nn.Module]]


class NotMeasuredError(Exception):
    """A contender that cannot take part, and why."""


def substituted(net: nn.Module, layers: Layers) -> nn.Module:
    """The network with other layers, made of torch's, in their places."""
    for name, module in net.named_children():
        if type(module) in layers:
            setattr(net, name, layers[type(module)](module))
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.LSTM)):
            raise NotMeasuredError(f"has no layer for {type(module).__name__}")
        else:
            substituted(module, layers)
    return net


def _linear(cls: Callable[..., nn.Module], layer: Any, **kwargs: Any) -> nn.Module:
    return cls(layer.in_features, layer.out_features, **kwargs)


def _conv(cls: Callable[..., nn.Module], layer: Any, **kwargs: Any) -> nn.Module:
    sizes = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    return cls(layer.in_channels, layer.out_channels, **sizes, **kwargs)


def _with_biases(linear: Callable[..., nn.Module], conv: Callable[..., nn.Module]) -> dict:
    return {
        nn.Linear: lambda layer: _linear(linear, layer, bias=layer.bias is not None),
        nn.Conv2d: lambda layer: _conv(conv, layer, bias=layer.bias is not None),
    }


# In Pyro.


def bayesian(net: nn.Module) -> nn.Module:
    """A Pyro network of the layers of pyro_bnn."""
    recurrent = lambda layer: BayesianLSTM(layer.input_size, layer.hidden_size, batch_first=True)
    layers = _with_biases(BayesianLinear, BayesianConv2d) | {nn.LSTM: recurrent}
    net = substituted(net, layers)
    to_pyro_module_(net)
    return net


def random(net: nn.Module) -> nn.Module:
    """A Pyro network of Pyro's own layers, whose parameters have standard normal priors."""
    to_pyro_module_(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            zero, one = parameter.new_zeros(()), parameter.new_ones(())
            prior = dist.Normal(zero, one).expand(parameter.shape).to_event()
            setattr(module, name, PyroSample(prior))
    return net


# In plain torch: networks that return (output, kl) and have their plain part as `net`.


class Network(nn.Module):
    """A network, and a function of it for the KL divergence."""

    def __init__(self, net: nn.Module, kl: Callable[[], Any] = lambda: 0.0) -> None:
        super().__init__()
        self.net = net
        self.kl = kl

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.net(x), self.kl()


def deterministic(net: nn.Module) -> nn.Module:
    return Network(net)


def standalone(guide: Callable[..., Any], net: nn.Module) -> nn.Module:
    net = bayesian(net)
    return Standalone(net, guide(net))


def layers_of_ours(posterior: str, net: nn.Module) -> nn.Module:
    return WithKL(substituted(net, _variational(pyro_bnn.compat.bayesian_torch, posterior)))


class _Output(nn.Module):
    """The output of a layer of bayesian-torch; keeps the KL divergence that comes with it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.kl: Any = None

    def forward(self, x: Tensor) -> Any:
        if not torch.is_grad_enabled():  # a prediction needs none
            return self.layer(x, return_kl=False)
        *output, self.kl = self.layer(x)
        return output[0] if len(output) == 1 else output


def bayesian_torch(posterior: str, net: nn.Module) -> nn.Module:
    """As its layers come, which return their KL divergences."""
    layers = _variational(importlib.import_module("bayesian_torch.layers"), posterior)
    wrapped = {k: lambda layer, make=make: _Output(make(layer)) for k, make in layers.items()}
    net = substituted(net, wrapped)
    outputs = [module for module in net.modules() if isinstance(module, _Output)]
    return Network(net, lambda: sum(output.kl for output in outputs))


def bensemble(net: nn.Module) -> nn.Module:
    linear = importlib.import_module("bensemble.layers.linear").BayesianLinear
    conv = importlib.import_module("bensemble.layers.conv").BayesianConv2d
    net = substituted(  # always with biases
        net,
        {
            nn.Linear: lambda layer: _linear(linear, layer),
            nn.Conv2d: lambda layer: _conv(conv, layer),
        },
    )
    layers: list[Any] = [m for m in net.modules() if isinstance(m, (linear, conv))]
    return Network(net, lambda: sum(layer.kl_divergence() for layer in layers))


def torch_uncertainty(net: nn.Module) -> nn.Module:
    for package in ("torch_uncertainty", "torch_uncertainty.layers"):
        _skip_init(package)
    module = importlib.import_module("torch_uncertainty.layers.bayesian")
    net = substituted(net, _with_biases(module.BayesLinear, module.BayesConv2d))
    layers: list[Any] = [m for m in net.modules() if isinstance(m, module.bayesian_modules)]
    return Network(net, lambda: sum(q.log_variational_posterior - q.log_prior for q in layers))


class ByHand(nn.Module):
    """Puts new weights into a network, drawn around those that it had."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.posterior = [
            (parameter, parameter.detach().clone(), torch.full_like(parameter, 0.1))
            for parameter in net.parameters()
        ]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for parameter, loc, scale in self.posterior:
            parameter.copy_(loc + scale * torch.randn_like(loc))
        return self.net(x)


def _variational(module: Any, posterior: str) -> dict:
    """The layers of bayesian-torch, or those of the same names."""
    kind = posterior.capitalize()
    lstm: Any = getattr(module, f"LSTM{kind}")
    linear, conv = (getattr(module, f"{layer}{kind}") for layer in ("Linear", "Conv2d"))
    recurrent = lambda layer: lstm(layer.input_size, layer.hidden_size)
    return _with_biases(linear, conv) | {nn.LSTM: recurrent}


def _skip_init(package: str) -> None:
    """Lets modules of a package be imported without what its ``__init__`` would import."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named '{package}'")
        sys.modules[package] = importlib.util.module_from_spec(spec)
