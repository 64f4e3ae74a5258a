"""Measures the candidates for the default prior and the default initialization.

Trains networks on scikit-learn's digits and on two UCI regression sets with each prior and each
initial scale, and prints the test log predictive density in nats per example (higher is better),
averaged over splits, with the standard error of that mean. The UCI files are `concrete.npz` and
`energy.npz` with arrays `X`, `y` and `test_index`; see `--uci`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
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
# The initial scale as a function of the number of inputs of a weight.
SCALES = {
    "0.03/sqrt(n)": lambda n: 0.03 / math.sqrt(n),
    "0.1/sqrt(n)": lambda n: 0.1 / math.sqrt(n),
    "0.3/sqrt(n)": lambda n: 0.3 / math.sqrt(n),
    "0.1": lambda n: 0.1,
}


class Network(PyroModule):
    def __init__(self, sizes: list[int], prior, is_classifier: bool, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for num_in, num_out in zip(sizes[:-1], sizes[1:], strict=True):
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
        with pyro.plate("data", self.size, subsample_size=len(x)):
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


def run(name: str, prior, scale, data, steps: int, gain: float) -> tuple[float, float]:
    """The test log predictive density and the final ELBO, both per example."""
    x, y, test_x, test_y = data
    is_classifier = name == "digits"
    sizes = [64, 100, 100, 10] if is_classifier else [x.shape[1], 50, 1]
    torch.manual_seed(0)
    model = Network(sizes, prior, is_classifier, len(x))
    guide = AutoLRT(model)
    with torch.no_grad():
        for site in guide:
            if site.endswith("weight"):
                n = guide[site].loc.shape[-1]
                guide[site].scale = torch.full_like(guide[site].loc, scale(n))
                guide[site].loc_unconstrained *= gain
    elbo = TraceKL_ELBO()(model, guide)
    elbo(x, y)
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
    sites = ("_RETURN",)
    del sites
    posterior = Predictive(guide, num_samples=100, parallel=True)
    with torch.no_grad(), guide.shared_draws():
        densities = []
        for _ in range(100):
            trace = pyro.poutine.trace(guide).get_trace(test_x)
            replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace))
            nodes = replayed.get_trace(test_x, test_y).nodes
            densities.append(nodes["obs"]["fn"].log_prob(test_y))
    del posterior
    density = torch.logsumexp(torch.stack(densities), 0).mean() - math.log(100)
    return density.item(), -float(np.mean(losses[-50:])) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uci", type=Path, default=Path("../shared/data/uci"))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--data", nargs="+", default=["digits", "concrete", "energy"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pyro.enable_validation(False)
    for name in args.data:
        print(f"{name}: test log predictive density and ELBO, nats per example")
        folds = list(splits(name, args.uci, args.splits))
        for prior_name, prior in PRIORS.items():
            for scale_name, scale in SCALES.items():
              for gain in (1.0, 6**0.5):
                results = np.array([run(name, prior, scale, d, args.steps, gain) for d in folds])
                mean, error = results.mean(0), results.std(0) / math.sqrt(len(folds))
                print(
                    f"  {prior_name:26} {scale_name:14} {gain:.2f} {mean[0]:8.3f} ± {error[0]:.3f}"
                    f"  ELBO {mean[1]:8.3f} ± {error[1]:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
