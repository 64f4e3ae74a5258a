"""What the distribution of a model's targets predicts, beside the other sites of a run."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import OrderedLogistic
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from ._prediction import CLASSES, Prediction, of_classes, of_labels, of_numbers
from ._rows import innermost

_NUM_INNER = 100  # samples for the moments that a distribution has no formula for


class Targets(Messenger):
    """Adds moments, samples and densities of the targets' distribution to the sites of a run.

    Args:
        site: name of the targets.
        example: the site in a run; if it is observed there, densities are wanted, too.
    """

    def __init__(self, site: str, example: Any) -> None:
        super().__init__()
        self.site = site
        self.kind = _kind(example["fn"])
        self.is_observed = example["is_observed"]
        self.is_estimated = False
        self.observed: Tensor | None = None
        self._found: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The sites that are added."""
        moments = ["probs"] if self.kind in CLASSES else ["mean", "variance", "sample"]
        return [self._name(key) for key in (*moments, *["log_prob"] * self.is_observed)]

    def prediction(self, values: dict[str, Tensor]) -> Prediction:
        """From the sites that were added, with the draws in the first dimension."""
        value = lambda key: values[self._name(key)]
        if self.kind not in CLASSES:
            parts = (value("mean"), value("variance"), value("sample"))
            return of_numbers(*parts, self.kind, error=1 / _NUM_INNER if self.is_estimated else 0.0)
        probs = value("probs")
        if self.kind == "labels":
            return of_labels(probs, torch.bernoulli(probs))
        return of_classes(probs, Categorical(probs, validate_args=False).sample(), self.kind)

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        """The log density of each row under each draw."""
        return values[self._name("log_prob")]

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        result = super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            for key, value in self._found.items():
                pyro.deterministic(self._name(key), value, event_dim=0)
        self._found = {}
        return result

    def _name(self, key: str) -> str:
        return f"_{self.site}.{key}"

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site:
            return
        fn = msg["fn"]
        if self.kind in CLASSES:
            probs = innermost(fn).probs
            self._found = {"probs": probs}
            # Drawn later, since some of these have no rule for `torch.vmap`.
            sample = torch.zeros(fn.shape(), device=probs.device)
        else:
            sample = fn.sample()
            mean, variance, self.is_estimated = _moments(fn)
            self._found = {"mean": mean, "variance": variance, "sample": sample}
        if msg["is_observed"]:
            if self.observed is None:  # in the first run, which is not vectorised
                self.observed = msg["value"]
            self._found["log_prob"] = fn.log_prob(msg["value"])
        elif msg["value"] is None:
            msg["value"] = sample


def _kind(fn: Any) -> str:
    """What is drawn from a distribution."""
    base = innermost(fn)
    if isinstance(base, Categorical):
        return "ranks" if isinstance(base, OrderedLogistic) else "classes"
    if isinstance(base, Bernoulli):
        return "labels"
    return "counts" if fn.support.is_discrete else "numbers"


def _moments(fn: Any) -> tuple[Tensor, Tensor, bool]:
    """Mean and variance, and whether they are estimated."""
    try:
        return fn.mean, fn.variance, False
    except NotImplementedError:
        samples = fn.sample((_NUM_INNER,))
        return samples.mean(0), samples.var(0), True
