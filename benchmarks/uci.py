"""Regression on UCI's sets: log predictive density, RMSE and ELBO of every guide.

FOLDER has a file `NAME.npz` for each set, with arrays `X`, `y` and `test_index` (a row of test
indices for each split, padded with -1). Every set gets the same network and the same training: one
configuration, the library's defaults, with a learned noise. Results are in the units of `y` and per
datum; the table shows means over splits, standard errors, and published figures.

    python benchmarks/uci.py FOLDER --splits 20 --guides AutoLRT,AutoFlipout --json results.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from recipe import PRIORS, add_rates, final_elbo, mlp, rates, regression, train
from uci_sets import read

from pyro_bnn import evaluate, guides

GUIDES = ("AutoLRT", "AutoFlipout", "AutoReparameterization", "AutoRadial", "AutoMixture")
# Log densities, one hidden layer of 50 (PBP-MV: two), the same 20 splits. Sources:
# google/uncertainty-baselines `baselines/uci/README.md`; yaringal/DropoutUncertaintyExps.
PUBLISHED = {
    "mean-field VI": {"concrete": -3.22, "energy": -0.93, "wine": -1.00, "yacht": -2.01},
    "refined VI": {"concrete": -3.08, "energy": -0.75, "wine": -0.97, "yacht": -1.68},
    "VMG": {"concrete": -3.01, "energy": -1.06, "wine": -0.95, "yacht": -1.30},
    "PBP-MV": {"concrete": -3.04, "energy": -1.01, "wine": -0.97, "yacht": -1.64},
    "dropout": {"concrete": -2.93, "energy": -1.21, "wine": -0.93, "yacht": -1.25},
    "10 networks": {"concrete": -3.20, "energy": -0.61, "wine": -0.97, "yacht": -0.73},
}
Row = dict[str, Any]


def run(path: Path, guide_name: str, split: int, args: argparse.Namespace) -> Row:
    """Trains on one split, and scores its test rows."""
    torch.set_num_threads(1)  # the networks are small
    torch.manual_seed(split)
    pyro.enable_validation(False)
    (x, y, test_x, test_y), y_scale = read(path).split(split)
    sizes = [x.shape[1], *[args.hidden] * args.layers, 1]
    model = regression(mlp(sizes, **PRIORS[args.prior]))
    guide = getattr(guides, guide_name)(model)
    train(model, guide, x, y, args.steps, args.batch, **rates(args))

    found = evaluate(model, guide, (test_x, test_y), args.samples)
    elbo = final_elbo(model, guide, x, y, draws=50)
    return {
        "set": path.stem,
        "guide": guide_name,
        "split": split,
        "rmse": found["rmse"] * y_scale,
        "log_density": found["log_density"] - math.log(y_scale),
        "elbo": elbo - math.log(y_scale),
    }


def table(rows: list[Row]) -> str:
    sets = sorted({row["set"] for row in rows})
    lines = ["log density; RMSE; ELBO per datum (means over splits, standard errors)"]
    lines.append(f"{'':24}" + "".join(f"{name:>46}" for name in sets))
    for guide in dict.fromkeys(row["guide"] for row in rows):
        cells = []
        for name in sets:
            own = [row for row in rows if row["set"] == name and row["guide"] == guide]
            values = {key: [row[key] for row in own] for key in ("log_density", "rmse", "elbo")}
            cells.append("; ".join(_mean_and_error(v) for v in values.values()))
        lines.append(f"{guide:24}" + "".join(f"{cell:>46}" for cell in cells))
    for method, figures in PUBLISHED.items():
        cells = [f"{figures[name]:.2f}" if name in figures else "" for name in sets]
        lines.append(f"{method:24}" + "".join(f"{cell:>17}{'':29}" for cell in cells))
    return "\n".join(lines)


def _mean_and_error(values: list[float]) -> str:
    if not values:
        return "-"
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", help="names separated by commas; all by default")
    parser.add_argument("--splits", type=_count, default=20, help="the first ones")
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--hidden", type=_count, default=50)
    parser.add_argument("--layers", type=_count, default=1, help="hidden layers")
    parser.add_argument("--prior", choices=PRIORS, default="learned")
    parser.add_argument("--steps", type=_count, default=20_000)
    parser.add_argument("--batch", type=_count, default=128, help="rows of a step")
    add_rates(parser)
    parser.add_argument("--samples", type=_count, default=1000, help="posterior samples")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="where to save the results of all splits")
    args = parser.parse_args(argv)

    paths = sorted(args.folder.glob("*.npz"))
    if args.sets:
        found = {path.stem: path for path in paths}
        missing = [name for name in args.sets.split(",") if name not in found]
        if missing:
            parser.error(f"no sets {missing} in {args.folder}, but {sorted(found)}")
        paths = [found[name] for name in args.sets.split(",")]
    names = args.guides.split(",")
    unknown = [name for name in names if name not in GUIDES]
    if not paths or unknown:
        parser.error(f"no sets in {args.folder}" if not paths else f"unknown guides {unknown}")
    if args.json and not args.json.resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder")
    try:
        numbers = {path: min(args.splits, len(read(path).tests)) for path in paths}
    except ValueError as error:
        parser.error(str(error))
    tasks = [(path, guide, n) for guide in names for path in paths for n in range(numbers[path])]
    rows: list[Row] = []
    failed = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *task, args): task for task in tasks}
        for future in as_completed(futures):
            path, guide, split = futures[future]
            if future.exception() is not None:
                failed.append(f"{path.stem} {guide} {split}: {future.exception()!r}")
                print("failed", failed[-1], flush=True)
                continue
            row = future.result()
            rows.append(row)
            print(
                f"{row['set']:12} {row['guide']:24} {row['split']:3} log density "
                f"{row['log_density']:8.3f} RMSE {row['rmse']:8.3f} ELBO {row['elbo']:8.3f}",
                flush=True,
            )
            if args.json:  # kept up to date, since all splits take long
                args.json.write_text(json.dumps(sorted(rows, key=_order), indent=1) + "\n")
    print(table(sorted(rows, key=_order)))
    if failed:
        raise SystemExit("\n".join([f"{len(failed)} trainings failed:", *failed]))
    return rows


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no positive integer")
    return int(text)


def _order(row: Row) -> tuple[int, str, int]:
    return GUIDES.index(row["guide"]), row["set"], row["split"]


if __name__ == "__main__":
    main()
