"""Predictive: what vectorisation saves, against a loop over samples and against Pyro's own.

    python benchmarks/predictive.py

Prints the time of a call in milliseconds and its ratio to the loop: the median of some runs, which
alternate. Networks whose activations or weights are larger than `_MAX_VECTORIZED` in
pyro_bnn/infer/_predictive.py, or `_MAX_VECTORIZED_RECURRENT`, are looped by default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import torch
from measure import Step, interleaved
from networks import bayesian
from torch import Tensor, nn
from workloads import First, convolutional, mlp

from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive
from pyro_bnn.infer._predictive import _Work


def recurrent(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.LSTM(8, hidden, batch_first=True), First(last_step=True), nn.Linear(hidden, 1)
    )


def cases() -> Iterator[tuple[str, nn.Module, Tensor, int]]:
    yield "MLP 8-50-50-1, 100 rows", mlp(8, 50, 50, 1), torch.randn(100, 8), 1000
    yield "MLP 8-50-50-1, 1000 rows", mlp(8, 50, 50, 1), torch.randn(1000, 8), 50
    yield "MLP 8-50-50-1, 2000 rows", mlp(8, 50, 50, 1), torch.randn(2000, 8), 50
    yield "MLP 100-400-400-10, 128 rows", mlp(100, 400, 400, 10), torch.randn(128, 100), 50
    for channels, size, rows in ((4, 8, 16), (8, 16, 16), (8, 16, 32), (8, 28, 16), (16, 28, 64)):
        name = f"convolutions, {channels} channels, {rows} images {size}x{size}"
        yield name, convolutional(channels, size), torch.randn(rows, 1, size, size), 50
    for hidden, steps, rows in ((8, 20, 4), (32, 20, 16), (64, 20, 16), (64, 64, 32)):
        name = f"LSTM, {hidden} units, {rows} sequences of {steps} steps"
        yield name, recurrent(hidden), torch.randn(rows, steps, 8), 50


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
    for name, plain, x, num_samples in cases():
        net = bayesian(plain)
        kwargs: dict[str, Any] = {
            "guide": AutoLRT(net),
            "num_samples": num_samples,
            "return_sites": ["_RETURN"],
        }
        functions: dict[str, Step] = {
            "pyro": partial(pyro.infer.Predictive(net, **kwargs), x),
            "loop": partial(Predictive(net, **kwargs, parallel=False), x),
            "vmap": partial(Predictive(net, **kwargs, parallel=True), x),
        }
        times = interleaved(functions, runs=args.runs)
        result = {key: value.median for key, value in times.items()}
        with _Work() as work, torch.no_grad():
            net(x)
        default = "loop" if work.is_faster_in_a_loop else "vmap"
        figures = "".join(f"{v:13.1f}" for v in result.values())
        ratio = result["vmap"] / result["loop"]
        print(f"{name:50}{figures}{ratio:13.2f}{work.largest:13d}{default:>13}")


if __name__ == "__main__":
    main()
