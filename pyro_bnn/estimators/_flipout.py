"""Flipout: one weight for each example, from one shared perturbation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from ..distributions import Radial
from ._draw import Sample, draw, split_bias
from ._estimator import Estimator
from ._linear import check_rows, collapse, plain_linear, row_bias


class Flipout(Estimator):
    r"""Decorrelates the examples of a batch by random signs.

    .. math:: y_n = f(x_n; \mu) + f(x_n \odot r_n; \Delta) \odot s_n

    with the perturbation :math:`\Delta = w - \mu` of one shared sample and independent random
    signs :math:`r_n, s_n`, one per input and one per output channel. Example :math:`n` then has
    exactly one weight, :math:`W_n = \mu + \Delta \circ s_n r_n^\top`, and keeps it when the
    weight is used again, also transposed. Valid for noise that is symmetric in each entry:
    Normal and radial.

    An example is an index of the first dimension of the input: all further dimensions (time,
    say) share its weight. Where weights have sample dimensions, it is a row.

    References:
        Wen, Vicol, Ba, Tran and Grosse (2018), "Flipout: efficient pseudo-independent weight
        perturbations on mini-batches", arXiv:1803.04386.
    """

    def draw(self, base: Distribution, sample_shape: torch.Size, event_dim: int) -> Tensor:
        if isinstance(base, Radial):
            standard = base.standard_noise(sample_shape)
            noise = base.scale * standard
            make_value = lambda: base.from_noise(standard)
        elif isinstance(base, Normal):
            loc = base.loc
            shape = sample_shape + loc.shape
            noise = base.scale * torch.randn(shape, dtype=loc.dtype, device=loc.device)
            make_value = lambda: base.loc + noise
        else:
            raise TypeError(
                "flipout needs a posterior with symmetric noise, Normal or Radial, not "
                f"{type(base).__name__}: use the estimator `Shared()` with it"
            )
        return draw(FlipoutSample(collapse(base.loc, event_dim), noise, make_value, Signs()))


class Signs:
    """Random signs of the channels of a weight, drawn once for each number of examples."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[int, str], Tensor] = {}

    def __call__(self, num_examples: int, side: str, size: int, like: Tensor) -> Tensor:
        key = (num_examples, side)
        if key not in self.drawn:
            bits = torch.randint(2, (num_examples, size), dtype=like.dtype, device=like.device)
            self.drawn[key] = 2 * bits - 1
        return self.drawn[key]


class FlipoutSample(Sample):
    def __init__(
        self,
        loc: Tensor,
        noise: Tensor,
        make_value: Callable[[], Tensor],
        signs: Signs,
        sides: tuple[str, str] = ("out", "in"),
    ) -> None:
        self.loc = loc
        self.noise = noise
        self.shape = noise.shape
        self.signs = signs
        self._make_value = make_value
        self._value: Tensor | None = None
        self._sides = sides

    @property
    def value(self) -> Tensor:
        if self._value is None:
            self._value = self._make_value()
        return self._value

    @property
    def mT(self) -> Sample:
        sides = self._sides[::-1]
        return FlipoutSample(self.loc.mT, self.noise.mT, lambda: self.value.mT, self.signs, sides)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        samples = len(self.shape) - 2
        if samples:
            check_rows(input)
        mean, sample = split_bias(bias)
        output = plain_linear(input, self.loc, mean)
        fused = None
        if isinstance(sample, FlipoutSample) and self._sides[0] == "out":
            if not sample.signs.drawn:
                sample.signs = self.signs  # its noise meets the signs of the weight
            if sample.signs is self.signs:
                fused = sample.noise
        r = self._signs_of(self._sides[1], input, samples)
        noise = plain_linear(input * r, self.noise, fused)
        output = output + noise * self._signs_of(self._sides[0], noise, samples)
        if sample is not None and fused is None:
            output = output + sample.bias_noise(output, samples)
        return output

    def bias_noise(self, output: Tensor, samples: int) -> Tensor:
        signs = self._signs_of("out", output, samples)
        return row_bias(self.noise) * signs

    def _signs_of(self, side: str, x: Tensor, samples: int) -> Tensor:
        """Signs that broadcast with ``x``, whose last dimension they multiply."""
        size = x.shape[-1]
        if x.dim() == 1:
            return self.signs(1, side, size, x)[0]
        axis = x.dim() - 2 if samples else 0
        signs = self.signs(x.shape[axis], side, size, x)
        return signs.view(-1, *(1,) * (x.dim() - 2 - axis), size)
