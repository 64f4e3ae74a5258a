"""Bayesian neural networks for Pyro."""

import importlib
from typing import Any

from . import (
    compat,
    distributions,
    estimators,
    guides,
    infer,
    likelihoods,
    nn,
    plots,
    posteriors,
    priors,
    scores,
    testing,
)
from .conversion import bayesianize, prune, pruning_masks, summary, to_deterministic
from .models import BNN, evaluate, fit, moments, predict, refit_last_layer, resume, save

__version__ = "0.1.0"
__all__ = [
    "BNN",
    "bayesianize",
    "compat",
    "distributions",
    "estimators",
    "evaluate",
    "fit",
    "guides",
    "infer",
    "likelihoods",
    "moments",
    "nn",
    "plots",
    "posteriors",
    "predict",
    "priors",
    "prune",
    "pruning_masks",
    "refit_last_layer",
    "resume",
    "save",
    "scores",
    "summary",
    "testing",
    "to_deterministic",
]


def __getattr__(name: str) -> Any:
    if name == "sklearn":  # imported when it is asked for, since scikit-learn is an extra
        return importlib.import_module(".sklearn", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
