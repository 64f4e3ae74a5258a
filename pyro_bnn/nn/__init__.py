"""Bayesian layers: torch's own, with priors on their weights."""

from ._conv import (
    BayesianConv1d,
    BayesianConv2d,
    BayesianConv3d,
    BayesianConvTranspose1d,
    BayesianConvTranspose2d,
    BayesianConvTranspose3d,
)
from ._embedding import BayesianEmbedding
from ._linear import BayesianLinear
from ._recurrent import BayesianGRU, BayesianLSTM, BayesianRNN

__all__ = [
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianConv3d",
    "BayesianConvTranspose1d",
    "BayesianConvTranspose2d",
    "BayesianConvTranspose3d",
    "BayesianEmbedding",
    "BayesianGRU",
    "BayesianLSTM",
    "BayesianLinear",
    "BayesianRNN",
]
