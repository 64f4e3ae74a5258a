"""Maps that torch computes for one weight at a time: convolutions and embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._tensors import wide
from ._maps import LinearMap, check_rows


class OneWeight(LinearMap):
    """A map that is computed for one weight at a time, and vectorized over sample dimensions.

    Attributes:
        input_dim: number of dimensions of a batch of inputs.
    """

    input_dim: int

    @abstractmethod
    def compute(self, input: Tensor, weight: Tensor) -> Tensor:
        """The output for one weight of ``weight_dim`` dimensions, without a bias."""

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dim() == self.weight_dim and input.dim() <= self.input_dim:
            output = self.compute(input, weight)
        else:
            check_rows(input, 1 + self.space)
            output = _over_samples(self.compute, input, weight, self.input_dim, self.weight_dim)
        return output if bias is None else output + self.align_bias(bias)


@dataclass(frozen=True)
class Convolution(OneWeight):
    """One of ``F.conv1d`` to ``F.conv3d`` and ``F.conv_transpose1d`` to ``F.conv_transpose3d``.

    Attributes:
        function: that function.
        options: its further arguments: stride, padding and so on.
    """

    function: Callable[..., Tensor]
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Convolution:
        options = dict(zip(_CONVOLUTIONS[function][2], args, strict=False)) | kwargs
        return cls(function, tuple(options.items()))

    @property
    def space(self) -> int:  # type: ignore[override]
        return _CONVOLUTIONS[self.function][0]

    @property
    def weight_dim(self) -> int:  # type: ignore[override]
        return self.space + 2

    @property
    def sides(self) -> tuple[int, int]:  # type: ignore[override]
        return _CONVOLUTIONS[self.function][1]

    input_dim = weight_dim

    def compute(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.function(input, weight, bias, **dict(self.options))

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        is_plain = weight.dim() == self.weight_dim and (bias is None or bias.dim() == 1)
        if is_plain and input.dim() <= self.weight_dim:  # the bias in the same call
            return self.compute(input, weight, bias)
        return super().__call__(input, weight, bias)


@dataclass(frozen=True)
class Lookup(LinearMap):
    """``F.embedding``: the product of rows that are one at an index, and zero elsewhere.

    Attributes:
        padding_idx, scale_grad_by_freq, sparse: of ``F.embedding``; they affect gradients.
    """

    padding_idx: int | None = None
    scale_grad_by_freq: bool = False
    sparse: bool = False
    weight_dim = 2
    sides = (1, 0)

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dim() == self.weight_dim:
            return self._look_up(input, weight)
        return _over_samples(self._look_up, input, weight, input.dim(), self.weight_dim)

    def rows(self, input: Tensor, samples: torch.Size) -> torch.Size:
        return (samples[:-1] if len(samples) > 1 else samples) + input.shape

    def examples(self, input: Tensor, samples: int) -> tuple[int, int | None]:
        return (input.shape[0], -1 - input.dim()) if input.dim() else (1, None)

    def covariance(self, input: Tensor, other: Tensor, weight: Any, bias: Any) -> Tensor:
        variance = wide(self(input, weight.scale)).square()
        if input is other:
            return variance
        return torch.where((input == other).unsqueeze(-1), variance, 0)

    def _look_up(self, input: Tensor, weight: Tensor) -> Tensor:
        options = (self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
        return F.embedding(input, weight, *options)


_CONVOLVE = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
# Number of dimensions in space, dimensions of the weight for (output, input), options in order.
_CONVOLUTIONS: dict[Callable[..., Tensor], tuple[int, tuple[int, int], tuple[str, ...]]] = {
    F.conv1d: (1, (0, 1), _CONVOLVE),
    F.conv2d: (2, (0, 1), _CONVOLVE),
    F.conv3d: (3, (0, 1), _CONVOLVE),
    F.conv_transpose1d: (1, (1, 0), _TRANSPOSED),
    F.conv_transpose2d: (2, (1, 0), _TRANSPOSED),
    F.conv_transpose3d: (3, (1, 0), _TRANSPOSED),
}
CONVOLUTIONS = tuple(_CONVOLUTIONS)


def _over_samples(
    f: Callable[[Tensor, Tensor], Tensor], input: Tensor, weight: Tensor, num_in: int, num_w: int
) -> Tensor:
    """``f`` for each index of the dimensions in front of the last ``num_in`` and ``num_w``."""
    if weight.dim() > num_w + 1:  # the last sample dimension counts rows
        if weight.shape[-num_w - 1] == 1:
            weight = weight.squeeze(-num_w - 1)
        else:
            num_in -= 1
    depth = max(input.dim() - num_in, weight.dim() - num_w)

    def nested(depth: int, input: Tensor, weight: Tensor) -> Tensor:
        if depth == 0:
            return f(input, weight)
        tensors: list[Tensor] = []
        dims: list[int | None] = []
        for x, num in ((input, num_in), (weight, num_w)):
            repeats = x.dim() - num < depth
            if not repeats and x.shape[0] == 1:
                x, repeats = x[0], True
            tensors.append(x)
            dims.append(None if repeats else 0)
        one = partial(nested, depth - 1)
        if dims == [None, None]:
            return one(*tensors).unsqueeze(0)
        return torch.vmap(one, in_dims=tuple(dims))(*tensors)

    return nested(depth, input, weight)
