"""Distributions of weights, with their KL divergences registered in ``torch.distributions``."""

from . import _correlated_kl  # noqa: F401  (registers KL divergences)
from ._bounds import register_bound
from ._correlated_normal import FullNormal, MatrixNormal
from ._grouped_normal import GroupedNormal
from ._hierarchical_kl import hierarchical_kl_bound
from ._hierarchical_normal import HierarchicalNormal
from ._mixture_kl import mixture_kl_bound
from ._normal_mixture import NormalMixture
from ._quadrature import KLQuadrature, kl_quadrature
from ._radial import Radial

__all__ = [
    "FullNormal",
    "GroupedNormal",
    "HierarchicalNormal",
    "KLQuadrature",
    "MatrixNormal",
    "NormalMixture",
    "Radial",
    "hierarchical_kl_bound",
    "kl_quadrature",
    "mixture_kl_bound",
    "register_bound",
]
