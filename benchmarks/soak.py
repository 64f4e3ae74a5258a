"""Long use: many steps, many models, threads on one module, a killed run; prints memory and errors.

    python benchmarks/soak.py [--steps 20000] [--models 300] [--calls 2000]

Ends with status 1 if there was an error, if memory grew by more than 50 MiB in a part, or if a run
that was killed ended elsewhere than one that was not.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoMixture, AutoRadial, AutoReparameterization
from pyro_bnn.infer import Predictive, TraceKL_ELBO

GUIDES = [AutoReparameterization, AutoFlipout, AutoLRT, AutoRadial, AutoMixture]
GROWTH = 50.0  # MiB


def network(width: int = 20) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def data(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 3)
    return x, x.sum(-1).sin()


def memory() -> float:
    """In MiB, of this process, as Linux tells it."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def take_steps(number: int) -> None:
    for guide_class in GUIDES:
        model = BNN(network(), likelihoods.Normal())
        guide = guide_class(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceKL_ELBO())
        x, y = data()
        for _ in range(number // len(GUIDES)):
            svi.step(x, y)


def make_models(number: int) -> None:
    x, y = data()
    for i in range(number):
        model = BNN(network(200), likelihoods.Normal())
        guide = GUIDES[i % len(GUIDES)](model)
        TraceKL_ELBO()(model, guide)(x, y).backward()
        Predictive(model, guide=guide, num_samples=5)(x)


def call_from_threads(number: int) -> None:
    net = bayesianize(network())
    module = Standalone(net, AutoFlipout(net))
    x, _ = data()

    def call(thread: int) -> None:
        for _ in range(number):
            output, kl = module(x)
            (output.sum() + kl).backward()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))  # raises what a thread has raised


def train(path: Path, steps: int) -> None:
    """One run, which goes on from its checkpoint; prints a digest of the parameters."""
    torch.manual_seed(0)
    model = BNN(network(), likelihoods.Normal())
    guide = AutoLRT(model)
    every = max(1, steps // 20)
    kwargs = {"checkpoint": path, "checkpoint_every": every, "resume": True, "seed": 1}
    fit(model, guide, data(), steps, progress=False, **kwargs)
    values = torch.cat([p.detach().reshape(-1) for p in guide.parameters()])
    print(hashlib.sha256(values.numpy().tobytes()).hexdigest())


def kill_and_resume(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, __file__, "--steps", str(steps), "--train"]
        command_of = lambda name: [*start, f"{folder}/{name}"]
        whole = subprocess.run(command_of("whole"), capture_output=True, text=True, check=True)
        run = subprocess.Popen(command_of("killed"), stdout=subprocess.DEVNULL)
        while not Path(folder, "killed").exists() and run.poll() is None:
            time.sleep(0.01)
        run.kill()
        run.wait()
        resumed = subprocess.run(command_of("killed"), capture_output=True, text=True, check=True)
    if whole.stdout != resumed.stdout:
        raise AssertionError("a run that was killed and resumed has other parameters")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("steps", 20_000), ("models", 300), ("calls", 2_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.train:
        train(args.train, args.steps)
        return 0
    parts: list[tuple[str, Callable[[int], None], int]] = [
        ("steps", take_steps, args.steps),
        ("models built and dropped", make_models, args.models),
        ("calls in each of 4 threads", call_from_threads, args.calls),
        ("steps, killed and resumed", kill_and_resume, args.steps),
    ]
    failed = False
    for name, part, number in parts:
        part(min(number, 10))  # what is made once does not count
        before, start = memory(), time.monotonic()
        try:
            part(number)
            error = "none"
        except Exception as found:
            error = f"{type(found).__name__}: {found}"
        grown = memory() - before
        failed |= error != "none" or grown > GROWTH
        seconds = time.monotonic() - start
        print(
            f"{number:6} {name:28}{seconds:8.0f} s {grown:+8.1f} MiB  errors: {error}", flush=True
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
