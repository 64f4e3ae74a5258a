"""Measures the candidates for the default prior, start and learning rates.

Trains networks on several kinds of data with each candidate, and prints the held-out log predictive
density and, in brackets, the ELBO after training, in nats per example (higher is better), means
over splits. Only candidates whose ELBO has converged count: `--times 10` trains ten times as long.

The UCI files are `concrete.npz` and so on, with arrays `X`, `y` and `test_index` (a row of test
indices for each split); Fashion-MNIST is in the four IDX files of Debian's dataset-fashion-mnist.

    python benchmarks/defaults.py --uci FOLDER --fashion FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from recipe import PRIORS, Recipe, add_rates, final_elbo, rates, train
from tasks import tasks

from pyro_bnn import evaluate, guides
from pyro_bnn.priors import FanInNormal

FAN_IN = Recipe(priors={"prior": FanInNormal(2**0.5)})
CANDIDATES = {name: Recipe(priors=priors) for name, priors in PRIORS.items()} | {"fan-in": FAN_IN}
CANDIDATES |= {
    f"{name}, {label}": replace(CANDIDATES[name], training=training)
    for name in ("learned", "Normal", "tensor", "output", "fan-in")
    for label, training in {
        "no warm-up": {"warmup": 0.0},
        **{f"KL weight {weight}": {"kl_weight": weight} for weight in (0.3, 0.1, 0.03)},
    }.items()
}


def run(
    candidate: str, task_name: str, split: int, times: float, args: argparse.Namespace
) -> dict[str, Any]:
    torch.set_num_threads(1)  # the networks are small
    torch.manual_seed(split)
    pyro.enable_validation(False)
    recipe, task = CANDIDATES[candidate], tasks(args.uci, args.fashion)[task_name]
    x, y, test_x, test_y = task.split(split)
    if args.rows:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[: args.rows]
        x, y = x[rows], y[rows]
    model = task.model(recipe.priors)
    guide = getattr(guides, args.guide or task.guide)(model, **recipe.guide)
    training = rates(args) | recipe.training
    start = time.process_time()
    history = train(model, guide, x, y, int(times * task.steps), task.batch, **training)
    seconds = time.process_time() - start
    return {
        "candidate": candidate,
        "task": task_name,
        "split": split,
        "times": times,
        "seconds": seconds,  # of the processor, for training
        "objective": np.mean(history["bound"][-10:]),  # the ELBO if examples have one weight each
        "elbo": final_elbo(model, guide, x, y, draws=20),
        **evaluate(model, guide, (test_x, test_y), args.samples),
    }


def table(rows: list[dict[str, Any]], names: list[str], metrics: list[str]) -> str:
    """Means over splits; all but the first metric in brackets."""
    width = 9 * len(metrics) + 2
    lines = [f"{'':36}" + "".join(f"{name:>{width}}" for name in names)]
    for key in dict.fromkeys((row["candidate"], row["times"]) for row in rows):
        label = key[0] if key[1] == 1 else f"{key[0]}, {key[1]:g} times"
        cells = []
        for name in names:
            own = [r for r in rows if (r["candidate"], r["times"], r["task"]) == (*key, name)]
            first, *others = (np.mean([r[k] for r in own]) if own else np.nan for k in metrics)
            rest = f" ({', '.join(f'{x:.3f}' for x in others)})" if others else ""
            cells.append(f"{first:.3f}{rest}")
        lines.append(f"{label:36}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--uci", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--tasks", help="names separated by commas; all by default")
    parser.add_argument("--candidates", help="names separated by semicolons; all by default")
    parser.add_argument("--guide", help="by default, AutoLRT, or AutoFlipout for the recurrent one")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--rows", type=int, help="train on so few, drawn at random")
    add_rates(parser)
    parser.add_argument("--samples", type=int, default=300, help="posterior samples")
    parser.add_argument(
        "--metrics",
        default="log_density,elbo",
        help="what the table shows, of `evaluate`, elbo, objective and seconds",
    )
    parser.add_argument("--times", default="1", help="factors of the number of steps")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="where to keep results, and to find earlier ones")
    args = parser.parse_args()
    names = args.tasks.split(",") if args.tasks else list(tasks(args.uci, args.fashion))
    candidates = args.candidates.split(";") if args.candidates else list(CANDIDATES)
    wanted = [
        (candidate, name, split, float(times))
        for name in names
        for candidate in candidates
        for times in args.times.split(",")
        for split in range(1 if name == "sunspots" else args.splits)
    ]
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    done = {(r["candidate"], r["task"], r["split"], r["times"]) for r in rows}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *task, args) for task in wanted if task not in done]
        for future in as_completed(futures):
            rows.append(future.result())
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, names, args.metrics.split(",")))


if __name__ == "__main__":
    main()
