"""Ways to classify with uncertainty: how each trains for some time, and predicts."""

from __future__ import annotations

import importlib
import itertools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, likelihoods, predict
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO

BATCH, DRAWS = 128, 50
Probabilities = Callable[[Tensor], Tensor]
Rival = Callable[["Problem", float], Probabilities]  # trains for a processor time in seconds


@dataclass(frozen=True)
class Problem:
    """Images as rows of pixels, their classes, and images of something else."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    unknown: Tensor
    hidden: tuple[int, ...]

    def network(self, dropout: float = 0.0) -> nn.Sequential:
        sizes, layers = [self.x.shape[1], *self.hidden], list[nn.Module]()
        for i, j in itertools.pairwise(sizes):
            layers += [nn.Linear(i, j), nn.ReLU()]
            layers += [nn.Dropout(dropout)] * (dropout > 0)
        return nn.Sequential(*layers, nn.Linear(sizes[-1], int(self.y.max()) + 1))


steps_taken = 0  # in all trainings so far


def _train(
    problem: Problem,
    seconds: float,
    optimizer: Any,
    step: Callable[[Tensor, Tensor, float], Any],
    constant: float = 0.0,
) -> None:
    """Batches in random order until the time is up, by rates that fall to 0 by a cosine.

    Args:
        step: is told the part of the time that has passed.
        constant: part of the time in which rates stay as they are.
    """
    global steps_taken
    start, rates = time.process_time(), [group["lr"] for group in optimizer.param_groups]
    while True:
        for rows in torch.randperm(len(problem.x)).split(BATCH):
            done = (time.process_time() - start) / seconds
            if done >= 1:
                return
            falling = max(0.0, (done - constant) / (1 - constant))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * falling))
            step(problem.x[rows], problem.y[rows], done)
            steps_taken += 1


def _by_adam(problem: Problem, seconds: float, net: nn.Module, loss: Any, lr: float) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr, fused=True)

    def step(x: Tensor, y: Tensor, done: float) -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    net.train()
    _train(problem, seconds, optimizer, step)


@torch.no_grad()
def _mean(net: Callable[[Tensor], Tensor], num: int, x: Tensor) -> Tensor:
    return sum(net(x).softmax(-1) for _ in range(num)) / num  # type: ignore[return-value]


def _trained(problem: Problem, seconds: float, dropout: float = 0.0) -> nn.Sequential:
    net = problem.network(dropout)
    _by_adam(problem, seconds, net, lambda x, y: F.cross_entropy(net(x), y), 1e-3)
    return net


def deterministic(problem: Problem, seconds: float) -> Probabilities:
    return partial(_mean, _trained(problem, seconds).eval(), 1)


def dropout(problem: Problem, seconds: float) -> Probabilities:
    return partial(_mean, _trained(problem, seconds, 0.2), DRAWS)  # in training mode


def ensemble(problem: Problem, seconds: float) -> Probabilities:
    nets = [_trained(problem, seconds / 5) for _ in range(5)]
    return lambda x: torch.stack([_mean(net, 1, x) for net in nets]).mean(0)


def laplace(problem: Problem, seconds: float) -> Probabilities:
    """Of the last layer, Kronecker-factored, as the library does by default."""
    net = _trained(problem, seconds).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = importlib.import_module("laplace").Laplace
        posterior = make(
            net, "classification", subset_of_weights="last_layer", hessian_structure="kron"
        )
        posterior.fit(DataLoader(TensorDataset(problem.x, problem.y), 512))
        posterior.optimize_prior_precision(method="marglik")

    def probs(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.cat([posterior(rows, link_approx="probit") for rows in x.split(200)])

    return probs


def ivon(problem: Problem, seconds: float) -> Probabilities:
    net, num = problem.network(), len(problem.x)
    optimizer = importlib.import_module("ivon").IVON(net.parameters(), lr=0.1, ess=num)

    def step(x: Tensor, y: Tensor, done: float) -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def draw(x: Tensor) -> Tensor:
        with optimizer.sampled_params():
            return net(x)

    _train(problem, seconds, optimizer, step)
    return partial(_mean, draw, DRAWS)


def _variational(
    convert: Callable[[nn.Module], nn.Module], problem: Problem, seconds: float
) -> Probabilities:
    """Of a library whose layers tell their KL divergences."""
    net = convert(problem.network())

    def loss(x: Tensor, y: Tensor) -> Any:
        output, kl = net(x)
        return F.cross_entropy(output, y) + kl / len(problem.x)

    _by_adam(problem, seconds, net, loss, 1e-2)
    return partial(_mean, net.net, DRAWS)


def ours(problem: Problem, seconds: float, *, kl_weight: float = 1.0) -> Probabilities:
    """Warm-up, rates and schedule of ``fit``, and the same Adam as for all."""
    model = BNN(problem.network(), likelihoods.Categorical(), num_data=len(problem.x))
    guide = AutoLRT(model)
    elbo = TraceKL_ELBO()
    loss = elbo(model, guide)
    groups = guide.parameter_groups(lr=1e-2, scale_lr=3e-2)
    optimizer = torch.optim.Adam(groups, fused=True)

    def step(x: Tensor, y: Tensor, done: float) -> None:
        elbo.kl_weight = kl_weight * min(1.0, 2 * done + 1e-3)
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    loss(problem.x[:BATCH], problem.y[:BATCH])
    _train(problem, seconds, optimizer, step, constant=0.5)
    return lambda x: predict(model, guide, x, DRAWS, batch_size=1000).mean


RIVALS: dict[str, Rival] = {
    "deterministic": deterministic,
    "MC dropout": dropout,
    "ensemble of 5": ensemble,
    "laplace-torch": laplace,
    "ivon-opt": ivon,
    "bayesian-torch, flipout": partial(_variational, partial(networks.bayesian_torch, "flipout")),
    "bensemble": partial(_variational, networks.bensemble),
    "pyro_bnn, LRT": ours,
    "pyro_bnn, LRT, KL weight 0.15": partial(ours, kl_weight=0.15),
}
