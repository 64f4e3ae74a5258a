"""Torch networks made Bayesian, and back."""

from ._bayesianize import bayesianize
from ._deterministic import to_deterministic

__all__ = ["bayesianize", "to_deterministic"]
