"""Bayesian layers: torch's own, with priors on their weights."""

from ._linear import BayesianLinear

__all__ = ["BayesianLinear"]
