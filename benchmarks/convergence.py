"""The time that training needs to reach the bound of another library.

Other libraries train a network for so many steps, with their own defaults (`peers.py`). Then
`pyro_bnn.fit` trains AutoLRT, from scratch, for more and more steps, until its bound is as high:
the schedule depends on the number of steps. All have the same network and likelihood, and batches
of the same size. The priors of others are N(0, 1); ours are the default ones, or N(0, 1), too
(`--prior Normal`). ELBOs are per datum: the KL divergence in closed form, and the expected
log-likelihood by draws of one weight for all data. Seconds are those of the processor, with one
thread, so that other programs disturb them little.

    python benchmarks/convergence.py --uci FOLDER --tasks digits,energy
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from peers import PEERS, Posterior, Problem
from recipe import PRIORS, add_rates, final_elbo, rates, train
from tasks import convolutional, digits_split, fashion_split, uci_split
from torch import Tensor
from torch.func import functional_call
from workloads import mlp

from pyro_bnn import BNN, bayesianize, likelihoods
from pyro_bnn.guides import AutoLRT

OURS = "pyro_bnn"
LADDER = "125,175,250,350,500,700,1000,1400,2000,2800,4000,5600,8000,11200,16000,22400"
Row = dict[str, Any]


def problem(task: str, args: argparse.Namespace) -> Problem:
    split: Callable[[int], Any]
    if task == "digits":
        net, split = (lambda: mlp(64, 100, 100, 10)), digits_split
    elif task == "fashion":
        net, split = convolutional, fashion_split(args.fashion)
    else:
        split = uci_split(args.uci / f"{task}.npz")
        net = lambda: mlp(x.shape[1], 50, 1)
    x, y, *_ = split(0)
    return Problem(net, x, y if task in ("digits", "fashion") else y.reshape(-1, 1))


def run_peer(task: Problem, name: str, steps: int, draws: int) -> tuple[float, int, float]:
    """The ELBO per datum, the number of steps, and seconds."""
    step, read = PEERS[name](task)
    batches = _batches(task)
    start = time.process_time()
    for _ in range(steps):
        step(*next(batches))
    seconds = time.process_time() - start
    return elbo(task, read(), draws), steps, seconds


def run_ours(
    task: Problem, steps: int, prior: str, draws: int, **training: Any
) -> tuple[float, int, float]:
    likelihood = likelihoods.Categorical() if task.is_classifier else likelihoods.Normal()
    model = BNN(bayesianize(task.net(), **PRIORS[prior]), likelihood)
    guide = AutoLRT(model)
    start = time.process_time()
    history = train(model, guide, task.x, task.y, steps, task.batch, **training)
    seconds = time.process_time() - start
    bound = final_elbo(model, guide, task.x, task.y, draws)
    return bound, int(history["step"][-1]), seconds


@torch.no_grad()
def elbo(task: Problem, posterior: Posterior, draws: int) -> float:
    """The ELBO per datum."""
    net, num_data = task.net(), len(task.x)
    names = [name for name, _ in net.named_parameters()]
    log_likelihood = 0.0
    for _ in range(draws):
        drawn = [torch.normal(loc, scale) for loc, scale in posterior.weights]
        weights = dict(zip(names, drawn, strict=True))
        for x, y in zip(task.x.split(2000), task.y.split(2000), strict=True):
            output = functional_call(net, weights, (x,))
            log_likelihood += task.log_likelihood(output, y, posterior.noise).item()
    return (log_likelihood / draws - posterior.kl().item()) / num_data


def measure(name: str, task: str, steps: int, args: argparse.Namespace) -> Row:
    torch.manual_seed(args.seed)
    pyro.clear_param_store()
    with torch.random.fork_rng():  # all start with the same random numbers
        data = problem(task, args)
    if name in PEERS:
        bound, taken, seconds = run_peer(data, name, steps, args.draws)
    else:
        bound, taken, seconds = run_ours(data, steps, args.prior, args.draws, **rates(args))
    return {"task": task, "name": name, "budget": steps, "seed": args.seed} | {
        "steps": taken,
        "seconds": seconds,
        "elbo": bound,
    }


def table(task: str, peers: list[Row], ours: list[Row]) -> str:
    """Who reached which bound, and our first run that is as good."""
    lines = [
        f"{task:26}    ELBO   steps  seconds | {OURS}: ELBO   steps  seconds | times as fast",
    ]
    for peer in peers:
        reached = (row for row in ours if row["elbo"] >= peer["elbo"])
        first = min(reached, key=lambda row: row["steps"], default=None)
        line = "{name:26} {elbo:7.3f} {steps:7} {seconds:8.1f}".format(**peer)
        if first is None:
            lines.append(f"{line} | not reached")
            continue
        line += " | {:14.3f} {:7} {:8.2f}".format(*(first[k] for k in ("elbo", "steps", "seconds")))
        lines.append(f"{line} | {peer['seconds'] / first['seconds']:13.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default="digits,energy,fashion", help="with names of UCI sets")
    parser.add_argument("--peers", default=";".join(PEERS), help="names separated by semicolons")
    parser.add_argument("--steps", type=int, default=20_000, help="that the peers take")
    parser.add_argument("--ladder", default=LADDER, help="steps of ours, each a run of its own")
    parser.add_argument("--prior", choices=PRIORS, default="learned", help="of ours")
    add_rates(parser)
    parser.add_argument("--uci", type=Path, help="folder of the .npz files")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--draws", type=int, default=20, help="of the weights, for an ELBO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to keep results, and to find earlier ones")
    args = parser.parse_args()
    names, peers = args.tasks.split(","), args.peers.split(";")
    if not args.uci and set(names) - {"digits", "fashion"}:
        parser.error(f"tasks {names} need the folder of UCI sets: give it as `--uci`")
    if set(peers) - set(PEERS):
        parser.error(f"unknown peers in {peers}; there are {list(PEERS)}")
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []

    def result(name: str, task: str, steps: int) -> Row:
        key = {"task": task, "name": name, "budget": steps, "seed": args.seed}
        for row in rows:
            if key.items() <= row.items():
                return row
        rows.append(measure(name, task, steps, args))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)
        return rows[-1]

    label = ", ".join([OURS, args.prior, *(f"{name}={rate}" for name, rate in rates(args).items())])
    tables = []
    for task in names:
        theirs = [result(name, task, args.steps) for name in peers]
        ours: list[Row] = []
        for steps in map(int, args.ladder.split(",")):
            ours.append(result(label, task, steps))
            if ours[-1]["elbo"] >= max(row["elbo"] for row in theirs):
                break
        tables.append(table(task, theirs, ours))
    print("\n\n".join(tables))


def _batches(task: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for rows in torch.randperm(len(task.x)).split(task.batch):
            yield task.x[rows], task.y[rows]


if __name__ == "__main__":
    main()
