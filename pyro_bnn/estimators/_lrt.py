"""Local reparameterization: noise of the outputs in place of noise of the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Normal

from .._autograd import is_transformed, owns, square, wide
from .._recomputation import again, in_step, is_recomputing, unseen
from ..distributions._joint import take
from ._draw import Sample, draw, split_bias, wants_grad
from ._estimator import Estimator
from ._maps import LinearMap, collapse


class LocalReparameterization(Estimator):
    r"""Samples what the weights do to each input, and never the weights (LRT).

    .. math:: y_{no} = \mu_o^\top x_n + \Big(\textstyle\sum_i \sigma_{oi}^2 x_{ni}^2\Big)^{1/2}
              \epsilon_{no}, \qquad \epsilon_{no} \sim N(0, 1)

    which is the exact distribution of the output of example :math:`n` under its own weight. A
    second use of the weight in a forward pass is drawn from its distribution given the first,
    with covariance :math:`\sum_i \sigma_{oi}^2 x_{ni} x'_{ni}`: each row still sees one weight.
    Convolutions follow the same formula, with the convolution in place of the product.

    Outputs are drawn independently given the input, an approximation where several of them belong
    to the same example: at the pixels of an image, at the steps of a sequence (in a recurrent
    layer, too, each step has noise of its own), at repeated indices of an embedding.

    The weight itself is sampled only if something other than these asks for it. Derivatives by the
    input do not have the distribution that a weight would give them; nor do functions of several
    rows, such as their mean: see :doc:`/posteriors`.

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local
        reparameterization trick", arXiv:1506.02557.
    """

    quantity = "variance"

    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        if not isinstance(base, Normal):
            raise TypeError(
                "local reparameterization needs a Normal posterior, not "
                f"{type(base).__name__}: use the estimator `Shared()` or `Flipout()` with it"
            )
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
        self._uses: list[_Use] = []
        self._bias_noise: dict[torch.Size, Tensor] = {}
        self._transpose = transpose

    @property
    def scale(self) -> Tensor:
        return again(self._scale())

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
        if self._noise is None:
            self._noise = self._randn()
        noise = in_step(self._noise, self._randn)
        return torch.addcmul(again(self.loc), self.scale, noise)

    def _randn(self) -> Tensor:
        return torch.randn(self.shape, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def mT(self) -> Sample:
        if self._transpose is None:
            shape = self.shape[:-2] + self.shape[-2:][::-1]
            self._transpose = LRTSample(self.loc.mT, lambda: self.scale.mT, shape, self)
        return self._transpose

    def meet(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        transposed = () if self._transpose is None else self._transpose._uses
        if transposed or any(use.map.sides != map.sides for use in self._uses):
            raise ValueError(
                "a weight drawn by local reparameterization meets inputs both as it is and "
                "transposed, for which output noise cannot stand: choose flipout or a shared "
                "draw for this site by `sites=`"
            )
        mean, sample = split_bias(bias)
        fused = sample if isinstance(sample, LRTSample) else None
        output = map(input, again(self.loc), mean)
        before = [use for use in self._uses if use.fits(map, input)] if map.remembers else []
        with _in_float32(output):
            if before and is_recomputing():
                use = _closest(before, input).repeated(self, input, fused)
            else:
                use = _Use(map, self, input, fused, before)
                if map.remembers:
                    self._uses.append(use)
        output = use.added_to(output)
        if sample is not None and fused is None:
            samples = len(self.shape) - map.weight_dim
            output = output + sample.bias_noise(map, input, output, samples)
        return output

    def bias_noise(self, map: LinearMap, input: Tensor, output: Tensor, samples: int) -> Tensor:
        noise = self._bias_noise.get(output.shape)
        if noise is None or not map.remembers:
            noise = self._bias_noise[output.shape] = torch.randn_like(output)
        elif is_recomputing():
            in_step(noise, lambda: torch.randn_like(output))
        return map.align_bias(self.scale) * noise


class _Use:
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
        before: list[_Use],
        epsilon: Tensor | None = None,
    ) -> None:
        self.map = map
        self.input = input
        self.bias = bias
        self.before = before
        self.scale: Tensor
        self.factors: list[Tensor] = []
        self._latest: _Use | None = None  # of its recomputations
        variance = map.covariance(input, input, weight, bias)
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
        self.epsilon = draw() if epsilon is None else in_step(epsilon, draw)

    @property
    def random(self) -> Tensor:
        return self.scale > torch.finfo(self.scale.dtype).tiny ** 0.5

    def fits(self, map: LinearMap, input: Tensor) -> bool:
        return self.map == map and self.input.shape == input.shape

    def repeated(self, weight: LRTSample, input: Tensor, bias: LRTSample | None) -> _Use:
        """The same use in a recomputation."""
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
        new = _Use(self.map, weight, input, bias, before, self.epsilon)
        if is_reentrant:
            self._latest = new  # the first had no graph
        return new

    @property
    def has_graph(self) -> bool:
        return self._latest is not None or self.scale.requires_grad

    def _recalled(self) -> _Use:
        new = copy(self)
        new.input, new.scale = again(self.input), again(self.scale)
        new.factors = [again(factor) for factor in self.factors]
        return new

    def added_to(self, output: Tensor) -> Tensor:
        dtype = output.dtype
        output, self.scale = _with_noise(output, self.epsilon, self.rest)
        del self.rest  # this lives as long as the weight
        for factor, use in zip(self.factors, self.before, strict=True):
            output = torch.addcmul(output, factor, use.epsilon)
        return output if output.dtype is dtype else output.to(dtype)


def _in_float32(output: Tensor) -> AbstractContextManager[Any]:
    """Keeps variances out of autocast where the outputs are in float16, which has no squares."""
    if output.dtype is not torch.float16 or output.is_meta:
        return nullcontext()
    return torch.autocast(output.device.type, enabled=False)


def _closest(uses: list[_Use], input: Tensor) -> _Use:
    """The use whose input was this one, up to rounding errors of a recomputation."""
    if len(uses) == 1:
        return uses[0]
    return min(uses, key=lambda use: float((use.input.detach() - input.detach()).abs().sum()))


def _sqrt(variance: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, where the variance is 0."""
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt_()


def _with_noise(mean: Tensor, noise: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """A mean with standard noise that is made to have a variance; and the root of this."""
    if is_transformed():
        root = _sqrt(variance)
        return torch.addcmul(mean, root, noise), root
    return _WithNoise.apply(mean, noise, variance)


class _WithNoise(Function):
    """Keeps the root for its backward. Were it not returned, it could not be differentiated again.

    Where the variance is 0, its gradient is large, not infinite: it meets the inputs and scales
    that made the variance 0, and vanishes.
    """

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        mean, noise, variance = args
        root = _sqrt(variance)
        ctx.set_materialize_grads(False)
        ctx.mean_shape = mean.shape
        ctx.save_for_backward(noise, root)
        if owns(mean, root, noise):
            ctx.mark_dirty(mean)
            return mean.addcmul_(root, noise), root
        return torch.addcmul(mean, root, noise), root

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        noise, root = ctx.saved_tensors
        by_output, by_root = grads
        by_mean = by_variance = None
        if by_output is not None:
            by_mean = by_output.sum_to_size(ctx.mean_shape)
            by_variance = (by_output * noise).sum_to_size(root.shape).div_(root).mul_(0.5)
        if by_root is not None:
            own = (by_root / root).mul_(0.5)
            by_variance = own if by_variance is None else by_variance.add_(own)
        return by_mean, None, by_variance
