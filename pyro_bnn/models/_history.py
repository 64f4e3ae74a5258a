"""What a training run reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TERMS = {
    "bound": "bound (ELBO)",
    "log_likelihood": "expected log-likelihood",
    "kl": "KL divergence",
    "held_out": "held-out log density",
}


class History(Mapping[str, list[float]]):
    """The course of a training run: means over the steps since the record before.

    A mapping from names to lists of equal length, per datum in nats:

    - ``step``: number of steps so far; ``epoch``: of epochs;
    - ``bound``: the ELBO, ``log_likelihood - kl``, with the full weight of the KL divergence also
      where the training has another;
    - ``log_likelihood``, ``kl``: its two terms; ``kl`` and ``bound`` are NaN if the weight is 0;
    - ``kl_weight``, ``lr``: weight of the KL divergence and first learning rate from then on;
    - ``held_out``: log density of the validation data, NaN where it was not computed.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[float]] = {}

    def append(self, **record: float) -> None:
        """Adds one record; columns that it lacks, or brings, are NaN elsewhere."""
        length = len(next(iter(self._columns.values()), ()))
        for name in (*self._columns, *record):
            self._columns.setdefault(name, [math.nan] * length)
        for name, column in self._columns.items():
            column.append(record.get(name, math.nan))

    def __getitem__(self, name: str) -> list[float]:
        return self._columns[name]

    def __iter__(self) -> Any:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={column[-1]:.4g}" for name, column in self.items())
        return f"History({last})"

    def plot(self, ax: Any = None) -> Any:
        """Draws the bound, its terms and the held-out log density over the steps.

        Args:
            ax: the matplotlib axes to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        for name, label in _TERMS.items():
            column = self._columns.get(name, [])
            points = [(s, v) for s, v in zip(self.get("step", []), column, strict=False) if v == v]
            if points:
                ax.plot(*zip(*points, strict=True), label=label)
        # The first steps are far away from all that follows.
        late = [v for name in _TERMS for v in self.get(name, [])[len(column) // 10 :] if v == v]
        if late:
            margin = 0.05 * (max(late) - min(late)) + 1e-6
            ax.set_ylim(min(late) - margin, max(late) + margin)
        ax.set(xlabel="step", ylabel="nats per datum")
        ax.legend()
        return ax

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each record.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self._columns)

    def state_dict(self) -> dict[str, Any]:
        """The records, as plain data."""
        return {"columns": {name: list(column) for name, column in self.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the records of another one."""
        self._columns = {name: list(column) for name, column in state["columns"].items()}
