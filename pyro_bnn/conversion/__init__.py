"""Torch networks made Bayesian, pruned, and back."""

from ._bayesianize import bayesianize
from ._deterministic import to_deterministic
from ._pruning import Sparsity, prune, pruning_masks
from ._summary import summary

__all__ = ["Sparsity", "bayesianize", "prune", "pruning_masks", "summary", "to_deterministic"]
