"""Networks and data on which defaults are chosen."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from recipe import classification, mlp, regression
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from statsmodels.datasets import sunspots
from torch import Tensor, nn
from uci_sets import uci_split

from pyro_bnn import BNN, bayesianize
from pyro_bnn.nn import BayesianLinear, BayesianLSTM

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and targets for training, and for tests


@dataclass(frozen=True)
class Task:
    """Data, the network for them, and how long it trains."""

    split: Callable[[int], Split]
    model: Callable[[dict[str, Any]], BNN]  # from arguments of its layers
    steps: int
    batch: int = 128
    guide: str = "AutoLRT"


class Residual(PyroModule):
    """``x + f(x)``, many times over."""

    def __init__(self, num_in: int, width: int, blocks: int, num_out: int, **priors: Any) -> None:
        super().__init__()
        self.first = BayesianLinear(num_in, width, **priors)
        self.blocks = PyroModule[nn.ModuleList](
            [
                PyroModule[nn.Sequential](
                    BayesianLinear(width, width, **priors),
                    nn.ReLU(),
                    BayesianLinear(width, width, **priors),
                )
                for _ in range(blocks)
            ]
        )
        self.last = BayesianLinear(width, num_out, **priors)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Series(PyroModule):
    """The next value of a series, from a window of it."""

    def __init__(self, hidden: int, **priors: Any) -> None:
        super().__init__()
        self.lstm = BayesianLSTM(1, hidden, batch_first=True, **priors)
        self.last = BayesianLinear(hidden, 1, **priors)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x.unsqueeze(-1))
        return self.last(outputs[:, -1])


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 28),
        nn.ReLU(),
        nn.Linear(28, 10),
    )


def digits_split(seed: int) -> Split:
    images, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(
        images / 16, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    return _floats(x), torch.tensor(y), _floats(test_x), torch.tensor(test_y)


def fashion_split(folder: Path) -> Callable[[int], Split]:
    """10,000 images for training, other ones for each seed, and 2,000 for tests."""

    def split(seed: int) -> Split:
        sets = []
        for kind, start, size in (("train", 10_000 * seed, 10_000), ("t10k", 2000 * seed, 2000)):
            rows = slice(start, start + size)
            images = _read_idx(folder, f"{kind}-images-idx3-ubyte")[rows]
            labels = _read_idx(folder, f"{kind}-labels-idx1-ubyte")[rows]
            sets += [_floats(images / 255).unsqueeze(1), torch.tensor(labels.astype(int))]
        return tuple(sets)

    return split


def sunspots_split(seed: int) -> Split:
    """Windows of 22 years of standardized square roots; the tests are the years from 1959 on."""
    numbers = _floats(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy())
    roots, held_out = numbers.sqrt(), 50
    z = (roots - roots[:-held_out].mean()) / roots[:-held_out].std()
    windows = z.unfold(0, 23, 1)
    x, y = windows[:, :-1], windows[:, -1]
    return x[:-held_out], y[:-held_out], x[-held_out:], y[-held_out:]


def tasks(uci: Path, fashion: Path) -> dict[str, Task]:
    result = {
        "digits": Task(
            digits_split,
            lambda priors: classification(mlp([64, 100, 100, 10], **priors)),
            steps=8000,
        ),
        "fashion": Task(
            fashion_split(fashion),
            lambda priors: classification(bayesianize(convolutional(), **priors)),
            steps=3000,
        ),
        "sunspots": Task(
            sunspots_split,
            lambda priors: regression(Series(16, **priors)),
            steps=4000,
            guide="AutoFlipout",  # one weight for all years of a series
        ),
        "residual": Task(
            digits_split,
            lambda priors: classification(Residual(64, 32, 10, 10, **priors)),
            steps=4000,
        ),
    }
    for name, size in {"concrete": 8, "energy": 8, "wine": 11, "yacht": 6}.items():
        result[name] = Task(
            uci_split(uci / f"{name}.npz"),
            lambda priors, size=size: regression(mlp([size, 50, 1], **priors)),
            steps=8000,
        )
    return result


def _floats(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes in the IDX format: its shape in big-endian integers, then its entries."""
    path = folder / name
    content = (
        path.read_bytes()
        if path.exists()
        else gzip.decompress((folder / f"{name}.gz").read_bytes())
    )
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
