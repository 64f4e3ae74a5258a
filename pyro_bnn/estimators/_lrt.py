"""Local reparameterization: noise of the outputs in place of noise of the weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from ._draw import Sample, draw, split_bias
from ._estimator import Estimator
from ._linear import collapse, leading_shape, plain_linear, row_bias


class LocalReparameterization(Estimator):
    r"""Samples what the weights do to each input, and never the weights (LRT).

    .. math:: y_{no} = \mu_o^\top x_n + \Big(\textstyle\sum_i \sigma_{oi}^2 x_{ni}^2\Big)^{1/2}
              \epsilon_{no}, \qquad \epsilon_{no} \sim N(0, 1)

    which is the exact distribution of the output of example :math:`n` under its own weight. A
    second use of the weight in a forward pass is drawn from its distribution given the first,
    with covariance :math:`\sum_i \sigma_{oi}^2 x_{ni} x'_{ni}`: each row still sees one weight.
    Rows are taken as independent: where a further dimension of the input (time, say) belongs to
    the same example, its outputs are drawn independently given the input, an approximation.

    The weight itself is sampled only if something other than a linear map asks for it.

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local
        reparameterization trick", arXiv:1506.02557.
    """

    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        if not isinstance(base, Normal):
            raise TypeError(
                "local reparameterization needs a Normal posterior, not "
                f"{type(base).__name__}: use the estimator `Shared()` or `Flipout()` with it"
            )
        shape = sample_shape + base.loc.shape
        loc, scale = collapse(base.loc, event_dim), collapse(base.scale, event_dim)
        return draw(LRTSample(loc, scale, shape))


class LRTSample(Sample):
    def __init__(
        self, loc: Tensor, scale: Tensor, shape: torch.Size, transpose: LRTSample | None = None
    ) -> None:
        self.loc = loc
        self.variance = scale.square()
        self.shape = shape
        self._scale = scale
        self._value: Tensor | None = None
        self._uses: list[_Use] = []
        self._bias_noise: dict[torch.Size, Tensor] = {}
        self._transpose = transpose

    @property
    def value(self) -> Tensor:
        if self._value is None:
            noise = torch.randn(self.shape, dtype=self.loc.dtype, device=self.loc.device)
            self._value = torch.addcmul(self.loc, self._scale, noise)
        return self._value

    @property
    def mT(self) -> Sample:
        if self._transpose is None:
            shape = self.shape[:-2] + self.shape[-2:][::-1]
            self._transpose = LRTSample(self.loc.mT, self._scale.mT, shape, self)
        return self._transpose

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        if self._transpose is not None and self._transpose._uses:
            raise ValueError(
                "a weight drawn by local reparameterization meets inputs both as it is and "
                "transposed, for which output noise cannot stand: choose flipout or a shared "
                "draw for this site by `sites=`"
            )
        mean, sample = split_bias(bias)
        fused = sample if isinstance(sample, LRTSample) else None
        output = plain_linear(input, self.loc, mean)
        use = _Use(self, input, fused, [u for u in self._uses if u.fits(input)])
        self._uses.append(use)
        output = output + use.noise()
        if sample is not None and fused is None:
            output = output + sample.bias_noise(output, len(self.shape) - 2)
        return output

    def bias_noise(self, output: Tensor, samples: int) -> Tensor:
        if output.shape not in self._bias_noise:
            self._bias_noise[output.shape] = torch.randn_like(output)
        return row_bias(self._scale) * self._bias_noise[output.shape]


class _Use:
    r"""The noise of one contraction, given those before it.

    The noises of the contractions of one weight with :math:`x_1, x_2, \dots` are jointly Normal
    for each row and output. Column by column of the Cholesky factor :math:`L` of their
    covariance, noise :math:`k` is :math:`\sum_{j \le k} L_{kj} \epsilon_j`.
    """

    def __init__(
        self, weight: LRTSample, input: Tensor, bias: LRTSample | None, before: list[_Use]
    ) -> None:
        self.input = input
        self.bias = bias
        self.random: Tensor
        self.scale: Tensor
        self.before = before
        bias_variance = None if bias is None else bias.variance
        self.factors: list[Tensor] = []
        variance = plain_linear(input.square(), weight.variance, bias_variance)
        rest = variance
        for use in before:
            shared = bias_variance if use.bias is bias else None
            covariance = plain_linear(input * use.input, weight.variance, shared)
            for factor, other in zip(self.factors, use.factors, strict=False):
                covariance = covariance - factor * other
            factor = torch.where(use.random, covariance / use.scale.where(use.random, 1), 0)
            self.factors.append(factor)
            rest = rest - factor.square()
        if before:  # what is left of the same input is rounding error, with a huge gradient
            resolution = 8 * torch.finfo(variance.dtype).eps * input.shape[-1] ** 0.5
            rest = torch.where(rest > resolution * variance, rest, 0)
        self.random = rest > 0
        self.scale = _sqrt(rest)
        lead = leading_shape(input, weight.shape[:-2])
        self.epsilon = torch.randn(lead + rest.shape[-1:], dtype=rest.dtype, device=rest.device)

    def fits(self, input: Tensor) -> bool:
        return self.input.shape == input.shape

    def noise(self) -> Tensor:
        noise = self.scale * self.epsilon
        for factor, use in zip(self.factors, self.before, strict=True):
            noise = noise + factor * use.epsilon
        return noise


def _sqrt(variance: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, where the variance is 0."""
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
