"""One row per kind: the generic properties in this folder run over these tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bnn import priors
from pyro_bnn.distributions import (
    FullNormal,
    GroupedNormal,
    HierarchicalNormal,
    MatrixNormal,
    NormalMixture,
    Radial,
)
from pyro_bnn.guides import (
    AutoFlipout,
    AutoLRT,
    AutoMixture,
    AutoPosterior,
    AutoRadial,
    AutoReparameterization,
)
from pyro_bnn.nn import (
    BayesianConv1d,
    BayesianConv2d,
    BayesianConv3d,
    BayesianConvTranspose1d,
    BayesianConvTranspose2d,
    BayesianConvTranspose3d,
    BayesianEmbedding,
    BayesianGRU,
    BayesianLinear,
    BayesianLSTM,
    BayesianRNN,
)
from pyro_bnn.posteriors import (
    ConstrainedPosterior,
    FullNormalPosterior,
    MatrixNormalPosterior,
    MixturePosterior,
    NormalPosterior,
    RadialPosterior,
)


@dataclass(frozen=True)
class Guide:
    make: Callable[..., AutoPosterior]
    is_normal: bool = False  # every entry has a Normal posterior, and its KL divergence is exact
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
    input: tuple[int, ...]  # shape of one example
    output_dim: int  # number of dimensions of the output of one example
    variants: list[dict[str, Any]] = field(default_factory=list)
    num_embeddings: int = 0  # inputs are indices below it, not numbers

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def is_recurrent(self) -> bool:
        return issubclass(self.torch, torch.nn.RNNBase)

    def x(self, *batch: int, dtype: torch.dtype = torch.float) -> Tensor:
        if self.num_embeddings:
            return torch.randint(self.num_embeddings, (*batch, *self.input))
        return torch.randn(*batch, *self.input, dtype=dtype)

    def output(self, result: Any) -> Tensor:
        return result[0] if self.is_recurrent else result


SAME = [{"dtype": torch.float64}, {"device": "cpu"}]
NO_BIAS = {"bias": False}


def _convolution(make, kind, space):
    args = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    variants = [
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"groups": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate"},
    ]
    rich = {"groups": 2, "stride": 2, "padding": 1}
    variants = [dict.fromkeys(rich, 1) | {"padding": 0} | v for v in variants]
    return Layer(
        make, kind, args | rich, (4, 5, 6, 4)[: space + 1], space + 1, [*variants, NO_BIAS, *SAME]
    )


def _transposed(make, kind, space):
    args = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    rich = {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1}
    variants = [
        {"groups": 1},
        {"dilation": 2},
        {"output_padding": 0},
        {"stride": 1, "output_padding": 0},
    ]
    return Layer(
        make, kind, args | rich, (4, 3, 2, 3)[: space + 1], space + 1, [*variants, NO_BIAS, *SAME]
    )


def _recurrent(make, kind, *variants):
    args = {"input_size": 3, "hidden_size": 4, "batch_first": True}
    own = [{"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
    return Layer(make, kind, args, (3, 3), 2, [*own, *variants, NO_BIAS, *SAME])


LAYERS = [
    Layer(
        BayesianLinear,
        torch.nn.Linear,
        {"in_features": 4, "out_features": 3},
        (4,),
        1,
        [NO_BIAS, *SAME],
    ),
    _convolution(BayesianConv1d, torch.nn.Conv1d, 1),
    _convolution(BayesianConv2d, torch.nn.Conv2d, 2),
    _convolution(BayesianConv3d, torch.nn.Conv3d, 3),
    _transposed(BayesianConvTranspose1d, torch.nn.ConvTranspose1d, 1),
    _transposed(BayesianConvTranspose2d, torch.nn.ConvTranspose2d, 2),
    _transposed(BayesianConvTranspose3d, torch.nn.ConvTranspose3d, 3),
    _recurrent(BayesianLSTM, torch.nn.LSTM, {"proj_size": 2, "num_layers": 2}),
    _recurrent(BayesianGRU, torch.nn.GRU),
    _recurrent(BayesianRNN, torch.nn.RNN, {"nonlinearity": "relu"}),
    Layer(
        BayesianEmbedding,
        torch.nn.Embedding,
        {"num_embeddings": 7, "embedding_dim": 3},
        (2,),
        2,
        [
            {"padding_idx": 2},
            {"padding_idx": -1},
            {"max_norm": 1.0},
            {"max_norm": 1.0, "norm_type": 1.0, "padding_idx": 0},
            {"scale_grad_by_freq": True},
            *SAME,
        ],
        num_embeddings=7,
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
    Posterior(FullNormalPosterior),
    Posterior(MatrixNormalPosterior),
    Posterior(partial(ConstrainedPosterior, support=dist.constraints.positive)),
]

PRIORS = {
    "Normal": priors.Normal(0.3, 0.5),
    "FanInNormal": priors.FanInNormal(math.sqrt(2)),
    "ScaleMixture": priors.ScaleMixture(0.4, 1.0, 0.1),
    "Laplace": priors.Laplace(0.0, 0.7),
    "ARD": priors.Normal(0.3, 0.5, learnable_scale="input"),
    "HierarchicalNormal": priors.HierarchicalNormal("input", concentration=8.0, rate=3.5),
}

DISTRIBUTIONS = {
    "MatrixNormal": lambda dtype: MatrixNormal(
        torch.linspace(-1, 1, 12, dtype=dtype).view(2, 2, 3),
        torch.tensor([[0.5, 0], [-0.3, 0.4]], dtype=dtype),
        torch.tensor([[0.5, 0, 0], [0.2, 0.3, 0], [-0.4, 0.1, 0.8]], dtype=dtype),
        event_dim=2,
    ),
    "FullNormal": lambda dtype: FullNormal(
        torch.linspace(-1, 1, 6, dtype=dtype).view(2, 3),
        torch.tensor([[0.5, 0, 0], [0.2, 0.3, 0], [-0.4, 0.1, 0.8]], dtype=dtype),
        event_dim=1,
    ),
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
    "GroupedNormal": lambda dtype: GroupedNormal(
        (2, 3), torch.tensor([0.5, 1.0, 2.0], dtype=dtype), 0.3, group_dims=(1,)
    ).expand((2,)),
    "HierarchicalNormal": lambda dtype: HierarchicalNormal(
        (2, 3), *torch.tensor([8.0, 3.5, 0.3], dtype=dtype), group_dims=(1,)
    ).expand((2,)),
}
