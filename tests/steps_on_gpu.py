"""What a process of its own does for test_cuda.py: steps on a stand-in for a GPU and on the CPU.

It writes, by name, how often the host has waited in a step, which functions had numbers on the
CPU, and how far the results are from those of the CPU.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import stand_in
import torch
from kinds import GUIDES
from pyro.infer import SVI
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, predict
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch, bensemble
from pyro_bnn.guides import AutoFlipout, AutoLRT
from pyro_bnn.infer import TraceKL_ELBO

ROWS = 4
Y = torch.tensor([0, 1, 1, 0])


class Last(nn.Module):
    """The output of the last step of a recurrent network."""

    def forward(self, result: Any) -> torch.Tensor:
        return result[0][:, -1]


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    linear = nn.Linear(5, 2)
    convolutional = [
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 2),
    ]
    return {
        "mlp": (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), linear), torch.randn(ROWS, 3)),
        "convolutions": (nn.Sequential(*convolutional), torch.randn(ROWS, 1, 4, 4)),
        "embedding": (
            nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)),
            torch.randint(7, (ROWS, 2)),
        ),
        "large embedding": (
            nn.Sequential(nn.Embedding(3000, 3), nn.Flatten(), nn.Linear(6, 2)),
            torch.randint(7, (ROWS, 2)),
        ),
        "lstm": (
            nn.Sequential(nn.LSTM(3, 5, batch_first=True), Last(), nn.Linear(5, 2)),
            torch.randn(ROWS, 3, 3),
        ),
    }


Step = Callable[[], Any]
Form = Callable[[nn.Module, Any, torch.Tensor, torch.Tensor], tuple[nn.Module, Step]]


def standalone(net: nn.Module, guide: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Step]:
    return of_pair(Standalone(net, guide), x, y)


def of_pair(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Step]:
    optimizer = torch.optim.SGD(module.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        output, kl = module(x)
        (nn.functional.cross_entropy(output, y) + kl / 100).backward()
        optimizer.step()

    return module, step


def elbo(net: nn.Module, guide: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Step]:
    module = TraceKL_ELBO()(net, guide)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        module(x, y).backward()
        optimizer.step()

    return module, step


def svi(net: nn.Module, guide: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Step]:
    run = SVI(net, guide, pyro.optim.SGD({"lr": 0.01}), TraceKL_ELBO())
    return guide, lambda: run.step(x, y)


def layers() -> nn.Module:
    mixed = bayesian_torch.LinearFlipout(3, 5), nn.ReLU(), bensemble.BayesianLinear(5, 2)
    return WithKL(nn.Sequential(*mixed))


def measured(make: Callable[[str], tuple[nn.Module, Step]]) -> dict[str, Any]:
    """A third step on both devices, given the same random numbers."""
    results = {}
    for device in ("cpu", "gpu"):
        pyro.clear_param_store()
        module, step = make(device)
        for seed in range(2):  # guides look at the first calls
            torch.manual_seed(seed)
            step()
        torch.manual_seed(2)
        with stand_in.watched() as watch:
            step()
            waits, on_cpu = list(watch.waits), list(watch.on_cpu)
        results[device] = [p.detach().cpu() for p in module.parameters()]
    pairs = zip(results["cpu"], results["gpu"], strict=True)
    error = max((a - b).abs().max().item() for a, b in pairs)
    return {"waits": waits, "on_cpu": on_cpu, "error": error}


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (net, x) in networks().items():
        for kind in GUIDES:
            # The stand-in has none of torch's own recurrent networks.
            if name == "lstm" and kind.make not in (AutoLRT, AutoFlipout):
                continue
            if name == "large embedding" and kind.make is not AutoFlipout:
                continue
            forms: dict[str, Form] = {"standalone": standalone}
            if name == "mlp":
                forms |= {"elbo": elbo} | ({"svi": svi} if kind.make is AutoLRT else {})
            for form, of in forms.items():
                model = (
                    bayesianize(net)
                    if form == "standalone"
                    else BNN(net, likelihoods.Categorical(), 10)
                )
                pair = model, kind.make(model)

                def make(device: str) -> tuple[nn.Module, Step]:
                    moved = [part.to(device) for part in copy.deepcopy(pair)]  # noqa: B023
                    return of(*moved, x.to(device), Y.to(device))  # noqa: B023

                yield f"{form} {name} {kind.name}", measured(make)
    module, x = layers(), torch.randn(ROWS, 3)
    yield (
        "with_kl",
        measured(lambda d: of_pair(copy.deepcopy(module).to(d), x.to(d), Y.to(d))),
    )


def training(device: str, where: str) -> tuple[list[int], dict[str, Any], torch.Tensor]:
    """Waits until the end of each step, the history, and a prediction."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model = BNN(net, likelihoods.Categorical())
    guide = AutoLRT(model)
    x, y = torch.linspace(-1, 1, 24).reshape(8, 3), Y.repeat(2)
    waits: list[int] = []
    options: Any = {"seed": 1, "device": device, "progress": False}
    with stand_in.watched() as watch:
        count = lambda run: waits.append(len(watch.waits))
        data = x.to(where), y.to(where)
        history = fit(model, guide, data, 2, batch_size=4, callbacks=[count], **options)
    torch.manual_seed(2)
    prediction = predict(model, guide, x.to(device), num_samples=5)
    return waits, dict(history), prediction.mean.cpu()


def trainings() -> Iterator[tuple[str, list[int]]]:
    _, expected, mean = training("cpu", "cpu")
    for where in ("cpu", "gpu"):
        waits, history, prediction = training("gpu", where)
        for name, values in history.items():  # of sums in float32
            torch.testing.assert_close(torch.tensor(values), torch.tensor(expected[name]))
        torch.testing.assert_close(prediction, mean)
        yield where, [b - a for a, b in itertools.pairwise(waits)]


def main(path: Path) -> None:
    warnings.simplefilter("error")
    pyro.enable_validation(False)
    torch.manual_seed(0)
    found = {"steps": dict(steps()), "fit": dict(trainings())}
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
