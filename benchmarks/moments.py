"""Moments without sampling: their error against 10,000 draws, their time against 1,000.

    python benchmarks/moments.py

Networks for digits are trained for some steps. Errors of outputs are in units of their standard
deviation, those of probabilities in absolute numbers; the root of the mean square, and the largest,
over 400 images. The errors of 10,000 draws themselves are about 0.01. Times are for 400 images, the
fastest of some runs, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_bnn import BNN, fit, likelihoods, moments, predict
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "64-100-10, ReLU": lambda: nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)),
    "64-100-100-10, ReLU": lambda: nn.Sequential(
        *(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    ),
    "64-100-100-10, tanh": lambda: nn.Sequential(
        *(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    ),
    "2 convolutions, average pool, ReLU": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(256, 10),
    ),
}


def duration(function: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def shown(error: Tensor) -> str:
    return f"{error.square().mean().sqrt():13.3f}{error.abs().max():8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images).float() / 16, torch.as_tensor(labels)
    print(f"{'':36}{'mean, rms, max':>21}{'stddev':>21}{'probabilities':>21}", end="")
    print("  moments  predict  1,000 draws  ratios")
    for name, net in NETWORKS.items():
        model = BNN(net(), likelihoods.Categorical())
        guide = AutoLRT(model)
        fit(model, guide, (x[:1000], y[:1000]), epochs=args.steps // 8, seed=0, progress=False)
        new = x[1000:1400]
        predictive = Predictive(
            model, guide=guide, num_samples=args.draws, return_sites=["_RETURN"]
        )
        draws = predictive(new)["_RETURN"]
        stddev = draws.std(0)
        mean, variance = moments(model, guide, new)
        probs = predict(model, guide, new, moments=True).mean
        errors = [(mean - draws.mean(0)) / stddev, variance.sqrt() / stddev - 1]
        errors.append(probs - draws.softmax(-1).mean(0))
        del draws
        times = [
            duration(lambda: moments(model, guide, new), 9),  # noqa: B023
            duration(lambda: predict(model, guide, new, moments=True), 9),  # noqa: B023
            duration(lambda: predict(model, guide, new, 1000), 2),  # noqa: B023
        ]
        print(f"{name:36}" + "".join(map(shown, errors)), end="")
        print(f"{times[0]:9.1f}{times[1]:9.1f}{times[2]:13.0f}", end="")
        print(f"{times[2] / times[0]:6.0f}{times[2] / times[1]:4.0f}", flush=True)


if __name__ == "__main__":
    main()
