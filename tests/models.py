"""Models that several test files use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_bnn.nn import BayesianLinear


def normal_prior(*shape: int, dtype: torch.dtype = torch.float) -> PyroSample:
    zero = torch.zeros((), dtype=dtype)
    return PyroSample(dist.Normal(zero, zero + 1).expand(shape).to_event(len(shape)))


def bayesian_mlp(*sizes: int, bias: bool = True, **kwargs) -> nn.Module:
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [nn.Tanh(), BayesianLinear(num_in, num_out, bias, **kwargs)]
    return PyroModule[nn.Sequential](*layers[1:])


def torch_mlp(*sizes: int, dtype: torch.dtype = torch.float) -> nn.Module:
    """The same of torch's layers with PyroSample priors, and deterministic biases."""
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layer = PyroModule[nn.Linear](num_in, num_out, dtype=dtype)
        layer.weight = normal_prior(num_out, num_in, dtype=dtype)
        layers += [nn.Tanh(), layer]
    return PyroModule[nn.Sequential](*layers[1:])


def with_priors(net: nn.Module, dtype: torch.dtype = torch.float) -> nn.Module:
    """A network of torch's, all of whose parameters have Normal priors now."""
    to_pyro_module_(net)
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, normal_prior(*parameter.shape, dtype=dtype))
    return net


class Regression(PyroModule):
    """Regression with a network and a known or learned noise."""

    def __init__(self, net: nn.Module, noise: float | None = 0.5, size: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.noise = noise
        self.size = size

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.net(x).squeeze(-1)
        noise = self.noise
        if noise is None:
            noise = pyro.sample("noise", dist.HalfCauchy(torch.tensor(1.0).to(x)))
        with pyro.plate("data", self.size or len(x), subsample_size=len(x)):
            return pyro.sample("obs", dist.Normal(mean, noise), obs=y)


def data(size: int = 20, num_in: int = 3, dtype=torch.float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, num_in, generator=generator, dtype=dtype)
    return x, x.sum(-1) + 0.5 * torch.randn(size, generator=generator, dtype=dtype)


def within(samples: Tensor, expected: Tensor | float, errors: float = 5.0) -> bool:
    """Whether the mean of samples (first dimension) is within standard errors of its value."""
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    return bool(((mean - expected).abs() <= errors * error + 1e-7).all())


def check_gradients_with_graph(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Asserts that gradients are the same where they can be differentiated again."""
    grads, same = (
        torch.autograd.grad(3 * f(*inputs), inputs, create_graph=graph) for graph in (False, True)
    )
    torch.testing.assert_close(same, grads)
