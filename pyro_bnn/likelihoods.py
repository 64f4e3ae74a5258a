"""Likelihoods: from the outputs of a network to the distribution of the targets.

Each is an object to be given to :class:`pyro_bnn.BNN`. Called with outputs, whose first dimension
is that of the rows, it returns the distribution of the targets.
"""

from .models._classes import Bernoulli, Categorical, Ordinal
from .models._counts import NegativeBinomial, Poisson
from .models._likelihood import Likelihood
from .models._regression import HeteroscedasticNormal, Normal, StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "HeteroscedasticNormal",
    "Likelihood",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "StudentT",
]
