"""The least that a training step needs, part by part: how near to it the libraries are.

    python benchmarks/limits.py

A step with random weights is that of the deterministic network and, for each weight, Adam for a
second parameter, a softplus with its backward, and the logarithms of a divergence; the shared draw
and flipout need a normal variable for each weight, LRT one for each output; flipout and LRT need
all products twice. The sum of these parts, each alone and with its data in the cache, is a lower
limit of what torch's operations can do. Products are those of pyro_bnn, by the faster of torch's
libraries; "deterministic, torch" has torch's own.
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
from steps import train
from torch import Tensor, nn
from workloads import NUM_DATA, WORKLOADS, Workload

from pyro_bnn.distributions._divergence import sum_of_logs
from pyro_bnn.estimators._products import product
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
        "deterministic, torch": train(networks.deterministic, workload, "cpu"),
        "deterministic": train(with_products, workload, "cpu"),
        "gradients": train(with_products, replace(workload, has_optimizer=False), "cpu"),
        "Adam": adam(positive),
        "softplus": softplus,
        "log": lambda: [sum_of_logs(x) for x in positive],
        "normals, weights": lambda: [torch.randn(shape) for shape in shapes],
        "normals, outputs": lambda: [torch.randn(shape) for shape in outputs],
    }


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


def with_products(net: nn.Module) -> nn.Module:
    """The deterministic network, with the products of pyro_bnn."""
    for module in net.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return networks.deterministic(net)


def phases(workload: Workload, guide: str, runs: int) -> dict[str, float]:
    """Milliseconds of the phases of our step with fused Adam, repeated alone."""
    model = networks.standalone(GUIDES[guide], workload.net())
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    x, y = workload.data("cpu")
    times: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        times[name].append(1e3 * (time.perf_counter() - start))

    for _ in range(runs):
        optimizer.zero_grad()
        with phase("scales, and draws of small weights"):
            made = distributions(posterior for posterior, _, _ in model._sites)
        with phase("divergences"):
            kl = model._kl_before_draws(made)
        with phase("draws of large weights"):
            for (_, module, key), q in zip(model._sites, made, strict=True):
                module.__dict__[key] = q.rsample()
        with phase("network and loss"):
            loss = workload.loss(model._twin(x), y) + kl / NUM_DATA
        with phase("backward"):
            loss.backward()
        with phase("Adam"):
            optimizer.step()
    return {name: median(found[runs // 5 :]) for name, found in times.items()}


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
        print(f"Phases of {name}, fused Adam")
        found = phases(MLP, name, 5 * args.runs)
        for part, milliseconds in [*found.items(), ("sum", sum(found.values()))]:
            print(f"  {part:36}{milliseconds:6.2f}")


if __name__ == "__main__":
    main()
