"""Steps of training, and of prediction, in the forms that each library has."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from measure import Step
from networks import NotMeasuredError
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from workloads import NUM_DATA, Workload

Network = Callable[[nn.Module], nn.Module]


def train(
    network: Network,
    workload: Workload,
    device: str,
    *,
    fused: bool | None = None,
    compiled: bool = False,
) -> Step:
    """With a network that returns its output and the KL divergence."""
    if compiled and device == "cpu":
        raise NotMeasuredError("needs a GPU")
    x, y = workload.data(device)
    model = network(workload.net()).to(device)
    run: Callable[..., Any] = torch.compile(model, mode="reduce-overhead") if compiled else model

    def objective() -> Tensor:
        output, kl = run(x)
        return workload.loss(output, y) + kl / NUM_DATA

    return _step(workload, objective, model, fused)


def train_elbo(
    network: Network, guide: Callable[..., Any], elbo: Any, workload: Workload, device: str
) -> Step:
    """With an ELBO of Pyro as a module, and a torch optimizer."""
    x, y = workload.data(device)
    model = Model(network(workload.net()), workload).to(device)
    module = elbo(model, guide(model).to(device))
    module(x, y)  # makes the parameters of guides that wait for the first call
    return _step(workload, partial(module, x, y), module, fused=True)


def train_svi(
    network: Network, guide: Callable[..., Any], elbo: Any, workload: Workload, device: str
) -> Step:
    x, y = workload.data(device)
    model = Model(network(workload.net()), workload).to(device)
    svi = SVI(model, guide(model).to(device), pyro_adam(), elbo)
    return partial(svi.step, x, y)


def train_tyxe(posterior: str, workload: Workload, device: str) -> Step:
    # TyXe needs a function that Pyro 1.9 does not have.
    pyro.util.__dict__.setdefault("deep_getattr", lambda obj, name: attrgetter(name)(obj))
    tyxe = importlib.import_module("tyxe")
    x, y = workload.data(device)
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    prior = tyxe.priors.IIDPrior(dist.Normal(zero, one), hide_module_types=(nn.BatchNorm2d,))
    likelihood = tyxe.likelihoods.Categorical(NUM_DATA)
    bnn = tyxe.VariationalBNN(workload.net().to(device), prior, likelihood, tyxe.guides.AutoNormal)
    svi = SVI(bnn.model, bnn.guide, pyro_adam(), TraceMeanField_ELBO())
    estimator = {
        "reparameterization": contextlib.nullcontext,
        "LRT": tyxe.poutine.local_reparameterization,
        "flipout": tyxe.poutine.flipout,
    }[posterior]

    def step() -> None:
        with estimator():
            svi.step(x, y)

    return step


def predict(
    network: Network, guide: Callable[..., Any], predictive: Any, workload: Workload, device: str
) -> Step:
    """With a class of Pyro's interface."""
    x, _ = workload.data(device)
    net = network(workload.net()).to(device)
    kwargs = {"num_samples": workload.num_samples, "return_sites": ["_RETURN"]}
    return partial(predictive(net, guide=guide(net).to(device), **kwargs), x)


def predict_in_loop(network: Network, workload: Workload, device: str) -> Step:
    """With a network that draws other weights in each call."""
    x, _ = workload.data(device)
    net = network(workload.net().to(device)).to(device)

    @torch.no_grad()
    def step() -> Tensor:
        return torch.stack([net(x) for _ in range(workload.num_samples)])

    return step


class Model(PyroModule):
    """A network with the likelihood whose negative logarithm is the loss of a workload."""

    def __init__(self, net: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.net = net
        self.is_classifier = workload.num_classes > 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        output = self.net(x)
        likelihood = (
            dist.Categorical(logits=output)
            if self.is_classifier
            else dist.Normal(output, 1.0).to_event(output.dim() - 1)
        )
        with pyro.plate("data", NUM_DATA, subsample=x):  # a size would draw which data these are
            pyro.sample("y", likelihood, obs=y)


def pyro_adam() -> Any:
    return pyro.optim.Adam({"lr": 1e-3})  # type: ignore[attr-defined]


def _step(
    workload: Workload, objective: Callable[[], Tensor], model: nn.Module, fused: bool | None
) -> Step:
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, fused=fused) if workload.has_optimizer else None

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        objective().backward()
        if optimizer is not None:
            optimizer.step()

    return step
