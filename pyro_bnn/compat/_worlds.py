"""The former home of what pickles of version 0.1.0 name."""

from ._with_kl import WithKL, _OfWeights, _same

__all__ = ["WithKL", "_OfWeights", "_same"]
