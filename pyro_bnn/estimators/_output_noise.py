"""Noise of outputs, for the uses of a weight that local reparameterization does not sample."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._recomputation import again, drawn, unseen
from ..kernels import with_noise
from ._draw import wants_grad
from ._maps import LinearMap

if TYPE_CHECKING:
    from ._lrt import LRTSample


class Use:
    r"""The noise of one contraction, given those before it.

    The noises of the contractions of one weight with :math:`x_1, x_2, \dots` are jointly Normal
    for each row and output. Column by column of the Cholesky factor :math:`L` of their
    covariance, noise :math:`k` is :math:`\sum_{j \le k} L_{kj} \epsilon_j`.
    """

    def __init__(
        self,
        map: LinearMap,
        weight: LRTSample,
        input: Tensor,
        bias: LRTSample | None,
        before: list[Use],
        epsilon: Tensor | None = None,
    ) -> None:
        self.map = map
        self.bias = bias
        self.before = before
        self.scale: Tensor
        self.factors: list[Tensor] = []
        self._latest: Use | None = None  # of its recomputations
        variance = map.covariance(input, input, weight, bias)
        # A backward pass refuses inputs that were changed in place; without one, nothing would.
        is_copied = map.remembers and not variance.requires_grad
        self.input = input.clone() if is_copied else input
        rest = variance
        for use in before:
            covariance = map.covariance(
                input, use.input, weight, bias if use.bias is bias else None
            )
            for factor, other in zip(self.factors, use.factors, strict=False):
                covariance = covariance - factor * other
            factor = torch.where(use.random, covariance / use.scale.where(use.random, 1), 0)
            self.factors.append(factor)
            rest = rest - factor.square()
        if before:  # what is left of the same input is rounding error, with a huge gradient
            shape = weight.shape[-map.weight_dim :]
            num_terms = shape.numel() // shape[map.sides[0]]
            resolution = 8 * torch.finfo(variance.dtype).eps * num_terms**0.5
            rest = torch.where(rest > resolution * variance, rest, 0)
        self.rest = rest
        rows = map.rows(input, weight.shape[: -map.weight_dim])
        shape = rows + rest.shape[rest.dim() - 1 - map.space :]
        draw = lambda: torch.randn(shape, dtype=rest.dtype, device=rest.device)
        self.epsilon = drawn(epsilon, draw)

    @property
    def random(self) -> Tensor:
        return self.scale > torch.finfo(self.scale.dtype).tiny ** 0.5

    def fits(self, map: LinearMap, input: Tensor) -> bool:
        return self.map == map and self.input.shape == input.shape

    def repeated(self, weight: LRTSample, input: Tensor, bias: LRTSample | None) -> Use:
        """The same noise once more, as in a recomputation."""
        is_trained = wants_grad(weight.scale) or wants_grad(input)
        is_reentrant = is_trained and not self.scale.requires_grad
        if is_reentrant:
            unknown = [use for use in self.before if not use.has_graph]
            unknown += [use for use in weight._uses if self in use.before and use.has_graph]
            if unknown:
                raise ValueError(
                    "a weight drawn by local reparameterization is used inside an activation "
                    "checkpoint with reentrance and outside of it, which leaves the gradient of "
                    "their covariance out: pass `use_reentrant=False` to `checkpoint`"
                )
        before = [(use._latest or use)._recalled() for use in self.before]
        new = Use(self.map, weight, input, bias, before, self.epsilon)
        if is_reentrant:
            self._latest = new  # the first had no graph
        return new

    @property
    def has_graph(self) -> bool:
        return self._latest is not None or self.scale.requires_grad

    def _recalled(self) -> Use:
        new = copy(self)
        new.input, new.scale = again(self.input), again(self.scale)
        new.factors = [again(factor) for factor in self.factors]
        return new

    def added_to(self, output: Tensor) -> Tensor:
        dtype = output.dtype
        output, self.scale = with_noise(output, self.epsilon, self.rest)
        del self.rest  # this lives as long as the weight
        for factor, use in zip(self.factors, self.before, strict=True):
            output = torch.addcmul(output, factor, use.epsilon)
        return output if output.dtype is dtype else output.to(dtype)


def in_float32(output: Tensor) -> AbstractContextManager[Any]:
    """Keeps variances out of autocast where the outputs are in float16, which has no squares."""
    if output.dtype is not torch.float16 or output.is_meta:
        return nullcontext()
    return torch.autocast(output.device.type, enabled=False)


def closest(uses: list[Use], input: Tensor) -> Use:
    """The use whose input was this one, up to rounding errors of a recomputation."""
    if len(uses) == 1:
        return uses[0]
    with unseen():
        return min(uses, key=lambda use: float((use.input.detach() - input.detach()).abs().sum()))
