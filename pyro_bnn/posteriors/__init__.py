"""Variational posteriors over one weight tensor."""

from ._full_normal import FullNormalPosterior
from ._mixture import MixturePosterior
from ._normal import ConstrainedPosterior, NormalPosterior
from ._posterior import Posterior
from ._radial import RadialPosterior

__all__ = [
    "ConstrainedPosterior",
    "FullNormalPosterior",
    "MixturePosterior",
    "NormalPosterior",
    "Posterior",
    "RadialPosterior",
]
