"""The least that a training step needs, part by part: how near to it the libraries are.

    python benchmarks/limits.py

A step with random weights is that of the deterministic network and, for each weight, Adam for a
second parameter, a softplus with its backward, and the logarithms of a KL divergence; the shared
draw and flipout need a normal variable for each weight, LRT one for each output; flipout and LRT
need all products twice. The sum of these parts, each alone and with its data in the cache, is a
lower limit of what torch's operations can do.

Then come the phases of a step, in the standalone form and in Pyro.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median

import networks
import torch
import torch.nn.functional as F
from contenders import GUIDES
from measure import Step, interleaved
from pyro import poutine
from pyro.infer import SVI
from steps import Model, pyro_adam, train
from torch import Tensor, nn
from workloads import NUM_DATA, WORKLOADS, Workload

from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.posteriors._together import distributions

MLP = next(w for w in WORKLOADS if w.name == "mlp")
PEERS: dict[str, Callable[..., nn.Module]] = {
    "reparameterization": partial(networks.bayesian_torch, "reparameterization"),
    "flipout": partial(networks.bayesian_torch, "flipout"),
    "LRT": networks.bensemble,
}
PARTS = {
    "reparameterization": ("deterministic", "Adam", "softplus", "log", "normals, weights"),
    "flipout": ("deterministic", "Adam", "softplus", "log", "normals, weights", "gradients"),
    "LRT": ("deterministic", "Adam", "softplus", "log", "normals, outputs", "gradients"),
}


def parts(workload: Workload) -> dict[str, Step]:
    net = workload.net()
    shapes = [parameter.shape for parameter in net.parameters()]
    outputs = [(workload.shape[0], shape[0]) for shape in shapes if len(shape) == 2]
    positive = [torch.rand(shape) + 0.1 for shape in shapes]
    rho = [torch.randn(shape, requires_grad=True) for shape in shapes]
    ones = [torch.ones(shape) for shape in shapes]

    def softplus() -> None:
        for x, grad in zip(rho, ones, strict=True):
            F.softplus(x).backward(grad)
            x.grad = None

    return {
        "deterministic": train(networks.deterministic, workload, "cpu"),
        "gradients": train(networks.deterministic, replace(workload, has_optimizer=False), "cpu"),
        "Adam": adam(positive),
        "softplus": softplus,
        "log": lambda: [x.log().sum() for x in positive],
        "normals, weights": lambda: [torch.randn(shape) for shape in shapes],
        "normals, outputs": lambda: [torch.randn(shape) for shape in outputs],
    }


class Phases:
    """The times of the phases of a step that is repeated alone."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times[name].append(1e3 * (time.perf_counter() - start))

    def show(self, title: str) -> None:
        """Prints medians; of what is indented, some other phase is the whole."""
        print(title)
        found = {name: median(times[len(times) // 5 :]) for name, times in self.times.items()}
        parts = [ms for name, ms in found.items() if not name.startswith("  ")]
        for name, ms in [*found.items(), ("sum", sum(parts))]:
            print(f"  {name:36}{ms:6.2f}")


def phases(workload: Workload, guide: str, runs: int) -> Phases:
    """Of the standalone form with fused Adam."""
    model = networks.standalone(GUIDES[guide], workload.net())
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    x, y = workload.data("cpu")
    phase = Phases()
    for _ in range(runs):
        optimizer.zero_grad()
        with phase("scales, and draws of small weights"):
            made = distributions(site.posterior for site in model._sites)
        with phase("KL divergences"):
            kl = model._kl_before_draws(made)
        with phase("draws of large weights"):
            twins = model._twin()
            for i, site, q in zip(model._indices, model._sites, made, strict=True):
                twins[i].__dict__[site.key] = q.rsample()
        with phase("network and loss"):
            loss = workload.loss(twins[-1](x), y) + kl / NUM_DATA
        with phase("backward"):
            loss.backward()
        with phase("Adam"):
            optimizer.step()
    return phase


def pyro_phases(workload: Workload, guide: str, runs: int) -> Phases:
    """Of the ELBO module with fused Adam, and of `SVI.step` with Pyro's optimizer."""
    x, y = workload.data("cpu")
    model = Model(networks.bayesian(workload.net()), workload)
    posterior = GUIDES[guide](model)
    elbo = TraceKL_ELBO()
    module, svi = elbo(model, posterior), SVI(model, posterior, pyro_adam(), elbo)
    svi.step(x, y)
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    phase = Phases()
    for _ in range(runs):
        optimizer.zero_grad()
        with phase("  guide, traced"):
            trace = poutine.trace(posterior).get_trace(x, y)
        with phase("  model, replayed and traced"):
            poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
        with phase("loss, with guide and model"):
            loss = module(x, y)
        with phase("backward"):
            loss.backward()
        with phase("Adam"):
            optimizer.step()
        with phase("  pyro.optim.Adam"):
            svi.optim(parameters)
        with phase("  SVI.step"):
            svi.step(x, y)
    return phase


def adam(tensors: list[Tensor]) -> Step:
    parameters = [torch.nn.Parameter(x.clone()) for x in tensors]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return torch.optim.Adam(parameters).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=51)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(7_500_000)  # as in speed.py
    warnings.simplefilter("ignore")  # of other libraries
    steps = parts(MLP)
    for name, peer in PEERS.items():
        ours = partial(networks.standalone, GUIDES[name])
        steps[f"{name}, pyro_bnn"] = train(ours, MLP, "cpu")
        steps[f"{name}, peer"] = train(peer, MLP, "cpu")
    ms = {name: times.median for name, times in interleaved(steps, runs=args.runs).items()}
    print(f"{MLP.title}, ms of one thread")
    for name in parts(MLP):
        print(f"  {name:20}{ms[name]:8.2f}")
    columns = ("limit", "pyro_bnn", "peer", "limit/peer", "ours/peer")
    print(f"{'':22}" + "".join(f"{c:>12}" for c in columns))
    for name, needed in PARTS.items():
        limit = sum(ms[part] for part in needed)
        ours, peer = ms[f"{name}, pyro_bnn"], ms[f"{name}, peer"]
        figures = (limit, ours, peer, limit / peer, ours / peer)
        print(f"{name:22}" + "".join(f"{x:12.2f}" for x in figures))
    for name in PARTS:
        runs = 5 * args.runs
        phases(MLP, name, runs).show(f"Phases of {name}, standalone, fused Adam")
        pyro_phases(MLP, name, runs).show(f"Phases of {name}, ELBO module, fused Adam")


if __name__ == "__main__":
    main()
