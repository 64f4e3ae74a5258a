"""How wrong is mean-field? The five guides beside NUTS, on a network of 50 weights and real data.

The yearly flow of the Nile (statsmodels' `nile`, 100 years), a network 1-16-1 with priors N(0, 1),
and a noise of unknown scale. Many weights compute the same function (units may be exchanged, and
their signs), and NUTS walks among them, so that what is compared are functions: their standard
deviation where there are data and beyond; that of single weights on average; the noise.

    python benchmarks/mean_field.py --plot docs/figures/nuts.png
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from recipe import add_rates, mlp, rates, train
from statsmodels.datasets import nile
from torch import Tensor, nn

from pyro_bnn import BNN, evaluate, guides, likelihoods
from pyro_bnn.infer import Predictive

GUIDES = ("AutoLRT", "AutoFlipout", "AutoReparameterization", "AutoMixture", "AutoRadial")
NOISE = "likelihood.scale"
Samples = Mapping[str, Tensor]


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Years and flows, standardized; every fifth one is for tests."""
    table = nile.load_pandas().data
    x, y = (torch.tensor(table[name].to_numpy(), dtype=torch.float) for name in ("year", "volume"))
    x, y = ((v - v.mean()) / v.std() for v in (x.unsqueeze(-1), y))
    test = torch.arange(len(x)) % 5 == 2
    return x[~test], y[~test], x[test], y[test]


def model(hidden: int) -> BNN:
    prior = dist.Normal(0.0, 1.0)
    net = mlp([1, hidden, 1], nn.Tanh, prior=prior, bias_prior=prior)
    return BNN(net, likelihoods.Normal(dist.HalfNormal(1.0)))


def nuts(bnn: BNN, x: Tensor, y: Tensor, args: argparse.Namespace) -> Samples:
    """Samples of all chains, one after another."""
    chains = []
    for seed in range(args.chains):
        pyro.set_rng_seed(seed)
        kernel = NUTS(bnn, max_tree_depth=7, jit_compile=True, ignore_jit_warnings=True)
        mcmc = MCMC(kernel, args.draws, args.warmup, disable_progbar=True)
        mcmc.run(x, y)
        chains.append(mcmc.get_samples())
    result = {name: torch.cat([chain[name] for chain in chains]) for name in chains[0]}
    if args.chains > 1 and args.draws > 3:
        f = outputs(bnn, result, x).unflatten(0, (args.chains, -1))
        print(f"largest R-hat of the outputs: {split_gelman_rubin(f).max():.2f}")
    return result


def vi(bnn: BNN, name: str, x: Tensor, y: Tensor, args: argparse.Namespace) -> Samples:
    guide = getattr(guides, name)(bnn)
    train(bnn, guide, x, y, args.steps, batch=len(x), **rates(args))
    with torch.no_grad():
        drawn = Predictive(bnn, guide=guide, num_samples=2000)(x)
    return {site: drawn[site] for site in guide}


def outputs(bnn: BNN, samples: Samples, x: Tensor) -> Tensor:
    """The function of each sample at the inputs, of shape (samples, rows)."""
    with torch.no_grad():
        return Predictive(bnn, dict(samples), return_sites=["_RETURN"])(x)["_RETURN"].squeeze(-1)


def summary(bnn: BNN, samples: Samples, test: tuple[Tensor, Tensor], grid: Tensor) -> dict:
    f = outputs(bnn, samples, grid)
    inside = grid.squeeze(-1).abs() < 1.7
    weights = torch.cat([w.flatten(1) for n, w in samples.items() if n != NOISE], 1)
    return {
        "inside": f[:, inside].std(0).mean().item(),
        "outside": f[:, ~inside].std(0).mean().item(),
        "weights": weights.std(0).mean().item(),
        "noise": samples[NOISE].mean().item(),
        "noise_sd": samples[NOISE].std().item(),
        "log_density": evaluate(bnn, samples, test)["log_density"],
        "mean": f.mean(0).tolist(),
        "sd": f.std(0).tolist(),
    }


def table(rows: dict[str, dict]) -> str:
    lines = [
        f"{'':24}    sd of f    beyond   sd of a           noise   held-out  seconds\n"
        f"{'':24}    at data  the data    weight                    log density"
    ]
    for name, row in rows.items():
        lines.append(
            f"{name:24} {row['inside']:10.3f}{row['outside']:10.3f}{row['weights']:10.3f}"
            f"   {row['noise']:.3f} ± {row['noise_sd']:.3f}{row['log_density']:11.3f}"
            f"{row['seconds']:9.0f}"
        )
    return "\n".join(lines)


def plot(rows: dict[str, dict], grid: Tensor, x: Tensor, y: Tensor, path: Path) -> None:
    import matplotlib.pyplot as plt

    truth, *others = rows
    plt.rcParams.update({"font.size": 12, "axes.titlesize": "medium"})
    size = {"figsize": (9.5, 5.6), "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(2, 3, **size)
    t = grid.squeeze(-1).numpy()
    for ax, name in zip(axes.flat, others, strict=False):
        for key, color, label in ((truth, "0.6", truth), (name, "C0", "guide")):
            mean, sd = (np.array(rows[key][k]) for k in ("mean", "sd"))
            ax.fill_between(t, mean - 2 * sd, mean + 2 * sd, color=color, alpha=0.4, lw=0)
            ax.plot(t, mean, color=color, label=label)
        ax.plot(x.squeeze(-1), y, ".", color="k", ms=3, label="data")
        ax.set(title=name, ylim=(-4, 4))
    for ax in axes.flat[len(others) :]:
        ax.axis("off")
    axes[-1, -1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("year, standardised", fontsize="medium")
    figure.supylabel("flow, standardised", fontsize="medium")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10_000, help="of the guides' training")
    parser.add_argument("--draws", type=int, default=200, help="samples of a chain")
    parser.add_argument("--warmup", type=int, default=150, help="steps of a chain before those")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--plot", type=Path, help="an image to write")
    parser.add_argument("--json", type=Path, help="where to save the results")
    add_rates(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    x, y, *test = data()
    grid = torch.linspace(-3, 3, 121).unsqueeze(-1)
    rows: dict[str, dict[str, Any]] = {}
    for name in ("NUTS", *args.guides.split(",")):
        torch.manual_seed(0)
        bnn = model(args.hidden)
        start = time.process_time()
        samples = nuts(bnn, x, y, args) if name == "NUTS" else vi(bnn, name, x, y, args)
        seconds = time.process_time() - start
        rows[name] = summary(bnn, samples, (test[0], test[1]), grid) | {"seconds": seconds}
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(rows, grid, x, y, args.plot)
    print(table(rows))


if __name__ == "__main__":
    main()
