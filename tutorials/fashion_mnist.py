"""What do flipout and local reparameterization buy a convolutional network on real images?

Trains a deterministic network and its Bayesian counterpart by three estimators of the gradient on
Fashion-MNIST, prints how well each predicts new images, how well it is calibrated, how well its
uncertainty tells them from images turned by 90 degrees, and how noisy its gradient is, and saves a
figure with learning curves over time.

    apt install dataset-fashion-mnist
    python tutorials/fashion_mnist.py

Any folder that has its four IDX files, compressed or not, will do: `--data FOLDER`.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error
from tqdm import trange

from pyro_bnn import fit
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoPosterior, AutoReparameterization
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.models import Run
from pyro_bnn.nn import BayesianConv2d, BayesianLinear

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
GUIDES = {
    "reparameterization": AutoReparameterization,
    "flipout": AutoFlipout,
    "LRT": AutoLRT,
}
COLORS = {"deterministic": "black", **{name: f"C{i}" for i, name in enumerate(GUIDES)}}
LAYERS = {"0": "conv 1", "3": "conv 2", "7": "linear 1", "9": "linear 2"}
NUM_CLASSES = 10
BATCH = 128

Data = dict[str, tuple[Tensor, Tensor]]
Rows = dict[str, dict[str, float]]
Predict = Callable[[Tensor, int], Tensor]  # images and a number of samples to probabilities
Curve = list[tuple[float, float, float]]  # seconds, mean loss per image since the last, test NLL


class Trained(NamedTuple):
    """A network that was trained, and how it came there."""

    predict: Predict
    curve: Curve
    guide: AutoPosterior | None = None
    bound: float = float("nan")  # the negative ELBO after training, nats per image


def network(sequential, conv, linear) -> nn.Module:
    return sequential(
        conv(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(8, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        linear(256, 64),
        nn.ReLU(),
        linear(64, NUM_CLASSES),
    )


class Classifier(PyroModule):
    """A Pyro model: the network is called before the plate, once for all the data."""

    def __init__(self, num_data: int) -> None:
        super().__init__()
        self.num_data = num_data
        self.net = network(PyroModule[nn.Sequential], BayesianConv2d, BayesianLinear)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        logits = self.net(x)
        # The plate scales the likelihood of a mini-batch up to all of the data.
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("label", dist.Categorical(logits=logits), obs=y)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes in the IDX format: its shape in big-endian integers, then its entries."""
    for path, open_file in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.exists():
            with open_file(path, "rb") as file:
                content = file.read()
            shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
            return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    raise SystemExit(
        f"no {name} or {name}.gz in {folder}: install it by `apt install dataset-fashion-mnist`, "
        "or give the folder that has it by `--data FOLDER`"
    )


def load(folder: Path, num_train: int, num_test: int) -> Data:
    """Images in [0, 1] with one channel: for training, for tests, and these turned left."""

    def read(kind: str, size: int) -> tuple[Tensor, Tensor]:
        images = read_idx(folder, f"{kind}-images-idx3-ubyte")[:size]
        labels = read_idx(folder, f"{kind}-labels-idx1-ubyte")[:size]
        x = torch.tensor(images, dtype=torch.float).div_(255).unsqueeze(1)
        return x, torch.tensor(labels, dtype=torch.long)

    x, y = read("t10k", num_test)
    return {
        "train": read("train", num_train),
        "test": (x, y),
        "rotated": (torch.rot90(x, dims=(2, 3)), y),
    }


class Recorder:
    """Learning curve at ten checkpoints; the time for it does not count."""

    def __init__(self, predict: Predict, data: Data, steps: int) -> None:
        self.predict = predict
        self.x, self.y = (t[:1000] for t in data["test"])
        self.checkpoints = {max(1, steps * k**2 // 100) for k in range(1, 11)}
        self.curve: Curve = []
        self.num_losses = 0
        self.seconds, self.started = 0.0, time.perf_counter()

    def __call__(self, step: int, losses: list[float]) -> None:
        """Records after a step, with the losses of all steps so far in nats per image."""
        if step not in self.checkpoints or len(losses) == self.num_losses:
            return
        self.seconds += time.perf_counter() - self.started
        last = slice(self.num_losses, None)
        self.num_losses = len(losses)
        test = nll(self.predict(self.x, 10), self.y)
        self.curve.append((self.seconds, float(np.mean(losses[last])), test))
        self.started = time.perf_counter()


def train_deterministic(data: Data, steps: int) -> Trained:
    net = network(nn.Sequential, nn.Conv2d, nn.Linear)

    @torch.no_grad()
    def predict(x: Tensor, samples: int) -> Tensor:
        return torch.cat([net(part).softmax(-1) for part in x.split(500)])

    x, y = data["train"]
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    recorder, losses = Recorder(predict, data, steps), []
    for i in trange(1, steps + 1, desc="deterministic", leave=False, mininterval=0.5):
        index = torch.randint(len(x), (min(BATCH, len(x)),))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[index]), y[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        recorder(i, losses)
    return Trained(predict, recorder.curve)


def train_bayesian(make: type[AutoPosterior], data: Data, steps: int) -> Trained:
    x, y = data["train"]
    model = Classifier(len(x))
    guide = make(model)

    def predict(x: Tensor, samples: int) -> Tensor:
        predictive = Predictive(
            model.net, guide=guide, num_samples=samples, return_sites=["_RETURN"]
        )
        return torch.cat([predictive(part)["_RETURN"].softmax(-1).mean(0) for part in x.split(500)])

    recorder = Recorder(predict, data, steps)

    def record(run: Run) -> bool:
        recorder(run.num_steps, [-bound for bound in run.history.get("bound", [])])
        return run.num_steps == steps

    epochs = math.ceil(steps / math.ceil(len(x) / BATCH))
    fit(model, guide, (x, y), epochs, batch_size=BATCH, callbacks=[record])
    # By one weight for all images, which is exact, whatever the estimator has approximated.
    loss = TraceKL_ELBO()(model, guide)
    with torch.no_grad(), guide.shared_draws():
        batches = zip(*(t[:10_000].split(500) for t in data["train"]), strict=True)
        bounds = [loss(x, y).item() for x, y in batches]
    return Trained(predict, recorder.curve, guide, np.mean(bounds) / len(x))


def gradient_variance(state: dict[str, Tensor], data: Data, draws: int) -> Rows:
    """Variance of the gradient of the loss per image, at one posterior and one mini-batch.

    It is summed over the means of the weights, by estimator and layer.
    """
    x, y = data["train"]
    result = {}
    for name, make in GUIDES.items():
        model = Classifier(len(x))
        guide = make(model)
        guide.load_state_dict(state)
        loss = TraceKL_ELBO()(model, guide)
        means = {site: guide[site].loc_unconstrained for site in guide}
        gradients = [
            torch.autograd.grad(loss(x[:BATCH], y[:BATCH]) / len(x), means.values())
            for _ in trange(draws, desc=f"{name:20}", leave=False, mininterval=0.5)
        ]
        layers = result[name] = dict.fromkeys(LAYERS.values(), 0.0)
        for site, drawn in zip(means, zip(*gradients, strict=True), strict=True):
            layers[LAYERS[site.split(".")[1]]] += torch.stack(drawn).var(0).sum().item()
        layers["all"] = sum(layers.values())
    return result


def nll(p: Tensor, y: Tensor) -> float:
    return nn.functional.nll_loss(p.clamp_min(1e-12).log(), y).item()


def entropy(p: Tensor) -> Tensor:
    """The entropy of class probabilities, in nats."""
    return torch.special.entr(p).sum(-1)


def scores(p: dict[str, Tensor], y: Tensor) -> dict[str, float]:
    test, uncertainty = p["test"], entropy(torch.cat([p["test"], p["rotated"]]))
    return {
        "accuracy": (test.argmax(-1) == y).float().mean().item(),
        "NLL": nll(test, y),
        "ECE": multiclass_calibration_error(test, y, NUM_CLASSES).item(),
        "AUROC, rotated": roc_auc_score(torch.arange(2 * len(y)) >= len(y), uncertainty),
    }


def table(rows: Rows) -> str:
    columns = list(next(iter(rows.values())))
    lines = [" " * 20 + "".join(f"{c:>19}" for c in columns)]
    lines += [f"{name:20}" + "".join(f"{r[c]:19.4f}" for c in columns) for name, r in rows.items()]
    return "\n".join(lines)


def draw_reliability(axis, predictions: dict[str, dict[str, Tensor]], y: Tensor) -> None:
    """The accuracy of predictions against their probability, in bins with 1% of the images."""
    axis.plot([0.3, 1], [0.3, 1], color="gray", linestyle=":", label="calibrated")
    for name, p in predictions.items():
        confidence, label = p["test"].max(-1)
        index = (10 * confidence).long().clamp_max(9)
        bins = [index == k for k in range(10) if (index == k).float().mean() >= 0.01]
        points = [(confidence[b].mean(), (label == y)[b].float().mean()) for b in bins]
        axis.plot(*zip(*points, strict=True), marker=".", color=COLORS[name], label=name)
    axis.set(title="Reliability", xlabel="probability of the predicted class", ylabel="accuracy")


def draw_figure(
    trained: dict[str, Trained],
    variances: Rows,
    predictions: dict[str, dict[str, Tensor]],
    y: Tensor,
    path: Path,
) -> None:
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    bounds, curves, bars, reliability = top.subplots(1, 4)

    for name, result in trained.items():
        style = {"color": COLORS[name], "marker": ".", "label": name}
        seconds, losses, nlls = zip(*result.curve, strict=True)
        curves.plot(seconds, nlls, **style)
        if result.guide is not None:
            bounds.plot(seconds, losses, **style)
    bounds.set_title("Negative ELBO, training")
    curves.set_title("Negative log likelihood, test")
    for axis in (bounds, curves):
        axis.set(xlabel="seconds of training", ylabel="nats per image", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")

    for i, (name, layers) in enumerate(variances.items()):
        places = np.arange(len(layers)) + 0.27 * (i - 1)
        bars.bar(places, layers.values(), 0.27, color=COLORS[name], label=name)
    bars.set(title="Gradient variance at one posterior", yscale="log")
    bars.set_ylabel("nats$^2$, sum over the means of weights")
    bars.set_xticks(range(len(layers)), layers)
    draw_reliability(reliability, predictions, y)
    for axis in (curves, bars, reliability):
        axis.legend(fontsize=8)

    bottom.suptitle("Entropy of the prediction (nats): test images as they are, and turned left")
    bins = np.linspace(0, np.log(NUM_CLASSES), 24)
    axes = bottom.subplots(1, len(predictions), sharey=True)
    for axis, (name, p) in zip(axes, predictions.items(), strict=True):
        for kind in ("test", "rotated"):
            axis.hist(entropy(p[kind]).numpy(), bins=bins, alpha=0.6, density=True, label=kind)
        axis.set(title=name, xlabel="entropy (nats)")
    axes[0].set_ylabel("density")
    axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> Rows:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files")
    parser.add_argument("--train", type=int, default=60_000, help="images to train with")
    parser.add_argument("--test", type=int, default=2000, help="images to test with")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--samples", type=int, default=50, help="posterior samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fashion_mnist.png"))
    args = parser.parse_args(argv)
    start = time.perf_counter()
    torch.set_num_threads(1)  # small networks gain nothing from more
    torch.manual_seed(args.seed)
    data = load(args.data, args.train, args.test)
    y = data["test"][1]
    print(f"{len(data['train'][0])} images for training, {len(y)} for tests, in 10 classes")

    trained = {"deterministic": train_deterministic(data, args.steps)}
    for name, make in GUIDES.items():
        torch.manual_seed(args.seed)  # the same initial weights for all
        trained[name] = train_bayesian(make, data, args.steps)
    # Gradients have heavy tails, so that their variance takes many draws.
    variances = gradient_variance(trained["LRT"].guide.state_dict(), data, 5 * args.samples)
    predictions = {
        name: {kind: t.predict(data[kind][0], args.samples) for kind in ("test", "rotated")}
        for name, t in trained.items()
    }
    rows = {}
    for name, p in predictions.items():
        noise = variances[name]["all"] if name in variances else 0.0
        rows[name] = scores(p, y) | {
            "negative ELBO": trained[name].bound,
            "gradient variance": noise / variances["reparameterization"]["all"],
            "training (s)": trained[name].curve[-1][0],
        }
    print(table(rows))
    draw_figure(trained, variances, predictions, y, args.out)
    print(f"figure: {args.out} ({time.perf_counter() - start:.0f} s)")
    return rows


if __name__ == "__main__":
    main()
