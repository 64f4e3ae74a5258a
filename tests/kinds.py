"""One row per kind: the generic properties in this folder run over these tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch

from pyro_bnn import priors
from pyro_bnn.distributions import NormalMixture, Radial
from pyro_bnn.guides import (
    AutoFlipout,
    AutoLRT,
    AutoMixture,
    AutoPosterior,
    AutoRadial,
    AutoReparameterization,
)
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import (
    ConstrainedPosterior,
    MixturePosterior,
    NormalPosterior,
    RadialPosterior,
)


@dataclass(frozen=True)
class Guide:
    make: Callable[..., AutoPosterior]
    is_normal: bool = False  # every entry has a Normal posterior, and its divergence is exact
    is_shared: bool = False  # a draw is one weight for all examples
    has_quantiles: bool = True

    @property
    def name(self) -> str:
        return self.make.__name__


GUIDES = [
    Guide(AutoReparameterization, is_normal=True, is_shared=True),
    Guide(AutoFlipout, is_normal=True),
    Guide(AutoLRT, is_normal=True),
    Guide(AutoRadial, is_shared=True, has_quantiles=False),
    Guide(AutoMixture, is_shared=True),
]


@dataclass(frozen=True)
class Layer:
    make: Callable[..., torch.nn.Module]
    torch: type[torch.nn.Module]
    args: dict[str, Any]
    input: tuple[int, ...]
    variants: list[dict[str, Any]] = field(default_factory=lambda: [{}])


LAYERS = [
    Layer(
        BayesianLinear,
        torch.nn.Linear,
        {"in_features": 4, "out_features": 3},
        (5, 4),
        [{}, {"bias": False}, {"dtype": torch.float64}, {"device": "cpu"}],
    ),
]


@dataclass(frozen=True)
class Posterior:
    make: Callable[..., Any]
    loc: tuple[int, ...] = (3, 2)


POSTERIORS = [
    Posterior(NormalPosterior),
    Posterior(RadialPosterior),
    Posterior(MixturePosterior),
    Posterior(partial(ConstrainedPosterior, support=dist.constraints.positive)),
]

PRIORS = {
    "Normal": priors.Normal(0.3, 0.5),
    "FanInNormal": priors.FanInNormal(math.sqrt(2)),
    "ScaleMixture": priors.ScaleMixture(0.4, 1.0, 0.1),
    "Laplace": priors.Laplace(0.0, 0.7),
}

DISTRIBUTIONS = {
    "Radial": lambda dtype: Radial(
        torch.linspace(-1, 1, 6, dtype=dtype).view(2, 3),
        torch.linspace(0.5, 1.5, 6, dtype=dtype).view(2, 3),
        event_dim=1,
    ),
    "NormalMixture": lambda dtype: NormalMixture(
        torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=dtype),
        torch.tensor([[-1.0, 1.0], [0.0, 0.2]], dtype=dtype),
        torch.tensor([[0.5, 0.3], [1.0, 0.1]], dtype=dtype),
    ),
}
