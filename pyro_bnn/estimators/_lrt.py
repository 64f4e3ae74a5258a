"""Local reparameterization: noise of the outputs in place of noise of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._recomputation import again, drawn, is_recomputing, unseen
from .._tensors import wide
from .._torch import is_func_leaf, is_transformed
from ..distributions._joint import take
from ..kernels import square
from ._draw import draw, split_bias, wants_grad
from ._estimator import Estimator
from ._maps import LinearMap, collapse
from ._output_noise import Use, closest, in_float32
from ._sample import Sample


class LocalReparameterization(Estimator):
    r"""Samples the outputs of a layer instead of its weights (LRT).

    .. math:: y_{no} = \mu_o^\top x_n + \Big(\textstyle\sum_i \sigma_{oi}^2 x_{ni}^2\Big)^{1/2}
              \epsilon_{no}, \qquad \epsilon_{no} \sim N(0, 1)

    which is the exact distribution of the output of example :math:`n`. If the weight is used a
    second time in a forward pass, the output is sampled conditionally on the first, with covariance
    :math:`\sum_i \sigma_{oi}^2 x_{ni} x'_{ni}`: each row still has one weight. The time for
    :math:`T` uses grows as :math:`T^3`, that of flipout as :math:`T`. Convolutions follow the same
    formula, with the convolution in place of the product.

    Outputs are sampled independently given the input. This is an approximation where several of
    them belong to one example: at the pixels of an image, at the steps of a sequence (also in
    recurrent layers), at repeated indices of an embedding.

    The weight itself is sampled only if another operation needs it. Derivatives with respect to the
    input do not have the distribution that a sampled weight would give them; nor do functions of
    several rows, such as their mean: see :doc:`/posteriors`.

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local
        reparameterization trick", arXiv:1506.02557.
    """

    needs = "normal"
    supports_transpose = False
    quantity = "variance"

    def draw(self, base: Any, sample_shape: torch.Size, event_dim: int) -> Tensor:
        self.check(base)
        shape = sample_shape + base.loc.shape
        scale = lambda: collapse(base.scale, event_dim)
        sample = LRTSample(collapse(base.loc, event_dim), scale, shape)
        if base.loc.dtype is not torch.float16:
            sample._variance = take(base, sample_shape)
        return draw(sample)


class LRTSample(Sample):
    def __init__(
        self,
        loc: Tensor,
        scale: Callable[[], Tensor],
        shape: torch.Size,
        transpose: LRTSample | None = None,
    ) -> None:
        self.loc = loc
        self._scale = scale
        self.shape = shape
        self._variance: Tensor | None = None
        self._noise: Tensor | None = None
        self._uses: list[Use] = []
        self._bias_noise: dict[torch.Size, Tensor] = {}
        self._transpose = transpose

    @property
    def scale(self) -> Tensor:
        with unseen():
            scale = self._scale()
        return again(scale)

    @property
    def variance(self) -> Tensor:
        known = self._variance
        if known is not None and (known.requires_grad or not wants_grad(self.scale)):
            return again(known)
        with unseen():
            variance = square(wide(self.scale))
        if not is_recomputing():
            self._variance = variance
        return variance

    @property
    def value(self) -> Tensor:
        self._noise = drawn(self._noise, self._randn)
        return torch.addcmul(again(self.loc), self.scale, self._noise)

    def _randn(self) -> Tensor:
        return torch.randn(self.shape, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def mT(self) -> Sample:
        if self._transpose is None:
            shape = self.shape[:-2] + self.shape[-2:][::-1]
            self._transpose = LRTSample(self.loc.mT, lambda: self.scale.mT, shape, self)
        return self._transpose

    def apply(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        transposed = () if self._transpose is None else self._transpose._uses
        if transposed or any(use.map.sides != map.sides for use in self._uses):
            raise ValueError(
                "a weight is used both as it is and transposed, for which local reparameterization "
                "has no rule: choose flipout or a shared sample for this site by `sites=`"
            )
        mean, sample = split_bias(bias)
        fused = sample if isinstance(sample, LRTSample) else None
        output = map(input, again(self.loc), mean)
        before = [use for use in self._uses if use.fits(map, input)] if map.remembers else []
        same = [use for use in before if use.input is input and use.bias is fused]
        known = same[0] if same else None
        if before and is_recomputing():
            known = closest(before, input)
        with in_float32(output):
            if known is not None:
                use = known.repeated(self, input, fused)
            else:
                use = Use(map, self, input, fused, before)
                if map.remembers:
                    self._uses.append(use)
        output = use.added_to(output)
        if wants_grad(input) and _is_of_the_user(input):
            output.register_hook(_refuse_derivative)
        if sample is not None and fused is None:
            samples = len(self.shape) - map.weight_dim
            output = output + sample.bias_noise(map, input, output, samples)
        return output

    def bias_noise(self, map: LinearMap, input: Tensor, output: Tensor, samples: int) -> Tensor:
        noise = self._bias_noise.get(output.shape) if map.remembers else None
        noise = drawn(noise, lambda: torch.randn_like(output))
        self._bias_noise[output.shape] = noise
        return map.align_bias(self.scale) * noise


def _is_of_the_user(input: Tensor) -> bool:
    if torch.compiler.is_compiling() or not input.is_leaf or isinstance(input, nn.Parameter):
        return False
    return is_func_leaf(input) or not is_transformed()


def _refuse_derivative(grad: Tensor) -> None:
    # That of a loss has the right expectation; one that is computed with has another distribution.
    if torch.is_grad_enabled():
        raise ValueError(
            "a derivative by the input is computed with (`create_graph=True`, `torch.func`), which "
            "under local reparameterization does not have the distribution that a weight would "
            "give it: choose flipout or shared draws, `AutoFlipout(model)` or "
            "`guide.shared_draws()`"
        )
