"""How far ahead can sunspots be foretold, and how sure is the network of its forecast?

Trains a linear autoregression, an LSTM with learned weights, and the same LSTM under three
posteriors on the yearly sunspot numbers of 1700 to 1958. Prints how well they forecast the next 50
years, each from the year before and all of them from 1958, and saves a figure with the bands.
Sunspots, and not the CO2 series: their cycles differ, so there is something to be unsure of.

    python tutorials/sunspots.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample, pyro_method
from statsmodels.datasets import sunspots
from torch import Tensor, nn

from pyro_bnn import fit
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoPosterior, AutoReparameterization
from pyro_bnn.infer import Predictive
from pyro_bnn.nn import BayesianLinear, BayesianLSTM
from pyro_bnn.priors import FanInNormal
from pyro_bnn.scores import crps

GUIDES = {
    "reparameterization": AutoReparameterization,
    "flipout": AutoFlipout,
    "LRT": AutoLRT,
}
HELD_OUT = 50  # years
CYCLE = 11  # years, about
WINDOW = 2 * CYCLE  # years that a forecast looks back
HIDDEN = 8
LEARNING_RATE = 2e-2
PATHS = 100  # simulated for each draw of the weights
LEVELS = (0.5, 0.9)  # of the bands


class Linear(PyroModule):
    """The next value of each window of shape (N, WINDOW), linear in the last cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CYCLE, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, -CYCLE:]).squeeze(-1)


class Recurrent(PyroModule):
    """The next value of each window: the last one, and a change that an LSTM makes of them all.

    Each step of the LSTM sees the cycle that ends there, along its principal axes: the posteriors
    take weights to be independent, which those of neighbouring years would not be.
    """

    def __init__(self, axes: Tensor, lstm: nn.LSTM, head: nn.Linear) -> None:
        super().__init__()
        self.lstm = lstm
        self.head = head
        self.register_buffer("axes", axes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x.unfold(1, CYCLE, 1) @ self.axes)
        return x[:, -1] + self.head(outputs[:, -1]).squeeze(-1)


class Model(PyroModule):
    """A Pyro model: network and noise are drawn before the plate, once for all the data."""

    def __init__(self, net: PyroModule) -> None:
        super().__init__()
        self.net = net
        self.noise = PyroSample(dist.HalfNormal(1.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean, noise = self.net(x), self.noise
        # Windows overlap, but each predicts only the year after it: no year counts twice.
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, noise), obs=y)
        return mean

    @pyro_method
    def simulate(self, x: Tensor, years: int) -> Tensor:
        """Continues the windows, each with values of its own, under one draw of the weights."""
        for _ in range(years):
            # The window moves along: the LSTM has learned from sequences of this length.
            value = self.net(x[:, -WINDOW:]) + self.noise * torch.randn(len(x))
            x = torch.cat([x, value.unsqueeze(-1)], 1)
        return x[:, -years:]


class Series:
    """Sunspot numbers, and windows of their standardised square roots, whose noise is even."""

    def __init__(self) -> None:
        table = sunspots.load_pandas().data
        self.years = torch.tensor(table["YEAR"].to_numpy()).int()
        self.numbers = torch.tensor(table["SUNACTIVITY"].to_numpy()).float()
        roots = self.numbers.sqrt()
        self.mean, self.std = roots[:-HELD_OUT].mean(), roots[:-HELD_OUT].std()
        windows = ((roots - self.mean) / self.std).unfold(0, WINDOW + 1, 1)
        x, y = windows[:, :-1], windows[:, -1]
        self.train, self.test = (x[:-HELD_OUT], y[:-HELD_OUT]), (x[-HELD_OUT:], y[-HELD_OUT:])

    def restore(self, z: Tensor) -> Tensor:
        """Sunspot numbers from standardised roots; below a root of 0 there are no spots."""
        return (z * self.std + self.mean).clamp_min(0).square()


def networks(x: Tensor) -> dict[str, tuple[PyroModule, type[AutoPosterior]]]:
    """Networks and guides; where the weights are learned, the guide is that of the noise only."""
    axes = torch.linalg.svd(x[:, -CYCLE:]).Vh.T
    lstm, head = nn.LSTM(CYCLE, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)
    result: dict[str, tuple[PyroModule, type[AutoPosterior]]] = {
        "linear": (Linear(), AutoReparameterization),
        "deterministic": (Recurrent(axes, lstm, head), AutoReparameterization),
    }
    for name, make in GUIDES.items():
        prior = FanInNormal()
        lstm = BayesianLSTM(CYCLE, HIDDEN, batch_first=True, prior=prior)
        head = BayesianLinear(HIDDEN, 1, prior=prior)
        result[name] = Recurrent(axes, lstm, head), make
    return result


def train(model: Model, guide: AutoPosterior, x: Tensor, y: Tensor, steps: int) -> None:
    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # If the model has learned weights, they decay about as fast as the priors of random ones
        # ask; the noise does not.
        learned = set(model.parameters())
        decayed = {"params": list(learned), "weight_decay": CYCLE, "lr": LEARNING_RATE}
        for group in groups:
            group["params"] = [p for p in group["params"] if p not in learned]
        return torch.optim.Adam([decayed, *groups])

    settings = {"batch_size": len(x), "lr": LEARNING_RATE, "optimizer": optimizer}
    fit(model, guide, (x, y), steps, **settings)


def forecast(
    model: Model, guide: AutoPosterior, series: Series, samples: int
) -> tuple[Tensor, Tensor, float]:
    """Forecasts of the numbers one year ahead and all at once, and a log predictive density.

    The forecasts have the shape (draws of the weights, PATHS, HELD_OUT). The density is that of the
    standardised root one year ahead, in nats per year.
    """
    x, y = series.test
    ahead = Predictive(model, guide=guide, num_samples=samples, return_sites=["_RETURN", "noise"])
    drawn = ahead(x)
    mean, noise = drawn["_RETURN"].unsqueeze(1), drawn["noise"].view(-1, 1, 1)
    log_density = dist.Normal(mean, noise).log_prob(y).logsumexp(0) - math.log(samples)
    next_year = mean + noise * torch.randn(samples, PATHS, HELD_OUT)

    free = Predictive(model.simulate, guide=guide, num_samples=samples, return_sites=["_RETURN"])
    all_years = free(x[:1].expand(PATHS, -1), HELD_OUT)["_RETURN"]
    return series.restore(next_year), series.restore(all_years), log_density.mean().item()


def band(x: Tensor, level: float) -> Tensor:
    """The lower and upper end of the central band of samples in the first dimension."""
    return x.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)


def coverage(x: Tensor, truth: Tensor, level: float) -> float:
    low, high = band(x, level)
    return ((low <= truth) & (truth <= high)).float().mean().item()


def scores(
    next_year: Tensor, all_years: Tensor, log_density: float, truth: Tensor
) -> dict[str, float]:
    """Errors, and the shares of the held-out years that lie in the bands."""
    one, free = next_year.flatten(0, 1), all_years.flatten(0, 1)
    result = {
        "RMSE, 1 year": (one.mean(0) - truth).square().mean().sqrt().item(),
        "log p, 1 year": log_density,
    }
    result.update({f"in {level:.0%}, 1 year": coverage(one, truth, level) for level in LEVELS})
    result["CRPS, 50 years"] = crps(free, truth).mean().item()
    result.update({f"in {level:.0%}, 50 years": coverage(free, truth, level) for level in LEVELS})
    return result


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [" " * 20 + "".join(f"{c:>18}" for c in columns)]
    lines += [f"{name:20}" + "".join(f"{r[c]:18.3f}" for c in columns) for name, r in rows.items()]
    return "\n".join(lines)


def draw_figure(forecasts: dict[str, tuple[Tensor, Tensor]], series: Series, path: Path) -> None:
    """Bands of each kind of forecast: of the numbers, and of their mean given the weights."""
    figure, axes = plt.subplots(
        2, len(forecasts), figsize=(13, 8), sharex=True, sharey=True, layout="constrained"
    )
    held_out, shown = series.years[-HELD_OUT:], slice(-HELD_OUT - 2 * CYCLE, None)
    titles = ("each year from those before", f"all years from {held_out[0] - 1}")
    for (name, kinds), column in zip(forecasts.items(), axes.T, strict=True):
        for axis, x, title in zip(column, kinds, titles, strict=True):
            for level, alpha in zip(LEVELS, (0.5, 0.25), strict=True):
                low, high = band(x.flatten(0, 1), level)
                style = {"color": "tab:blue", "alpha": alpha, "linewidth": 0}
                axis.fill_between(held_out, low, high, label=f"{level:.0%} of forecasts", **style)
            low, high = band(x.mean(1), LEVELS[-1])
            label = f"{LEVELS[-1]:.0%} of their means, given the weights"
            axis.plot(held_out, low, color="tab:orange", label=label)
            axis.plot(held_out, high, color="tab:orange")
            axis.plot(series.years[shown], series.numbers[shown], "k", label="observed")
            axis.axvline(held_out[0] - 0.5, color="gray", linestyle=":")
            axis.set(title=f"{name}: {title}", ylim=(0, 250))
        column[1].plot(held_out, x[0, 0], color="gray", linewidth=0.8, label="one simulated path")
    for axis in axes[:, 0]:
        axis.set_ylabel("sunspot number")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--samples", type=int, default=100, help="posterior samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/sunspots.png"))
    args = parser.parse_args(argv)
    start = time.perf_counter()
    torch.set_num_threads(1)  # small networks gain nothing from more
    torch.manual_seed(args.seed)
    series = Series()
    truth, naive = series.numbers[-HELD_OUT:], series.numbers[-HELD_OUT - CYCLE : -CYCLE]
    print(
        f"{len(series.train[0])} windows for training, {HELD_OUT} years held out; "
        f"RMSE of the number {CYCLE} years before: {(naive - truth).square().mean().sqrt():.1f}"
    )
    rows, forecasts = {}, {}
    for name, (net, make) in networks(series.train[0]).items():
        model = Model(net)
        guide = make(model)
        train(model, guide, *series.train, args.steps)
        *forecasts[name], log_density = forecast(model, guide, series, args.samples)
        rows[name] = scores(*forecasts[name], log_density, truth)
    print(table(rows))
    draw_figure({name: forecasts[name] for name in ("deterministic", "LRT")}, series, args.out)
    print(f"figure: {args.out} ({time.perf_counter() - start:.0f} s)")
    return rows


if __name__ == "__main__":
    main()
