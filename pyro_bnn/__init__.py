"""Bayesian neural networks for Pyro."""

from . import compat, distributions, estimators, guides, infer, nn, posteriors, priors

__version__ = "0.1.0"
__all__ = [
    "compat",
    "distributions",
    "estimators",
    "guides",
    "infer",
    "nn",
    "posteriors",
    "priors",
]
