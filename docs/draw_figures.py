"""Draws the figures of the documentation: ``make figures``, or some of them by name.

What is compared in them is exact, or computed by the library as it is; only ``front`` and
``diagnosis`` train networks, in less than a minute.
"""

from __future__ import annotations

import math
import os
import runpy
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch
from scipy.integrate import quad
from scipy.stats import ncx2
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_bnn import BNN, bayesianize, fit, guides, likelihoods
from pyro_bnn.distributions import (
    HierarchicalNormal,
    NormalMixture,
    hierarchical_kl_bound,
    kl_quadrature,
    mixture_kl_bound,
)

FOLDER = Path(__file__).parent / "figures"
EXAMPLES = FOLDER.parent.parent / "tutorials"
BLUE, ORANGE, GREEN, RED, GRAY = "C0", "C1", "C2", "C3", "#888888"


def front() -> Figure:
    """A regression whose noise grows: the figure of an example."""
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "heteroscedastic.py"))
    return plt.gcf()


def step() -> Figure:
    """What is made of what, and what happens in a step of training."""
    figure, axis = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
    axis.set(xlim=(0, 100), ylim=(0, 52), aspect="equal")
    axis.axis("off")
    top, low = 36, 13
    _box(axis, 1, top, "network\nnn.Sequential(...)", GRAY)
    _box(axis, 26, top, "+ prior of each weight\n= Bayesian network", BLUE)
    _box(axis, 51, top, "+ likelihood\n= model (BNN)", BLUE)
    _box(axis, 76, top, "guide: a posterior\nfor each weight", ORANGE)
    _box(axis, 1, low, "1  guide samples\nweights  w ~ q", ORANGE)
    _box(axis, 26, low, "2  network computes\nits output", GREEN)
    _box(axis, 51, low, "3  likelihood\nlog p(y | x, w)", BLUE)
    _box(axis, 76, low, "4  loss = KL(q || p)\n- N/B Σ log p(y | x, w)", RED)
    for left in (23, 48, 73):
        for y in (top, low):
            _arrow(axis, (left, y + 5), (left + 3, y + 5))
    _arrow(axis, (87, low), (12, low), "arc3,rad=-0.22")
    axis.text(50, 0.8, "5  optimizer updates the parameters of q", ha="center")
    axis.text(1, 48.5, "Built once", weight="bold")
    axis.text(1, 25.5, "In each step of training", weight="bold")
    return figure


def _box(axis: Axes, x: float, y: float, text: str, color: str) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=1.5", "alpha": 0.18, "color": color}
    axis.add_patch(FancyBboxPatch((x, y), 22, 10, **style))
    axis.text(x + 11, y + 5, text, ha="center", va="center", fontsize=11)


def _arrow(axis: Axes, start: tuple, end: tuple, shape: str = "arc3") -> None:
    style = {"arrowstyle": "-|>", "color": "#555555", "connectionstyle": shape}
    axis.annotate("", end, start, arrowprops=style)


def kl() -> Figure:
    """The posterior of one weight, exact, when the KL divergence has a wrong factor."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    w, (num, batch) = np.linspace(-0.2, 1.5, 400), (600, 100)
    scalings = {
        "kl / N: the posterior": (1, BLUE, "-"),
        "kl / batch size: 6 times too much": (num / batch, ORANGE, "--"),
        "mean of 100 weights' kl / batch size": (num / batch / 100, RED, ":"),
    }
    for name, (factor, color, line) in scalings.items():
        precision = 1 + num * 0.1 / factor  # inputs of mean square 0.1, a noise of 1
        mean = num * 0.1 / factor * 0.65 / precision
        density = np.exp(-0.5 * precision * (w - mean) ** 2) * math.sqrt(precision / 2 / math.pi)
        label = f"{name} (sd {precision**-0.5:.3f})"
        axis.plot(w, density, color=color, linestyle=line, label=label)
    axis.set(xlabel="weight", ylabel="density", ylim=(0, 17))
    axis.legend(loc="upper left", fontsize="small")
    return figure


def bounds() -> Figure:
    """The bounds of mixtures and of hierarchical priors beside the KL divergence itself."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained")
    distance = torch.linspace(0, 3, 61)
    half = torch.full((61, 2), 0.5)
    loc = torch.stack([-distance / 2, distance / 2], 1)
    q = NormalMixture(half, loc, torch.full((61, 2), 0.3))
    p = torch.distributions.Normal(torch.zeros(61), 1.0)
    left.plot(distance, mixture_kl_bound(q, p), color=ORANGE, label="bound")
    left.plot(distance, kl_quadrature(q, p).kl, color=BLUE, label="by quadrature")
    left.set(title="Mixture of two Normals, prior N(0, 1)", xlabel="distance of the two means")
    left.set(ylabel="KL divergence (nats)")
    left.legend()

    sizes = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
    for mean, color in ((0.0, BLUE), (1.0, ORANGE)):
        gaps = [_hierarchical_gap(size, mean, 0.1) for size in sizes]
        label = f"means {mean:g}, standard deviations 0.1"
        right.plot(sizes, gaps, ".-", color=color, label=label)
    right.set(title="Hierarchical prior: bound minus KL", xlabel="weights in the group")
    right.set(xscale="log", ylabel="nats per group", ylim=(0, None))
    right.legend(loc="center right", bbox_to_anchor=(1, 0.35), fontsize="small")
    return figure


def _hierarchical_gap(size: int, mean: float, scale: float) -> float:
    """The bound minus the KL divergence by quadrature over the sum of squares."""
    prior = HierarchicalNormal((size,))
    q = torch.distributions.Normal(torch.full((size,), mean).double(), scale)
    q = torch.distributions.Independent(q, 1)
    a, b = prior.concentration.item(), prior.rate.item()
    c, center = a + size / 2, size * (mean / scale) ** 2
    variable = ncx2(size, center) if center else ncx2(size, 1e-9)
    low, high = variable.ppf([1e-12, 1 - 1e-12])
    log = lambda s: math.log(b + 0.5 * scale**2 * s)
    integral = quad(lambda s: variable.pdf(s) * log(s), low, high, limit=500)[0]
    density = math.lgamma(c) - math.lgamma(a) + a * math.log(b) - size / 2 * math.log(2 * math.pi)
    exact = -q.entropy().item() - (density - c * integral)
    return hierarchical_kl_bound(q, prior).item() - exact


def mean_field() -> Figure:
    """Correlated weights, and the bands of a last layer with and without their correlation."""
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 3.3), layout="constrained")
    covariance = np.array([[1, -0.9], [-0.9, 1]])
    free = np.diag(1 / np.diag(np.linalg.inv(covariance)))
    for matrix, color, label in ((covariance, BLUE, "exact"), (free, ORANGE, "mean-field")):
        values, vectors = np.linalg.eigh(matrix)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        for deviations in (1, 2):
            width, height = 2 * deviations * np.sqrt(values[::-1])
            style = {"angle": angle, "fill": False, "color": color, "linewidth": 1.5}
            ellipse = Ellipse((0, 0), width, height, **style)
            axes[0].add_patch(ellipse).set_label(label if deviations == 1 else None)
    axes[0].set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal", title="Two weights")
    axes[0].set(xlabel="weight 1", ylabel="weight 2")
    axes[0].legend(loc="upper right", fontsize="small")

    torch.manual_seed(1)
    x = torch.cat([torch.rand(30) - 2, torch.rand(30) + 1])
    y = (1.5 * x).sin() + 0.1 * torch.randn(60)
    grid = torch.linspace(-3, 3, 300)
    slopes, shifts = 2 * torch.randn(50), 3 * torch.randn(50)
    features = lambda x: (x[:, None] * slopes + shifts).tanh().double()
    phi = features(x)
    precision = phi.T @ phi / 0.01 + torch.eye(50)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ phi.T @ y.double() / 0.01
    bands = {"Exact posterior": covariance, "Best mean-field": torch.diag(1 / precision.diag())}
    for axis, (title, matrix) in zip(axes[1:], bands.items(), strict=True):
        center = features(grid) @ mean
        width = 2 * (features(grid) @ matrix * features(grid)).sum(1).sqrt()
        axis.fill_between(grid, center - width, center + width, color=BLUE, alpha=0.3, lw=0)
        axis.plot(grid, center, color=BLUE)
        axis.plot(x, y, ".", color="black", markersize=4)
        axis.set(title=title, xlabel="input", ylim=(-3, 3))
    return figure


def estimators() -> Figure:
    """Variance of the gradient against the batch size: measured, and by the formula."""
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    torch.manual_seed(0)
    inputs, outputs, scale, draws = 5, 3, 0.1, 400
    sizes = [1, 4, 16, 64, 256, 1024]
    rows = torch.randn(1024, inputs)
    kinds = {
        "AutoReparameterization": (guides.AutoReparameterization, BLUE, "o"),
        "AutoFlipout": (guides.AutoFlipout, ORANGE, "s"),
        "AutoLRT": (guides.AutoLRT, GREEN, "^"),
    }
    for name, (make, color, marker) in kinds.items():
        net = bayesianize(nn.Linear(inputs, outputs, bias=False))
        guide = make(net, init_scale=scale)
        loc = guide["weight"].loc_unconstrained
        measured = [_variance(net, guide, loc, rows[:size], draws) for size in sizes]
        axis.plot(sizes, measured, marker, color=color, label=name)
    square = [(rows[:size].T @ rows[:size] / size).square().sum() for size in sizes]
    fourth = [rows[:size].square().sum(1).square().sum() / size**2 for size in sizes]
    for values, text, at in ((square, "shared sample", 4), (fourth, "flipout and LRT", 3)):
        law = [outputs * scale**2 * value for value in values]
        axis.plot(sizes, law, color="black", linewidth=0.8, zorder=0)
        axis.annotate(text, (sizes[at], law[at]), (4, 9), textcoords="offset points")
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="variance of the gradient")
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.legend(loc="lower left")
    return figure


def _variance(net: nn.Module, guide: object, loc: Tensor, x: Tensor, draws: int) -> float:
    from pyro_bnn.compat import Standalone

    model = Standalone(net, guide)
    gradients = []
    for _ in range(draws):
        output, _ = model(x)
        loss = 0.5 * output.square().sum() / len(x)
        gradients.append(torch.autograd.grad(loss, loc)[0])
    return torch.stack(gradients).var(0).sum().item()


def limits() -> Figure:
    """What a linear layer returns for a line of inputs, by each estimator."""
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 3.2), sharey=True, layout="constrained")
    from pyro_bnn.compat import Standalone

    x = torch.linspace(-1, 1, 60).unsqueeze(-1)
    kinds = (guides.AutoReparameterization, guides.AutoFlipout, guides.AutoLRT)
    for axis, make in zip(axes, kinds, strict=True):
        torch.manual_seed(1)
        net = bayesianize(nn.Linear(1, 1, bias=False))
        model = Standalone(net, make(net, init_loc_fn={"weight": torch.ones(1, 1)}, init_scale=0.4))
        for _ in range(4):
            axis.plot(x, model(x)[0].detach(), linewidth=1)
        axis.set(title=make.__name__, xlabel="input")
    axes[0].set_ylabel("output, in four calls")
    return figure


def diagnosis() -> Figure:
    """The bound in training, by three recipes, beside the trivial bound."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    images, labels = load_digits(return_X_y=True)
    data = torch.tensor(images / 16, dtype=torch.float), torch.tensor(labels)
    recipes = {
        "recipe of fit": {},
        "no warm-up": {"warmup": 0},
        "learning rates of 1e-3": {"scale_lr": 1e-3, "lr": 1e-3},
    }
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        model = BNN(net, likelihoods.Categorical())
        history = fit(model, guides.AutoLRT(model), data, epochs=60, **recipe)
        axis.plot(history["step"], history["bound"], label=name)
    axis.axhline(-math.log(10), color=GRAY, linestyle="--", label="trivial bound: nothing learned")
    axis.set(xlabel="step", ylabel="ELBO (nats per image)", ylim=(-16, 0))
    axis.legend()
    return figure


def choose() -> Figure:
    """Which guide?"""
    figure, axis = plt.subplots(figsize=(7.6, 3.7), layout="constrained")
    axis.set(xlim=(0, 104), ylim=(2, 48), aspect="equal")
    axis.axis("off")
    questions = [
        ("Do rows depend on each other?\n(graphs, pooling over rows)", "AutoReparameterization"),
        (
            "Does uncertainty between data matter,\nand is a Bayesian last layer enough?",
            "last layer,\nFullNormalPosterior",
        ),
        (
            "Recurrent layers, derivatives by inputs,\nor large activations (convolutions)?",
            "AutoFlipout",
        ),
        ("Should the posterior of a weight\nhave several modes?", "AutoMixture"),
    ]
    for i, (question, answer) in enumerate(questions):
        y = 38 - 10 * i
        style = {"boxstyle": "round,pad=0,rounding_size=1.5", "alpha": 0.18}
        axis.add_patch(FancyBboxPatch((2, y), 50, 8, color=GRAY, **style))
        axis.text(27, y + 4, question, ha="center", va="center", fontsize=10)
        axis.add_patch(FancyBboxPatch((66, y + 0.5), 36, 7, color=BLUE, **style))
        axis.text(84, y + 4, answer, ha="center", va="center")
        _arrow(axis, (52, y + 4), (66, y + 4))
        axis.text(59, y + 5, "yes", ha="center", fontsize=10)
        _arrow(axis, (27, y), (27, y - 2))
    axis.text(27, 3.6, "no to all of them: AutoLRT", ha="center", weight="bold", color=BLUE)
    return figure


FIGURES = [front, step, kl, bounds, mean_field, estimators, limits, diagnosis, choose]


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    plt.rcParams.update({"font.size": 12, "axes.titlesize": "medium"})  # pages shrink wide figures
    FOLDER.mkdir(exist_ok=True)
    for draw in FIGURES:
        if names and draw.__name__ not in names:
            continue
        torch.manual_seed(0)
        figure = draw()
        figure.savefig(FOLDER / f"{draw.__name__}.png", dpi=110)
        plt.close(figure)
        print(f"{FOLDER.name}/{draw.__name__}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
