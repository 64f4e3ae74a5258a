"""Classes with uncertainty at equal training time: this library beside seven other ways.

    python benchmarks/league.py --fashion FOLDER

For each seed, every rival trains for the same processor time on one core. Prints the tables of
docs/comparison.rst, and writes `league.json` and `league.png`. Peers that are not installed are
left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import rivals
import torch
import torch.nn.functional as F
from rivals import RIVALS, Problem, Rival
from tasks import digits_split, fashion_split

from pyro_bnn import scores

FOLDER = Path(__file__).parent
SCORES = ["accuracy", "log_density", "calibration_error", "novelty_auroc"]
BETTER = dict(zip(SCORES, (1, 1, -1, 1), strict=True))


def problems(fashion: Path | None, seed: int) -> dict[str, Problem]:
    """Digits, whose unknown images are clothes; and clothes, whose unknown images are digits."""
    x, y, test_x, test_y = digits_split(seed)
    if fashion is None:
        unknown = torch.rand(len(test_x), 64)
        return {"digits": Problem(x, y, test_x, test_y, unknown, (100, 100))}
    images, classes, test_images, test_classes = fashion_split(fashion)(seed)
    small = F.avg_pool2d(test_images[:360, :, 2:26, 2:26], 3).flatten(1)
    large = F.interpolate(test_x.reshape(-1, 1, 8, 8), size=(28, 28), mode="bilinear").flatten(1)
    clothes = images.flatten(1), classes, test_images.flatten(1), test_classes
    return {
        "digits": Problem(x, y, test_x, test_y, small, (100, 100)),
        "fashion": Problem(*clothes, large, (200, 200)),
    }


def measured(rival: Rival, problem: Problem, seconds: float, seed: int) -> dict[str, float]:
    """Scores after training for a processor time."""
    rival(problem, 0.1)  # a first call loads what it needs
    pyro.set_rng_seed(seed)
    start, before = time.process_time(), rivals.steps_taken
    probs = rival(problem, seconds)
    spent, steps = time.process_time() - start, rivals.steps_taken - before
    known, unknown = probs(problem.test_x), probs(problem.unknown)
    confidence, predicted = known.max(-1)
    correct = predicted == problem.test_y
    entropy = lambda p: torch.special.entr(p).sum(-1)
    return {
        "accuracy": correct.double().mean().item(),
        "log_density": known[torch.arange(len(known)), problem.test_y].log().mean().item(),
        "calibration_error": scores.calibration_error(confidence, correct),
        "novelty_auroc": scores.novelty_auroc(entropy(known), entropy(unknown)),
        "steps": steps,
        "seconds": spent,
    }


def summary(values: list[dict[str, float]], key: str) -> tuple[float, float]:
    """Mean and standard error."""
    found = [value[key] for value in values]
    error = np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(np.mean(found)), float(error)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| | accuracy | log density | calibration error | novelty AUROC | steps |"]
    lines.append("| --- " * 6 + "|")
    for name, values in results.items():
        cells = ["{:.3f} ± {:.3f}".format(*summary(values, key)) for key in SCORES]
        lines.append(f"| {name} | {' | '.join(cells)} | {summary(values, 'steps')[0]:.0f} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    plt.rcParams.update({"font.size": 12, "axes.titlesize": "large"})  # pages shrink wide figures
    size = (10, 4 * len(results))
    options = {"figsize": size, "squeeze": False, "sharey": "row", "layout": "constrained"}
    figure, grid = plt.subplots(len(results), len(SCORES), **options)
    for row, (task, entries) in zip(grid, results.items(), strict=True):
        for axes, key in zip(row, SCORES, strict=True):
            for i, (name, values) in enumerate(entries.items()):
                mean, error = summary(values, key)
                color = "#1b6ca8" if name.startswith("pyro_bnn") else "#8a8a8a"
                axes.errorbar(mean, -i, xerr=error, fmt="o", color=color)
            way = "higher" if BETTER[key] > 0 else "lower"
            label = key.replace("_", " ").replace("auroc", "AUROC")
            axes.set_xlabel(f"{label}\n({way} is better)")
            axes.grid(axis="x", alpha=0.3)
            axes.locator_params(axis="x", nbins=3)
        names = [name.replace(", KL", ",\nKL") for name in entries]
        row[0].set_yticks([-i for i in range(len(entries))], names)
        row[0].set_title(task, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of training")
    parser.add_argument("--only", default="", help="names of rivals, separated by semicolons")
    parser.add_argument("--out", type=Path, default=FOLDER, help="for league.json and league.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(args.seeds):
        for task, problem in problems(args.fashion, seed).items():
            for name, rival in RIVALS.items():
                if args.only and name not in args.only.split(";"):
                    continue
                try:
                    found = measured(rival, problem, args.seconds, seed)
                except ModuleNotFoundError as error:
                    print(f"{name} is left out: {error}")
                    continue
                results.setdefault(task, {}).setdefault(name, []).append(found)
                print(f"{task}, seed {seed}, {name}: {found}", flush=True)
                (args.out / "league.json").write_text(json.dumps(results, indent=1) + "\n")
    for task, entries in results.items():
        print(f"\n{task}\n\n{table(entries)}")
    draw(results, args.out / "league.png")


if __name__ == "__main__":
    main()
