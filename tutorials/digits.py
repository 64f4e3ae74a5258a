"""How sure is a network of the digits it reads, and of those it has never seen?

Trains a deterministic network and its Bayesian counterpart under five posteriors on
scikit-learn's handwritten digits 0 to 7, prints how well each is calibrated on new images of these
digits, on noisy ones, and how well its uncertainty tells apart the digits 8 and 9, and saves a
figure of the images that it is least sure of.

    python tutorials/digits.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from pyro_bnn import BNN, bayesianize, fit, likelihoods
from pyro_bnn.guides import (
    AutoFlipout,
    AutoLRT,
    AutoMixture,
    AutoPosterior,
    AutoRadial,
    AutoReparameterization,
)
from pyro_bnn.infer import Predictive, diagnose
from pyro_bnn.priors import HierarchicalNormal

GUIDES = {
    "reparameterization": AutoReparameterization,
    "flipout": AutoFlipout,
    "LRT": AutoLRT,
    "radial": AutoRadial,
    "mixture": AutoMixture,
}
NUM_CLASSES = 8
HIDDEN = 100
BATCH = 128
DETERMINISTIC_STEPS = 1500  # beyond, its predictions become worse
KL_WEIGHT = 0.15  # a cold posterior, which predicts images better; docs/defaults.rst has figures
NOISES = (0.2, 0.4, 0.6)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, NUM_CLASSES),
    )


def load() -> dict[str, tuple[Tensor, Tensor]]:
    """Images in [0, 1] as rows of 64 pixels: for training, for tests, and of unknown digits."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float)
    labels = torch.tensor(labels)
    known = labels < NUM_CLASSES
    x, test_x, y, test_y = train_test_split(
        images[known], labels[known], test_size=0.25, random_state=0, stratify=labels[known]
    )
    sets = {"train": (x, y), "test": (test_x, test_y), "unknown": (images[~known], labels[~known])}
    generator = torch.Generator().manual_seed(0)
    noisy = [test_x + s * torch.randn(test_x.shape, generator=generator) for s in NOISES]
    sets["noisy"] = (torch.cat(noisy), test_y.repeat(len(NOISES)))
    return sets


def train_deterministic(x: Tensor, y: Tensor, steps: int):
    """Trains by maximum likelihood, and returns the probabilities of classes as a function."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()
        schedule.step()
    return lambda x: net(x).softmax(-1).detach()


def train_bayesian(make: type[AutoPosterior], x: Tensor, y: Tensor, steps: int, samples: int):
    """Returns the probabilities of classes under each draw of the weights, and the ELBO."""
    net = bayesianize(network(), prior=HierarchicalNormal("tensor"))
    model = BNN(net, likelihoods.Categorical())
    guide = make(model)
    epochs = math.ceil(steps / math.ceil(len(x) / BATCH))
    fit(model, guide, (x, y), epochs, batch_size=BATCH, kl_weight=KL_WEIGHT)
    predictive = Predictive(model.net, guide=guide, num_samples=samples, return_sites=["_RETURN"])
    elbo = diagnose(model, guide, (x, y), num_samples=25).elbo / len(x)
    return lambda x: predictive(x)["_RETURN"].softmax(-1), elbo


def entropy(p: Tensor) -> Tensor:
    """The entropy of class probabilities, in nats."""
    return torch.special.entr(p).sum(-1)


def scores(predict, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    p = {name: predict(x) for name, (x, _) in data.items() if name != "train"}
    result = {}
    for name in ("test", "noisy"):
        y = data[name][1]
        result[f"accuracy, {name}"] = multiclass_accuracy(
            p[name], y, num_classes=NUM_CLASSES, average="micro"
        ).item()
        result[f"NLL, {name}"] = nn.functional.nll_loss(p[name].clamp_min(1e-12).log(), y).item()
        result[f"ECE, {name}"] = multiclass_calibration_error(p[name], y, NUM_CLASSES).item()
    is_unknown = torch.arange(len(p["test"]) + len(p["unknown"])) >= len(p["test"])
    result["AUROC, unknown"] = roc_auc_score(
        is_unknown, entropy(torch.cat([p["test"], p["unknown"]]))
    )
    return result


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [" " * 20 + "".join(f"{c:>17}" for c in columns)]
    lines += [f"{name:20}" + "".join(f"{r[c]:17.4f}" for c in columns) for name, r in rows.items()]
    return "\n".join(lines)


def draw_figure(predictors, data: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """The least certain test images, and total uncertainty on known and unknown digits."""
    figure = plt.figure(figsize=(13, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])

    x, y = data["test"]
    p = predictors["LRT"](x)  # under each draw of the weights
    least = entropy(p.mean(0)).topk(8).indices
    means, lows, highs = (
        t[..., least, :].numpy()
        for t in (p.mean(0), p.quantile(0.25, dim=0), p.quantile(0.75, dim=0))
    )
    top.suptitle("Test images that LRT is least sure of: probabilities, with their quartiles")
    axes = top.subplots(2, 8, height_ratios=[1.3, 1])
    classes = range(NUM_CLASSES)
    for column, i in enumerate(least.tolist()):
        image, bars = axes[:, column]
        image.imshow(x[i].view(8, 8).numpy(), cmap="gray_r")
        image.set_title(f"label {y[i].item()}", fontsize=9)
        image.set_axis_off()
        bars.bar(classes, means[column], color="tab:blue", alpha=0.6)
        bars.vlines(classes, lows[column], highs[column], color="black", linewidth=1.5)
        bars.set(ylim=(0, 1), xticks=classes)
        bars.tick_params(labelsize=7, labelleft=column == 0)
    axes[1, 0].set_ylabel("probability")

    bottom.suptitle(
        "Entropy of the prediction (nats): digits 0 to 7, which it learned, and 8 and 9"
    )
    bins = torch.linspace(0, 2.1, 22).numpy()
    for axis, (name, predict) in zip(
        bottom.subplots(1, len(predictors), sharey=True), predictors.items(), strict=True
    ):
        for kind, label in (("test", "0 to 7"), ("unknown", "8 and 9")):
            values = entropy(predict(data[kind][0]).mean(0))
            axis.hist(values.numpy(), bins=bins, density=True, alpha=0.6, label=label)
        axis.set(title=name, xlabel="entropy")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=2500, help="training steps of the Bayesian ones"
    )
    parser.add_argument("--samples", type=int, default=100, help="posterior samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/digits.png"))
    args = parser.parse_args(argv)
    start = time.perf_counter()
    torch.set_num_threads(1)  # small networks gain nothing from more
    torch.manual_seed(args.seed)
    data = load()
    x, y = data["train"]
    print(
        f"{len(x)} images of the digits 0 to 7 for training, {len(data['test'][0])} for tests, "
        f"{len(data['unknown'][0])} of 8 and 9 unknown to the networks"
    )
    deterministic = train_deterministic(x, y, DETERMINISTIC_STEPS)
    rows = {"deterministic": scores(deterministic, data) | {"ELBO": math.nan}}
    predictors = {"deterministic": lambda x: deterministic(x).unsqueeze(0)}
    for name, make in GUIDES.items():
        predictors[name], elbo = train_bayesian(make, x, y, args.steps, args.samples)
        rows[name] = scores(lambda x, p=predictors[name]: p(x).mean(0), data) | {"ELBO": elbo}
    print(table(rows))
    trivial = -math.log(NUM_CLASSES)
    print(f"ELBO: nats an image; one that has learned nothing could have {trivial:.4f}")
    draw_figure(predictors, data, args.out)
    print(f"figure: {args.out} ({time.perf_counter() - start:.0f} s)")
    return rows


if __name__ == "__main__":
    main()
