"""Distributions of weights, with their divergences registered in ``torch.distributions``."""

from ._full_normal import FullNormal
from ._hierarchical_kl import hierarchical_kl_bound
from ._hierarchical_normal import HierarchicalNormal
from ._normal_mixture import NormalMixture, mixture_kl_bound
from ._quadrature import KLQuadrature, kl_quadrature
from ._radial import Radial

__all__ = [
    "FullNormal",
    "HierarchicalNormal",
    "KLQuadrature",
    "NormalMixture",
    "Radial",
    "hierarchical_kl_bound",
    "kl_quadrature",
    "mixture_kl_bound",
]
