"""Checks of a guide against a network."""

from __future__ import annotations

from torch import nn

from ._guide import AutoPosterior
from ._sites import sample_attributes


def check_posteriors(net: nn.Module, guide: AutoPosterior) -> None:
    """Checks that a network has random weights, and the guide posteriors for them."""
    if not isinstance(guide, AutoPosterior):
        raise TypeError(
            f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides, such as "
            "`AutoLRT(net)`"
        )
    names = [name for name, *_ in sample_attributes(net)]
    if not names:
        raise ValueError(
            "`net` has no random weights: give it priors, say by `pyro_bnn.bayesianize(net)`"
        )
    missing = [name for name in names if name not in set(guide)]
    if missing:
        raise ValueError(
            f"`guide` has no posteriors for the sites {missing} of `net`: build it from the "
            "network, or from a model that contains it"
        )
