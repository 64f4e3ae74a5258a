"""Models and training of the benchmarks that measure what training reaches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bnn.guides import AutoPosterior
from pyro_bnn.infer import KLWarmup, Predictive, TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear

BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """How to train: the learning rates are constant for one half, then fall to 0 as a cosine."""

    lr: float = 1e-2
    scale_lr: float = 1e-2
    warmup: float = 0.5  # fraction of the steps in which the weight of the KL rises to 1
    kl_weight: float = 1.0
    priors: dict[str, Any] = field(default_factory=dict)  # arguments of layers
    guide: dict[str, Any] = field(default_factory=dict)  # arguments of the guide


class Model(PyroModule):
    """A network with a likelihood: the network is called before the plate, once for all data."""

    def __init__(self, net: nn.Module, num_data: int) -> None:
        super().__init__()
        self.net = net
        self.num_data = num_data

    def likelihood(self, output: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        output = self.net(x)
        likelihood = self.likelihood(output)
        # The plate scales the likelihood of a mini-batch to all of the data.
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("obs", likelihood, obs=y)
        return output


class Classification(Model):
    def likelihood(self, output: Tensor) -> Any:
        return dist.Categorical(logits=output)


class Regression(Model):
    """With a noise of unknown standard deviation, for standardized targets."""

    def likelihood(self, output: Tensor) -> Any:
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        return dist.Normal(output.squeeze(-1), noise)


def mlp(sizes: list[int], activation: Callable[[], nn.Module] = nn.ReLU, **priors: Any):
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [activation(), BayesianLinear(num_in, num_out, **priors)]
    return PyroModule[nn.Sequential](*layers[1:])


def train(
    model: nn.Module,
    guide: AutoPosterior,
    x: Tensor,
    y: Tensor,
    steps: int,
    recipe: Recipe = Recipe(),
    batch: int = BATCH,
) -> list[float]:
    """Trains by the recipe, and returns the ELBO per datum of each of the last tenth of steps."""
    guide(x[:2], y[:2])  # reveals the noise
    elbo = TraceKL_ELBO(kl_weight=recipe.kl_weight)(model, guide)
    groups = guide.parameter_groups(lr=recipe.lr, scale_lr=recipe.scale_lr)
    optimizer = torch.optim.Adam(groups, fused=True)
    half = steps // 2
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - half, eta_min=0)
    warmup = None
    if recipe.warmup:
        warmup = KLWarmup(
            elbo, steps=max(1, int(recipe.warmup * steps)), kl_weight=recipe.kl_weight
        )
    losses = []
    for step in range(steps):
        rows = slice(None) if len(x) <= batch else torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        loss = elbo(x[rows], y[rows])
        loss.backward()
        optimizer.step()
        if warmup is not None:
            warmup.step()
        if step >= half:
            decay.step()
        if step >= 0.9 * steps:
            losses.append(-loss.item() / len(x))
    return losses


@torch.no_grad()
def final_elbo(model: nn.Module, guide: AutoPosterior, x: Tensor, y: Tensor, draws: int) -> float:
    """The ELBO per datum, with one weight for all data in each draw, which is exact."""
    elbo = TraceKL_ELBO()(model, guide)
    num_data = len(x)
    total = 0.0
    with guide.shared_draws():
        for _ in range(draws):
            parts = [
                elbo(a, b).item() * len(a)
                for a, b in zip(x.split(2000), y.split(2000), strict=True)
            ]
            total -= sum(parts) / num_data
    return total / draws / num_data


def predictive_log_density(
    model: Model, guide: AutoPosterior, x: Tensor, y: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """The mean output (or class probabilities) of each row, and the log density of its target."""
    is_regression = isinstance(model, Regression)
    sites = ["_RETURN", "noise"] if is_regression else ["_RETURN"]
    drawn = Predictive(model, guide=guide, num_samples=samples, return_sites=sites)(x)
    output = drawn["_RETURN"]
    if is_regression:
        means = output.squeeze(-1)
        density = dist.Normal(means, drawn["noise"].reshape(-1, 1)).log_prob(y)
    else:
        means = output.softmax(-1)
        density = dist.Categorical(logits=output).log_prob(y)
    return means.mean(0), density.logsumexp(0) - math.log(samples)
