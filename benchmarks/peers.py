"""Mean-field posteriors trained by other libraries, each with its own defaults.

Priors are N(0, 1) everywhere, and Adam has the rate 1e-3 that is its default in torch and in Pyro.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import networks
import pyro
import pyro.distributions as dist
import pyro.util
import torch
import torch.nn.functional as F
from networks import random
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from steps import pyro_adam
from torch import Tensor, nn
from torch.distributions import kl_divergence

Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """A torch network and its data; targets are labels, or real numbers with a learned noise."""

    net: Callable[[], nn.Module]
    x: Tensor
    y: Tensor
    batch: int = 128

    @property
    def is_classifier(self) -> bool:
        return not self.y.is_floating_point()

    def log_likelihood(self, output: Tensor, y: Tensor, noise: Any) -> Tensor:
        """Of all rows of a batch together."""
        if self.is_classifier:
            return -F.cross_entropy(output, y, reduction="sum")
        return dist.Normal(output, noise).log_prob(y).sum()


@dataclass(frozen=True)
class Posterior:
    """Means and scales in the order of the network's parameters, and the noise."""

    weights: Pairs
    noise: Any = None

    def kl(self) -> Tensor:
        """The KL divergence from N(0, 1), in closed form."""
        prior = dist.Normal(0.0, 1.0)
        return sum(kl_divergence(dist.Normal(*pair), prior).sum() for pair in self.weights)


Training = tuple[Callable[[Tensor, Tensor], Any], Callable[[], Posterior]]  # a step, and its result


class Model(PyroModule):
    """A network with its likelihood, as one writes it in Pyro."""

    def __init__(self, net: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.net = net
        self.num_data = len(problem.x)
        self.noise = None if problem.is_classifier else _noise()

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        output = self.net(x)
        likelihood = (
            dist.Categorical(logits=output)
            if self.noise is None
            else dist.Normal(output, self.noise).to_event(1)
        )
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("y", likelihood, obs=y)


def auto_normal(problem: Problem) -> Training:
    net = problem.net()
    names = [f"net.{name}" for name, _ in net.named_parameters()]
    model = Model(random(net), problem)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro_adam(), Trace_ELBO())
    pair = lambda name: (attrgetter(name)(guide.locs), attrgetter(name)(guide.scales))
    return svi.step, lambda: Posterior([pair(name) for name in names], model.noise)


def tyxe(problem: Problem) -> Training:
    # TyXe needs a function that Pyro 1.9 does not have.
    pyro.util.__dict__.setdefault("deep_getattr", lambda obj, name: attrgetter(name)(obj))
    package = importlib.import_module("tyxe")
    net, num_data = problem.net(), len(problem.x)
    names = [f"net.{name}" for name, _ in net.named_parameters()]
    likelihood = (
        package.likelihoods.Categorical(num_data)
        if problem.is_classifier
        else package.likelihoods.HomoskedasticGaussian(num_data, scale=_noise())
    )
    prior = package.priors.IIDPrior(dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
    bnn = package.VariationalBNN(net, prior, likelihood, package.guides.AutoNormal)
    svi = SVI(bnn.model, bnn.guide, pyro_adam(), pyro.infer.TraceMeanField_ELBO())
    guide = bnn.net_guide
    pair = lambda name: (guide.get_loc(name), guide.get_scale(name))
    noise = lambda: None if problem.is_classifier else likelihood.scale
    return svi.step, lambda: Posterior([pair(name) for name in names], noise())


def plain(
    network: Callable[[nn.Module], nn.Module], problem: Problem, summed: bool = False
) -> Training:
    """A network of torch that returns its output and its KL divergence.

    Args:
        summed: put the KL divergence in the place of what the network returns.
    """
    model = network(problem.net())
    named = dict(model.named_parameters())
    pairs = [(p, named[n.replace("mu", "rho")]) for n, p in named.items() if "mu" in n]
    log_noise = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([*model.parameters(), log_noise])
    read = lambda: Posterior([(mu, F.softplus(rho)) for mu, rho in pairs], log_noise.exp())

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        output, kl = model(x)
        likelihood = problem.log_likelihood(output, y, log_noise.exp()) / len(x)
        ((read().kl() if summed else kl) / len(problem.x) - likelihood).backward()
        optimizer.step()

    return step, read


_bayesian_torch = partial(networks.bayesian_torch, "reparameterization")
PEERS: dict[str, Callable[[Problem], Training]] = {
    "Pyro AutoNormal": auto_normal,
    "TyXe": tyxe,
    "bensemble": partial(plain, networks.bensemble),
    # Its KL divergence is a mean over weights, so that it hardly counts.
    "bayesian-torch": partial(plain, _bayesian_torch),
    "bayesian-torch, KL summed": partial(plain, _bayesian_torch, summed=True),
}


def _noise() -> Any:
    return PyroParam(torch.tensor(1.0), constraint=constraints.positive)
