"""Bayesian networks in plain torch, and the layers of other libraries."""

from . import bayesian_torch, bensemble
from ._standalone import Standalone
from ._with_kl import WithKL, to_pyro

__all__ = ["Standalone", "WithKL", "bayesian_torch", "bensemble", "to_pyro"]
