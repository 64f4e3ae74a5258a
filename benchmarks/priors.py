"""Time of a training step with each kind of prior, relative to that with N(0, 1).

    python benchmarks/priors.py

The networks have one hidden layer or two, local reparameterization, batches of 128 rows and fused
Adam on one thread. Runs alternate; ratios are of medians.
"""

from __future__ import annotations

import argparse

import torch
from measure import Step, interleaved
from recipe import PRIORS, classification, mlp, regression
from torch import Tensor, nn

from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO

SIZES = {
    "8-50-1": [8, 50, 1],
    "64-100-100-10": [64, 100, 100, 10],
    "100-400-400-10": [100, 400, 400, 10],
}
FORMS = ("standalone", "ELBO module")


def step(sizes: list[int], prior: str, form: str) -> Step:
    """A training step on random data."""
    torch.manual_seed(0)
    x, y = torch.randn(128, sizes[0]), torch.randint(sizes[-1], (128,))
    net = mlp(sizes, **PRIORS[prior])
    trained: nn.Module
    if form == "standalone":
        trained = Standalone(net, AutoLRT(net))
    else:
        model = regression(net) if sizes[-1] == 1 else classification(net)
        trained = TraceKL_ELBO()(model, AutoLRT(model))

    def loss() -> Tensor:
        if form == "standalone":
            outputs, kl = trained(x)
            return outputs.square().mean() + kl / 1000
        return trained(x, y)

    loss()  # makes the parameters
    optimizer = torch.optim.Adam(trained.parameters(), fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1001, help="of each step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':30}{'N(0, 1), ms':>12}" + "".join(f"{p:>17}" for p in PRIORS if p != "Normal"))
    for name, sizes in SIZES.items():
        for form in FORMS:
            steps = {prior: step(sizes, prior, form) for prior in PRIORS}
            times = interleaved(steps, runs=args.runs)
            ms = {prior: found.median for prior, found in times.items()}
            ratios = "".join(f"{ms[p] / ms['Normal']:17.2f}" for p in PRIORS if p != "Normal")
            print(f"{name:16}{form:14}{ms['Normal']:12.2f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
