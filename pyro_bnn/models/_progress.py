"""A progress bar, by tqdm if that is installed."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows the steps of a training run and its last record, on a terminal.

    Args:
        total: number of steps.
        enabled: whether to show anything.
    """

    def __init__(self, total: int, enabled: bool) -> None:
        self.total = total
        self.bar: Any = None
        self.shown = 0
        self.enabled = enabled and sys.stderr.isatty()
        if self.enabled:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def show(self, step: int, record: dict[str, float]) -> None:
        """Moves on to a step."""
        if not self.enabled:
            return
        names = ("bound", "log_likelihood", "kl", "held_out")
        shown = {name: f"{record[name]:.4g}" for name in names if name in record}
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(shown)
        elif step == self.total or step - self.shown >= self.total / 20:
            self.shown = step
            text = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {step} of {self.total}: {text}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the line."""
        if self.bar is not None:
            self.bar.close()
