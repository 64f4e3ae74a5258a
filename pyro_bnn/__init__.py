"""Bayesian neural networks for Pyro."""

from . import compat, distributions, estimators, guides, infer, nn, posteriors, priors
from .conversion import bayesianize, to_deterministic

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
    "to_deterministic",
]
