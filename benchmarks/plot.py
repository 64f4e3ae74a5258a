"""A picture of what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

OURS, OTHERS = "#1b6ca8", "#b9b9b9"
BARS = r"^pyro_bnn.*(standalone|LRT SVI.step)$|^bayesian|^bensemble|^torch-unc|AutoNormal SVI|^TyXe"
LINES = {
    "torch deterministic": ("black", ":"),
    "pyro_bnn reparameterization standalone": ("#1b6ca8", "-"),
    "pyro_bnn flipout standalone": ("#2a9d8f", "-"),
    "pyro_bnn LRT standalone": ("#7b4fa3", "-"),
    "bayesian-torch reparameterization": ("#1b6ca8", "--"),
    "bayesian-torch flipout": ("#2a9d8f", "--"),
    "bensemble LRT": ("#7b4fa3", "--"),
    "Pyro AutoNormal SVI.step": ("#e07a1f", "--"),
}
SWEEPS = {
    "batch size, width 400": {16: "batch-16", 128: "mlp", 1024: "batch-1024"},
    "width, batch 128": {50: "width-50", 400: "mlp", 1600: "width-1600"},
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes one figure: times of some workloads, and how they grow."""
    workloads = results["workloads"]
    figure = plt.figure(figsize=(13, 12), layout="constrained")
    grid = figure.add_gridspec(3, 2)
    for i, name in enumerate(("mlp", "conv", "lstm", "resnet")):
        if name in workloads:
            _bars(figure.add_subplot(grid[i // 2, i % 2]), workloads[name])
    axes: list[Axes] = []
    for i, (label, points) in enumerate(SWEEPS.items()):
        axes.append(figure.add_subplot(grid[2, i], sharey=axes[0] if axes else None))
        _lines(axes[-1], label, {x: workloads[w] for x, w in points.items() if w in workloads})
    axes[0].set_ylabel("ms per training step")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(
        *lines, loc="outside lower center", ncols=4, fontsize=8, handlelength=4, frameon=False
    )
    figure.legend(
        handles=[Patch(color=OURS, label="pyro_bnn"), Patch(color=OTHERS, label="others")],
        loc="outside upper center",
        ncols=2,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Axes, workload: dict[str, Any]) -> None:
    contenders = workload["contenders"]
    chosen = [n for n, r in contenders.items() if re.search(BARS, n) and "median" in r]
    baseline = next(iter(contenders.values()))["median"]
    chosen.sort(key=lambda name: -contenders[name]["median"])
    ratios = [contenders[name]["median"] / baseline for name in chosen]
    colours = [OURS if name.startswith("pyro_bnn") else OTHERS for name in chosen]
    bars = axes.barh(chosen, ratios, color=colours)
    axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_title(workload["title"], fontsize=10, loc="right")
    axes.set_xlabel("time of a step, in those of the deterministic network")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, label: str, points: dict[int, dict[str, Any]]) -> None:
    for name, (colour, style) in LINES.items():
        medians = {x: w["contenders"].get(name, {}).get("median") for x, w in points.items()}
        known = {x: median for x, median in medians.items() if median is not None}
        axes.loglog(known.keys(), known.values(), style, marker="o", color=colour, label=name)
    axes.set_xticks(list(points), [str(x) for x in points])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_title("MLP 100-width-width-10", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
