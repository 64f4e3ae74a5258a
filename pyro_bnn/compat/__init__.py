"""Bayesian networks in plain torch."""

from ._standalone import Standalone

__all__ = ["Standalone"]
