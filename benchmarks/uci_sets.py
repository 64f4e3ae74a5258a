"""UCI's regression sets and their splits, from files with `X`, `y` and `test_index`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RegressionSet:
    """Inputs, one row for each datum; targets; and the test rows of each split."""

    x: np.ndarray
    y: np.ndarray
    tests: list[np.ndarray]

    def split(self, number: int) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], float]:
        """Training and test data, standardized by the former; and the scale of the targets."""
        test = self.tests[number]
        rows = np.setdiff1d(np.arange(len(self.y)), test)
        scale = np.where(np.ptp(self.x[rows], 0) == 0, 1.0, self.x[rows].std(0))
        y_scale = float(self.y[rows].std())
        x = torch.tensor((self.x - self.x[rows].mean(0)) / scale, dtype=torch.float)
        y = torch.tensor((self.y - self.y[rows].mean()) / y_scale, dtype=torch.float)
        return (x[rows], y[rows], x[test], y[test]), y_scale


def read(path: Path) -> RegressionSet:
    """Reads a file.

    Raises:
        ValueError: if it is no such set, naming the array and what it should be.
    """
    try:
        with np.load(path) as data:
            arrays = [data[name] for name in ("X", "y", "test_index")]
        x, y, index = (array.astype(float) for array in arrays)
    except (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        text = f"{path} must have the arrays `X`, `y` and `test_index`, of numbers ({error})"
        raise ValueError(text) from error

    def check(holds: bool, text: str) -> None:
        if not holds:
            raise ValueError(f"{path}: {text}")

    check(x.ndim == 2, f"`X` of shape {x.shape} must have a row for each datum")
    check(
        y.shape in ((len(x),), (len(x), 1)),
        f"`y` of shape {y.shape} must have one target for each of the {len(x)} rows of `X`",
    )
    check(bool(np.isfinite(x).all() and np.isfinite(y).all()), "`X` and `y` must be finite")
    check(
        index.ndim == 2 and arrays[2].dtype != bool and bool((index == index.round()).all()),
        "`test_index` must have a row of indices for each split, padded with -1",
    )
    check(
        bool((index >= -1).all() and (index < len(x)).all()),
        f"`test_index` must be below the number of rows, {len(x)}",
    )
    y, tests = y.reshape(-1), [np.unique(row[row >= 0]).astype(int) for row in index]
    for i, test in enumerate(tests):
        check(len(test) > 0, f"split {i} has no test rows")
        left = np.delete(y, test)
        check(
            len(left) > 1 and np.ptp(left) > 0, f"split {i} has no two different training targets"
        )
    return RegressionSet(x, y, tests)


def uci_split(path: Path) -> Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The data of a split, by its number."""
    return lambda number: read(path).split(number)[0]
