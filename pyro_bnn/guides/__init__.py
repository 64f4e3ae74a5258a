"""Guides: which posterior each latent variable of a model gets."""

from ._auto import AutoFlipout, AutoLRT, AutoMixture, AutoRadial, AutoReparameterization
from ._guide import AutoPosterior
from ._initialization import init_to_fan_in, init_to_fraction
from ._lists import optim_args, parameter_groups

__all__ = [
    "AutoFlipout",
    "AutoLRT",
    "AutoMixture",
    "AutoPosterior",
    "AutoRadial",
    "AutoReparameterization",
    "init_to_fan_in",
    "init_to_fraction",
    "optim_args",
    "parameter_groups",
]
