"""Models and training of the benchmarks that measure what training reaches."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bnn import BNN, fit, likelihoods
from pyro_bnn.guides import AutoPosterior
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.models import History
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.priors import FanInNormal, HierarchicalNormal, Normal


def learned(groups: str) -> dict[str, Any]:
    """Priors with scales that are learned; for each entry they are the default of `BNN`."""
    return {
        "prior": FanInNormal(2**0.5, learnable_scale=groups),
        "bias_prior": Normal(learnable_scale=groups),  # one, unless each entry has its own
    }


# Arguments of layers.
PRIORS: dict[str, dict[str, Any]] = {
    "learned": learned("entry"),
    "learned, input": learned("input"),
    "learned, output": learned("output"),
    "learned, tensor": learned("tensor"),
    "Normal": {"prior": Normal(0.0, 1.0)},
    **{groups: {"prior": HierarchicalNormal(groups)} for groups in ("tensor", "input", "output")},
}


@dataclass(frozen=True)
class Recipe:
    """What differs between candidates: the rest is :func:`pyro_bnn.fit`."""

    training: dict[str, Any] = field(default_factory=dict)  # arguments of fit
    priors: dict[str, Any] = field(default_factory=dict)  # arguments of layers
    guide: dict[str, Any] = field(default_factory=dict)  # arguments of the guide


def classification(net: nn.Module) -> BNN:
    return BNN(net, likelihoods.Categorical())


def regression(net: nn.Module) -> BNN:
    """With a noise of unknown standard deviation, for standardized targets."""
    return BNN(net, likelihoods.Normal(dist.HalfNormal(1.0)))


def mlp(sizes: list[int], activation: Callable[[], nn.Module] = nn.ReLU, **priors: Any):
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [activation(), BayesianLinear(num_in, num_out, **priors)]
    return PyroModule[nn.Sequential](*layers[1:])


def add_rates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lr", type=float, help="of `fit`; by default, its own")
    parser.add_argument("--scale-lr", type=float, help="likewise, of scales")
    parser.add_argument("--num-particles", type=int, default=1, help="of a step, at once")
    parser.add_argument(
        "--torch-adam",
        action="store_true",
        help="train by Adam as torch has it, with decay rates of 0.9 and 0.999, and clip nothing",
    )


def rates(args: argparse.Namespace) -> dict[str, Any]:
    """Those that are given; `fit` has defaults for the others."""
    given = {"lr": args.lr, "scale_lr": args.scale_lr}
    particles = {"num_particles": args.num_particles, "vectorize_particles": args.num_particles > 1}
    optimizer = {"optimizer": torch.optim.Adam, "clip_factor": None} if args.torch_adam else {}
    return {name: rate for name, rate in given.items() if rate is not None} | particles | optimizer


def train(
    model: BNN, guide: AutoPosterior, x: Tensor, y: Tensor, steps: int, batch: int, **training: Any
) -> History:
    batch = min(batch, len(x))
    epochs = math.ceil(steps / math.ceil(len(x) / batch))
    return fit(model, guide, (x, y), epochs, batch_size=batch, progress=False, **training)


@torch.no_grad()
def final_elbo(model: BNN, guide: AutoPosterior, x: Tensor, y: Tensor, draws: int) -> float:
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
