"""Measures the candidates for the default prior and the default initial scale.

Trains networks on scikit-learn's digits and on two UCI regression sets with each prior and each
initial scale, and prints the test log predictive density and the ELBO in nats per example (higher
is better), averaged over splits. The UCI files are `concrete.npz` and `energy.npz` with arrays
`X`, `y` and `test_index` (a row of test indices for each split); `--uci` names their folder.

    python benchmarks/defaults.py --uci FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from sklearn.datasets import load_digits
from sklearn.model_selection import ShuffleSplit
from torch import Tensor, nn

from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.priors import FanInNormal, Normal

PRIORS = {
    "Normal(0, 1)": Normal(0.0, 1.0),
    "Normal(0, 0.3)": Normal(0.0, 0.3),
    "FanInNormal(1)": FanInNormal(1.0),
    "FanInNormal(sqrt 2)": FanInNormal(math.sqrt(2)),
    "FanInNormal(1), learnable": FanInNormal(1.0, learnable_scale=True),
}
# The initial scale of a weight with n inputs.
SCALES = {
    "0.01/sqrt(n)": lambda n: 0.01 / math.sqrt(n),
    "0.03/sqrt(n)": lambda n: 0.03 / math.sqrt(n),
    "0.1/sqrt(n)": lambda n: 0.1 / math.sqrt(n),
    "0.1": lambda n: 0.1,
}


class Network(PyroModule):
    def __init__(self, sizes: list[int], prior, is_classifier: bool, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for num_in, num_out in itertools.pairwise(sizes):
            layers += [nn.ReLU(), BayesianLinear(num_in, num_out, prior=prior)]
        self.net = PyroModule[nn.Sequential](*layers[1:])
        self.is_classifier = is_classifier
        self.size = size

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        output = self.net(x)
        if self.is_classifier:
            likelihood = dist.Categorical(logits=output)
        else:
            noise = pyro.sample("noise", dist.HalfNormal(1.0))
            likelihood = dist.Normal(output.squeeze(-1), noise)
        with pyro.plate("data", self.size, subsample=x):
            return pyro.sample("obs", likelihood, obs=y)


def splits(name: str, uci: Path, count: int):
    """Standardized training and test sets."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        x = x / 16
        folds = list(ShuffleSplit(count, test_size=0.2, random_state=0).split(x))
    else:
        data = np.load(uci / f"{name}.npz")
        x, y = data["X"], data["y"]
        everything = np.arange(len(x))
        folds = [(np.setdiff1d(everything, t), t) for t in data["test_index"][:count]]
    for train, test in folds:
        if name == "digits":
            a, b, u, v = x[train], y[train], x[test], y[test]
        else:
            mean, scale = x[train].mean(0), x[train].std(0)
            scale[scale == 0] = 1
            a, u = (x[train] - mean) / scale, (x[test] - mean) / scale
            b, v = ((z - y[train].mean()) / y[train].std() for z in (y[train], y[test]))
        kind = torch.long if name == "digits" else torch.float
        yield (
            torch.tensor(a, dtype=torch.float),
            torch.tensor(b, dtype=kind),
            torch.tensor(u, dtype=torch.float),
            torch.tensor(v, dtype=kind),
        )


def run(name: str, prior, scale, data, steps: int) -> tuple[float, float]:
    """The test log predictive density and the final ELBO, both per example."""
    x, y, test_x, test_y = data
    is_classifier = name == "digits"
    sizes = [64, 100, 100, 10] if is_classifier else [x.shape[1], 50, 1]
    torch.manual_seed(0)
    model = Network(sizes, prior, is_classifier, len(x))
    guide = AutoLRT(model)
    for site in guide:
        if site.endswith("weight"):
            loc = guide[site].loc
            guide[site].scale = torch.full_like(loc, scale(loc.shape[-1]))
    elbo = TraceKL_ELBO()(model, guide)
    elbo(x, y)  # finds the noise
    optimizer = torch.optim.Adam(elbo.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        index = torch.randperm(len(x))[:128]
        optimizer.zero_grad()
        loss = elbo(x[index], y[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return density(model, guide, test_x, test_y), -float(np.mean(losses[-50:])) / len(x)


@torch.no_grad()
def density(model: Network, guide: AutoLRT, x: Tensor, y: Tensor, samples: int = 100) -> float:
    values = []
    with guide.shared_draws():
        for _ in range(samples):
            trace = poutine.trace(guide).get_trace(x)
            replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
            values.append(replayed.nodes["obs"]["fn"].log_prob(y))
    return (torch.logsumexp(torch.stack(values), 0).mean() - math.log(samples)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--uci", type=Path, default=Path("../shared/data/uci"))
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small
    pyro.enable_validation(False)
    results = {}
    for name in ("digits", "concrete", "energy"):
        for data in splits(name, args.uci, args.splits):
            for prior, scale in itertools.product(PRIORS, SCALES):
                value = run(name, PRIORS[prior], SCALES[scale], data, args.steps)
                results.setdefault((prior, scale), {}).setdefault(name, []).append(value)
    header = "".join(f"{name:>20}" for name in ("digits", "concrete", "energy"))
    print(f"{'prior':28}{'initial scale':14}{header}")
    for (prior, scale), by_name in results.items():
        means = [np.mean(values, 0) for values in by_name.values()]
        cells = "".join(f"{density:10.2f} ({elbo:6.2f})" for density, elbo in means)
        print(f"{prior:28}{scale:14}{cells}")


if __name__ == "__main__":
    main()
