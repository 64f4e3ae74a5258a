"""Bayesian neural networks for Pyro."""

from . import compat, distributions, estimators, guides, infer, nn, posteriors, priors
from .conversion import bayesianize, prune, pruning_masks, summary, to_deterministic

__version__ = "0.1.0"
__all__ = [
    "bayesianize",
    "compat",
    "distributions",
    "estimators",
    "guides",
    "infer",
    "nn",
    "posteriors",
    "priors",
    "prune",
    "pruning_masks",
    "summary",
    "to_deterministic",
]
