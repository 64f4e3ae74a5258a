"""What the examples share: real data, a short form for tests, and where figures go.

``PYRO_BNN_SHORT=1`` runs an example with few steps and little data, to see that it works.
"""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from pyro_bnn import guides

SHORT = bool(os.environ.get("PYRO_BNN_SHORT"))
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_SAMPLE = Path(__file__).parent.parent / "tests/data/fashion-mnist"
CLOTHES = [
    "top",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]

GUIDES = {
    "reparameterization": guides.AutoReparameterization,
    "flipout": guides.AutoFlipout,
    "LRT": guides.AutoLRT,
    "radial": guides.AutoRadial,
    "mixture": guides.AutoMixture,
}

T = TypeVar("T")
Rows = tuple[Tensor, Tensor]  # inputs and targets

torch.set_num_threads(1)  # small networks gain nothing from more


def few(full: T, short: T) -> T:
    """The first value; in the short form, the second."""
    return short if SHORT else full


def save(figure: Figure, name: str) -> None:
    """Writes a figure to the folder ``results``, and leaves it open for a notebook to show."""
    chosen = os.environ.get("PYRO_BNN_RESULTS")  # set where the figure is shown
    folder = Path(chosen or "results")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110)
    if not chosen:
        print(f"figure: {folder / name}.png")


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of numbers under their names."""
    columns = list(next(iter(rows.values())))
    first = max(map(len, rows))
    widths = [max(len(column), 8) + 2 for column in columns]
    lines = [" " * first + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for name, row in rows.items():
        cells = ["-" if math.isnan(row[c]) else f"{row[c]:.3f}" for c in columns]
        numbers = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{name:{first}}{numbers}")
    return "\n".join(lines)


def standardise(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Columns with mean 0 and standard deviation 1 (of ``like``, by default ``x`` itself)."""
    like = x if like is None else like
    return (x - like.mean(0)) / like.std(0)


def tensor(x: object) -> Tensor:
    """Numbers of a table or an array as a tensor of floats."""
    return torch.tensor(np.asarray(x), dtype=torch.float)


def split(x: Tensor, y: Tensor, fraction: float = 0.25, **more: object) -> tuple[Rows, Rows]:
    """Data for training and for tests, with the same rows in each each time."""
    x, test_x, y, test_y = train_test_split(x, y, test_size=fraction, random_state=0, **more)
    return (x, y), (test_x, test_y)


def digits() -> tuple[Rows, Rows]:
    """Handwritten digits of 8 by 8 pixels in [0, 1] as rows of 64, for training and for tests."""
    images, labels = load_digits(return_X_y=True)
    return split(tensor(images / 16), torch.tensor(labels), stratify=labels)


def fashion(num_train: int, num_test: int) -> tuple[Rows, Rows]:
    """Images of clothes with one channel of 28 by 28 pixels in [0, 1], and their classes.

    Where they are not installed (``apt install dataset-fashion-mnist``), a sample of them.
    """
    folder = FASHION if FASHION.exists() and not SHORT else FASHION_SAMPLE

    def read(kind: str, size: int) -> Rows:
        x = _read_idx(folder / f"{kind}-images-idx3-ubyte.gz")[:size]
        y = _read_idx(folder / f"{kind}-labels-idx1-ubyte.gz")[:size]
        return tensor(x).div_(255).unsqueeze(1), torch.tensor(y, dtype=torch.long)

    return read("train", num_train), read("t10k", num_test)


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: its shape in big-endian integers, then its entries."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
