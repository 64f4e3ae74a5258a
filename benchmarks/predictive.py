"""Predictive: what vectorisation saves, against a loop over samples and against Pyro's own.

    python benchmarks/predictive.py

Prints the time of a call in milliseconds and its ratio to the loop: the median of some runs, which
alternate. Networks with convolutions or recurrent layers whose activations are larger than
`_MAX_VECTORIZED_ACTIVATION` in pyro_bnn/infer/_predictive.py are looped by default.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive
from pyro_bnn.infer._predictive import _Work
from pyro_bnn.nn import BayesianConv2d, BayesianLinear, BayesianLSTM


class Last(nn.Module):
    def forward(self, result: tuple[Tensor, Tensor]) -> Tensor:
        return result[0][:, -1]


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.ReLU(), BayesianLinear(sizes[i], sizes[i + 1])]
    return PyroModule[nn.Sequential](*layers[1:])


def convolutional(channels: int, size: int) -> nn.Module:
    return PyroModule[nn.Sequential](
        BayesianConv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        BayesianConv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        BayesianLinear(2 * channels * (size // 2) ** 2, 10),
    )


def recurrent(hidden: int) -> nn.Module:
    return PyroModule[nn.Sequential](
        BayesianLSTM(8, hidden, batch_first=True), Last(), BayesianLinear(hidden, 1)
    )


def cases() -> Iterator[tuple[str, nn.Module, Tensor, int]]:
    yield "MLP 8-50-50-1, 100 rows", mlp(8, 50, 50, 1), torch.randn(100, 8), 1000
    yield "MLP 100-400-400-10, 128 rows", mlp(100, 400, 400, 10), torch.randn(128, 100), 50
    for channels, size, rows in ((4, 8, 16), (8, 16, 16), (8, 28, 16), (16, 28, 64)):
        name = f"convolutions, {channels} channels, {rows} images {size}x{size}"
        yield name, convolutional(channels, size), torch.randn(rows, 1, size, size), 50
    for hidden, steps, rows in ((8, 20, 4), (32, 20, 16), (64, 20, 16), (64, 64, 32)):
        name = f"LSTM, {hidden} units, {rows} sequences of {steps} steps"
        yield name, recurrent(hidden), torch.randn(rows, steps, 8), 50


def medians(functions: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(runs + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i:  # the first is to warm up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, pyro {pyro.__version__}, {args.threads} thread(s), ms a call"
    )
    columns = ("Pyro's loop", "loop", "vmap", "vmap/loop", "activation", "default")
    print(f"{'':50}" + "".join(f"{c:>13}" for c in columns))
    for name, net, x, num_samples in cases():
        kwargs = {"guide": AutoLRT(net), "num_samples": num_samples, "return_sites": ["_RETURN"]}
        functions = {
            "pyro": partial(pyro.infer.Predictive(net, **kwargs), x),
            "loop": partial(Predictive(net, **kwargs, parallel=False), x),
            "vmap": partial(Predictive(net, **kwargs, parallel=True), x),
        }
        result = medians(functions, args.runs)
        with _Work() as work, torch.no_grad():
            net(x)
        default = "loop" if work.is_faster_in_a_loop else "vmap"
        figures = "".join(f"{v:13.1f}" for v in result.values())
        ratio = result["vmap"] / result["loop"]
        print(f"{name:50}{figures}{ratio:13.2f}{work.largest:13d}{default:>13}")


if __name__ == "__main__":
    main()
