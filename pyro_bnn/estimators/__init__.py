"""How outputs are computed from a draw of a weight."""

from . import _recurrent as _recurrent  # adds its rules to those of draws
from ._draw import Draw, draw, linear, split_bias
from ._estimator import Estimated, Estimator, Shared
from ._flipout import Flipout
from ._lrt import LocalReparameterization
from ._maps import LinearMap
from ._one_weight import OneWeight
from ._register import register_map
from ._sample import Sample

__all__ = [
    "Draw",
    "Estimated",
    "Estimator",
    "Flipout",
    "LinearMap",
    "LocalReparameterization",
    "OneWeight",
    "Sample",
    "Shared",
    "draw",
    "linear",
    "register_map",
    "split_bias",
]
