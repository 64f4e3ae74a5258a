"""Distributions of weights, with their divergences registered in ``torch.distributions``."""

from ._normal_mixture import NormalMixture, mixture_kl_bound
from ._quadrature import KLQuadrature, kl_quadrature
from ._radial import Radial

__all__ = ["KLQuadrature", "NormalMixture", "Radial", "kl_quadrature", "mixture_kl_bound"]
