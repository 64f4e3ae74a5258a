"""How a draw of a weight meets its input."""

from ._draw import Draw, linear
from ._estimator import Estimated, Estimator, Shared
from ._flipout import Flipout
from ._lrt import LocalReparameterization

__all__ = [
    "Draw",
    "Estimated",
    "Estimator",
    "Flipout",
    "LocalReparameterization",
    "Shared",
    "linear",
]
