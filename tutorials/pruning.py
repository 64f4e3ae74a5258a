"""How many of its weights does a network need, and does its uncertainty tell which?

Trains a network on scikit-learn's handwritten digits, once as a deterministic one with the penalty
of a Normal prior, once made Bayesian with that prior by `bayesianize`. Then removes more and more
of the weights: from the Bayesian network those with the least signal-to-noise ratio |mu| / sigma,
as Blundell et al. (2015, arXiv:1505.05424, section 5.2) did; from the deterministic one those of
least magnitude. Prints how well each predicts new images, as it is pruned and after training on
what is left, and saves a figure of that and of the ratios. A pruned network is exported as a plain
one by `torch.export`.

    python tutorials/pruning.py

It takes one and a half minutes on one core. Pruned by the ratio, the network keeps its accuracy
without further training until about as many weights are gone as the default threshold of `prune`
would remove, nearly all of them. Pruned by magnitude, the deterministic one loses it long before,
but keeps it for about as long if it is trained on. Of what is left beyond, that by the ratio trains
on best. The ratio does not make the whole network predict better: there, and trained on until most
of the weights are gone, the deterministic one has the lower NLL.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured
from tqdm import trange

import pyro_bnn
from pyro_bnn.guides import AutoLRT, AutoPosterior
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.priors import Normal

FRACTIONS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
EXPORTED = 0.75  # the fraction removed from the network that is exported
THRESHOLD = 0.83  # the default of `prune`
NUM_CLASSES = 10
HIDDEN = 100
BATCH = 128
LEARNING_RATE = 1e-2
STYLES = {
    "Bayesian": {"color": "C0"},
    "its mean": {"color": "C2"},
    "Bayesian, trained on": {"color": "C0", "linestyle": "--"},
    "magnitude": {"color": "C1"},
    "magnitude, trained on": {"color": "C1", "linestyle": "--"},
}

Data = dict[str, tuple[Tensor, Tensor]]
Row = dict[str, float]


class Classifier(PyroModule):
    """A Pyro model: the network is called before the plate, once for all the data."""

    def __init__(self, net: nn.Module, num_data: int) -> None:
        super().__init__()
        self.net = net
        self.num_data = num_data

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        logits = self.net(x)
        # The plate scales the likelihood of a mini-batch up to all of the data.
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("label", dist.Categorical(logits=logits), obs=y)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, NUM_CLASSES),
    )


def load() -> Data:
    """Images in [0, 1] as rows of 64 pixels: for training, and for tests."""
    images, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(
        torch.tensor(images / 16, dtype=torch.float),
        torch.tensor(labels),
        test_size=0.25,
        random_state=0,
        stratify=labels,
    )
    return {"train": (x, y), "test": (test_x, test_y)}


def batches(data: Data, steps: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = data["train"]
    for _ in trange(steps, desc=f"{name:20}", leave=False, mininterval=0.5):
        index = torch.randint(len(x), (BATCH,))
        yield x[index], y[index]


def train_deterministic(net: nn.Module, data: Data, steps: int, name: str) -> None:
    # The weight decay is the same prior, N(0, 1), which makes this the most probable network.
    decay = 1 / len(data["train"][0])
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for x, y in batches(data, steps, name):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()


def train_bayesian(
    model: Classifier, guide: AutoPosterior, data: Data, steps: int, **training: Any
) -> None:
    num_batches = math.ceil(len(data["train"][0]) / BATCH)
    epochs = math.ceil(steps / num_batches)
    pyro_bnn.fit(model, guide, data["train"], epochs, batch_size=BATCH, **training)


@torch.no_grad()
def predict(net: nn.Module, x: Tensor) -> Tensor:
    """The class probabilities of a plain network."""
    return net(x).softmax(-1)


def predict_averaged(model: Classifier, guide: AutoPosterior, x: Tensor, samples: int) -> Tensor:
    """The class probabilities, averaged over draws of the weights."""
    predictive = Predictive(model.net, guide=guide, num_samples=samples, return_sites=["_RETURN"])
    return predictive(x)["_RETURN"].softmax(-1).mean(0)


def prune_by_magnitude(net: nn.Sequential, fraction: float) -> None:
    """Removes the weights and biases of least magnitude in the whole network."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    parameters = [(layer, key) for layer in layers for key in ("weight", "bias")]
    global_unstructured(parameters, L1Unstructured, amount=fraction)


def scores(p: Tensor, y: Tensor, name: str) -> Row:
    return {
        f"accuracy: {name}": (p.argmax(-1) == y).float().mean().item(),
        f"NLL: {name}": nn.functional.nll_loss(p.clamp_min(1e-12).log(), y).item(),
    }


def bound(model: Classifier, guide: AutoPosterior, data: Data, name: str) -> Row:
    """The negative ELBO of what is left of a network, in nats per image of the training set."""
    x, y = data["train"]
    elbo = TraceKL_ELBO(num_particles=10)(model, guide)
    with torch.no_grad():
        return {f"negative ELBO: {name}": elbo(x, y).item() / len(x)}


def magnitude_row(net: nn.Sequential, fraction: float, data: Data, steps: int) -> Row:
    """Without a fraction of the weights of a plain network, and after training the others."""
    x, y = data["test"]
    net = copy.deepcopy(net)
    prune_by_magnitude(net, fraction)
    row = scores(predict(net, x), y, "magnitude")
    train_deterministic(net, data, steps, f"{fraction:.0%} by magnitude")
    return row | scores(predict(net, x), y, "magnitude, trained on")


def bayesian_row(
    model: Classifier,
    guide: AutoPosterior,
    fraction: float,
    data: Data,
    steps: int,
    samples: int,
) -> Row:
    """Without a fraction of the weights of a Bayesian network, and after training the others."""
    x, y = data["test"]
    guide = copy.deepcopy(guide)  # of the same model
    pyro_bnn.prune(guide, fraction=fraction)
    row = scores(predict_averaged(model, guide, x, samples), y, "Bayesian")
    row |= scores(predict(pyro_bnn.to_deterministic(model.net, guide), x), y, "its mean")
    row |= bound(model, guide, data, "Bayesian")
    train_bayesian(model, guide, data, steps, warmup=0)  # it has learned already
    row |= scores(predict_averaged(model, guide, x, samples), y, "Bayesian, trained on")
    return row | bound(model, guide, data, "Bayesian, trained on")


def table(rows: dict[str, Row], metric: str) -> str:
    """The columns of one metric, by the fraction removed."""
    columns = [c for c in next(iter(rows.values())) if c.startswith(f"{metric}: ")]
    names = [c.removeprefix(f"{metric}: ") for c in columns]
    lines = [f"{metric:20}" + "".join(f"{name:>23}" for name in names)]
    lines += [
        f"{name + ' removed':20}" + "".join(f"{r[c]:23.4f}" for c in columns)
        for name, r in rows.items()
    ]
    return "\n".join(lines)


def draw_figure(rows: dict[str, Row], ratios: Tensor, path: Path) -> None:
    """Accuracy and NLL against the fraction removed, and the signal-to-noise ratios."""
    figure, (accuracy, nll, histogram) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    left = [1 - fraction for fraction in FRACTIONS]
    left_by_threshold = (ratios > THRESHOLD).float().mean().item()
    for metric, axis in (("accuracy", accuracy), ("NLL", nll)):
        for name, style in STYLES.items():
            values = [row[f"{metric}: {name}"] for row in rows.values()]
            axis.plot(left, values, marker=".", label=name, **style)
        axis.axvline(left_by_threshold, color="gray", linestyle=":", label=f"ratio {THRESHOLD}")
        axis.set(xscale="log", xlabel="weights removed", title=f"Test {metric}")
        axis.set_xticks(left, rows)
        axis.invert_xaxis()
        axis.minorticks_off()
    nll.set(yscale="log", ylabel="nats per image")
    nll.set_yticks([0.1, 0.2, 0.5, 1, 2])
    nll.yaxis.set_major_formatter("{x:g}")
    nll.minorticks_off()
    accuracy.legend(fontsize=8, loc="lower left")

    decibels = 20 * ratios.clamp_min(1e-3).log10()  # so that the first bar has all below -60 dB
    histogram.hist(decibels.numpy(), bins=60, log=True, color="tab:blue", alpha=0.6)
    threshold = 20 * torch.tensor(THRESHOLD).log10().item()
    histogram.axvline(threshold, color="gray", linestyle=":", label=f"ratio {THRESHOLD}")
    histogram.set(
        title="Signal-to-noise ratios (first bar: and all below)",
        xlabel=r"$20\,\log_{10}\,|\mu| / \sigma$ (dB)",
        ylabel="weights",
    )
    histogram.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show_export(model: Classifier, guide: AutoPosterior, x: Tensor) -> None:
    """Prints what a pruned network is like, and exports it as a plain one."""
    guide = copy.deepcopy(guide)
    pyro_bnn.prune(guide, fraction=EXPORTED)
    pyro_bnn.summary(model, guide)
    net = pyro_bnn.to_deterministic(model.net, guide)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), net(x))
    print("exported by torch.export, with the same output")


def main(argv: list[str] | None = None) -> dict[str, Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--more", type=int, default=500, help="training steps after pruning")
    parser.add_argument("--samples", type=int, default=100, help="posterior samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/pruning.png"))
    args = parser.parse_args(argv)
    start = time.perf_counter()
    torch.set_num_threads(1)  # small networks gain nothing from more
    torch.manual_seed(args.seed)
    data = load()
    print(f"{len(data['train'][0])} images for training, {len(data['test'][0])} for tests")

    net = network()
    model = Classifier(pyro_bnn.bayesianize(net, Normal(0, 1)), len(data["train"][0]))
    guide = AutoLRT(model)  # starts at the weights that the network has now
    train_deterministic(net, data, args.steps, "deterministic")
    train_bayesian(model, guide, data, args.steps)

    print(f"\nWithout {EXPORTED:.0%} of its weights:")
    show_export(model, guide, data["test"][0])
    print(f"\nWhat the threshold {THRESHOLD} would remove:")
    print(pyro_bnn.prune(copy.deepcopy(guide), THRESHOLD))

    rows = {
        f"{fraction:.0%}": bayesian_row(model, guide, fraction, data, args.more, args.samples)
        | magnitude_row(net, fraction, data, args.more)
        for fraction in FRACTIONS
    }
    for metric in ("accuracy", "NLL", "negative ELBO"):
        print(f"\n{table(rows, metric)}")
    ratios = torch.cat([guide[site].signal_to_noise().flatten() for site in guide])
    draw_figure(rows, ratios, args.out)
    print(f"\nfigure: {args.out} ({time.perf_counter() - start:.0f} s)")
    return rows


if __name__ == "__main__":
    main()
