"""Variational posteriors over one weight tensor."""

from ._correlated_normal import FullNormalPosterior, MatrixNormalPosterior
from ._mixture import MixturePosterior
from ._normal import ConstrainedPosterior, NormalPosterior
from ._posterior import Posterior
from ._radial import RadialPosterior

__all__ = [
    "ConstrainedPosterior",
    "FullNormalPosterior",
    "MatrixNormalPosterior",
    "MixturePosterior",
    "NormalPosterior",
    "Posterior",
    "RadialPosterior",
]
