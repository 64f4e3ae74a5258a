"""Maps that are linear in their input and in their weight, as torch computes them.

An estimator's rule is written once, in terms of these. Input, weight and output of a map are
ordinary tensors; weights and biases may have sample dimensions in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._tensors import wide
from ..kernels import square
from ._sampled import REMEDY


class LinearMap(ABC):
    """A map that is linear in its input and in its weight; by value equal to another of the same.

    Attributes:
        weight_dim: number of dimensions of one weight.
        sides: the dimensions of the weight that its output and its input channels belong to.
        space: number of dimensions behind the channels of input and output.
        remembers: whether noise of an output depends on what the weight was used for before.
    """

    weight_dim: int
    sides: tuple[int, int] = (0, 1)
    space: int = 0
    remembers: bool = True

    @abstractmethod
    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The output, with the sample dimensions of weight and bias in front."""

    def rows(self, input: Tensor, samples: torch.Size) -> torch.Size:
        """The shape of the output in front of its channels."""
        rows = input.shape[: input.dim() - 1 - self.space]
        if not samples:
            return rows
        check_rows(input, 1 + self.space)
        if len(samples) == 1:
            return torch.broadcast_shapes(rows[:-1], samples) + rows[-1:]
        return torch.broadcast_shapes(rows, samples)

    def examples(self, input: Tensor, samples: int) -> tuple[int, int | None]:
        """How many examples an input has, and their axis in the output (None for one alone)."""
        if samples:
            check_rows(input, 1 + self.space)
        if input.dim() == 1 + self.space:
            return 1, None
        axis = -2 - self.space if samples else -input.dim()
        return input.shape[axis], axis

    def covariance(self, input: Tensor, other: Tensor, weight: Any, bias: Any) -> Tensor:
        """Of the outputs for two inputs, by weights and biases with a ``variance``."""
        product = square(wide(input)) if input is other else wide(input) * wide(other)
        return self(product, weight.variance, None if bias is None else bias.variance)

    def align_bias(self, bias: Tensor) -> Tensor:
        """A bias, of the shape that it is added to an output in."""
        bias = bias.unsqueeze(-2) if bias.dim() == 2 else bias
        return bias.reshape(*bias.shape, *(1,) * self.space)

    def align_signs(self, signs: Tensor, x: Tensor, axis: int | None) -> Tensor:
        """Signs of shape ``(examples, channels)``, of the shape that multiplies ``x``."""
        size = x.shape[x.dim() - 1 - self.space]
        if signs.shape[-1] != size:  # groups of channels share a dimension of the weight
            signs = signs.repeat(1, size // signs.shape[-1])
        if axis is None:
            return signs.view(size, *(1,) * self.space)
        between = -axis - self.space - 2
        return signs.view(signs.shape[0], *(1,) * between, size, *(1,) * self.space)


@dataclass(frozen=True)
class Linear(LinearMap):
    """``F.linear``."""

    weight_dim = 2

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.shape[-1] != weight.shape[-1]:
            hint = "" if weight.dim() == 2 else f". {REMEDY}"
            raise ValueError(
                f"`input` must have {weight.shape[-1]} features in its last dimension, as the "
                f"weight of shape {tuple(weight.shape)} does, not {input.shape[-1]} (shape "
                f"{tuple(input.shape)}){hint}"
            )
        if weight.dim() == 2 and (bias is None or bias.dim() == 1):
            return F.linear(input, weight, bias)
        check_rows(input, 1)
        if weight.dim() == 2:
            output = F.linear(input, weight)
        elif weight.dim() > 3 and weight.shape[-3] > 1:  # another weight for each row
            output = (weight @ input.unsqueeze(-1)).squeeze(-1)
        else:
            if weight.dim() > 3:
                weight = weight.squeeze(-3)
            output = input @ weight.mT
        return output if bias is None else output + self.align_bias(bias)


@dataclass(frozen=True, eq=False)
class Steps(Linear):
    """``F.linear`` in a recurrent layer: rows of several time steps, each of some example.

    Attributes:
        size: number of examples.
        index: the example of each row; if None, the rows are those of the first examples.
    """

    size: int
    index: Tensor | None = None
    remembers = False

    def examples(self, input: Tensor, samples: int) -> tuple[int, int | None]:
        return self.size, -2

    def align_signs(self, signs: Tensor, x: Tensor, axis: int | None) -> Tensor:
        return signs[: x.shape[-2]] if self.index is None else signs[self.index]


LINEAR = Linear()


def collapse(parameter: Tensor, event_dim: int) -> Tensor:
    """``parameter`` without the leading dimensions along which it only repeats."""
    while parameter.dim() > event_dim and (parameter.shape[0] == 1 or parameter.stride(0) == 0):
        parameter = parameter[0]
    return parameter


def check_rows(input: Tensor, event_dim: int) -> None:
    if input.dim() <= event_dim:
        raise ValueError(
            f"`input` (shape {tuple(input.shape)}) must have a dimension for rows where weights "
            "have sample dimensions: use `input.unsqueeze(0)`"
        )
