"""From a network and data to predictions: models, likelihoods, training, checkpoints."""

from ._bnn import BNN

__all__ = ["BNN"]
