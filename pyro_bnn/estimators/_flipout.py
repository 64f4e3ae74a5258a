"""Flipout: one weight for each example, from one shared perturbation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from .._recomputation import again, drawn, in_step, is_recomputing, unseen
from .._torch import is_transformed
from ..distributions._joint import take
from ..kernels import random_signs
from ._draw import draw, split_bias, wants_grad
from ._estimator import Estimator
from ._maps import LinearMap, collapse
from ._one_weight import Lookup
from ._sample import Sample
from ._signs import Signs


class Flipout(Estimator):
    r"""Decorrelates the examples of a batch by random signs.

    .. math:: y_n = f(x_n; \mu) + f(x_n \odot r_n; \Delta) \odot s_n

    with the perturbation :math:`\Delta = w - \mu` of one shared sample and independent random
    signs :math:`r_n, s_n`, one per input and one per output channel. Example :math:`n` then has
    exactly one weight, :math:`W_n = \mu + \Delta \circ s_n r_n^\top`, and keeps it when the
    weight is used again, also transposed. Valid for noise that is symmetric in each entry:
    Normal and radial, and that of any distribution whose attribute ``noise_kind`` is
    ``"symmetric"``.

    An example is an index of the first dimension of the input: all further dimensions (pixels,
    time) share its weight, and the steps of recurrent layers do. Where weights have sample
    dimensions, it is a row. Groups of channels have the same signs. Functions of
    several examples, such as their mean, do not see a single weight: see :doc:`/posteriors`.

    References:
        Wen, Vicol, Ba, Tran and Grosse (2018), "Flipout: efficient pseudo-independent weight
        perturbations on mini-batches", arXiv:1803.04386.
    """

    needs = "symmetric"
    quantity = "noise"

    def draw(self, base: Any, sample_shape: torch.Size, event_dim: int) -> Tensor:
        self.check(base)
        noise = Noise(base, sample_shape, take(base, sample_shape))
        return draw(FlipoutSample(noise, collapse(base.loc, event_dim)))


class Noise:
    """The noise of one sample, drawn when it is first asked for, where it is asked for.

    That of a distribution with a method ``standard_noise`` of its own is drawn as a whole.
    """

    def __init__(self, base: Any, sample_shape: torch.Size, noise: Tensor | None = None) -> None:
        self.shape = sample_shape + base.loc.shape
        self._base = base
        self._is_normal = isinstance(base, Normal)
        self._sample_shape = sample_shape
        self._standard: Tensor | None = None
        self._noise = noise
        self._is_given = noise is not None
        self._rows: list[Tensor] = []  # those of an embedding that have been looked up
        self._position: Tensor | None = None

    @property
    def noise(self) -> Tensor:
        # What was made here may have come after a checkpoint: its graph is then freed before.
        is_freed = is_recomputing() and self._standard is not None
        known = None if is_freed else self._noise
        if known is not None and (known.requires_grad or not wants_grad(self._base.scale)):
            return again(known)
        standard = self.standard
        with unseen():
            noise = again(self._base.scale) * standard
        if not is_recomputing():
            self._noise = noise
        return noise

    @property
    def value(self) -> Tensor:
        with unseen():
            if not self._is_normal and not is_recomputing():
                return self._base.from_noise(self.standard)
            return again(self._base.loc) + self.noise

    @property
    def standard(self) -> Tensor:
        self._standard = drawn(self._standard, self._draw)
        return self._standard

    def _draw(self) -> Tensor:
        if not self._is_normal:
            return self._base.standard_noise(self._sample_shape)
        standard = self._randn(self.shape)
        if self._position is not None:
            known = self._position >= 0
            standard[known] = torch.cat(self._rows)[self._position[known]]
        return standard

    def look_up(self, map: Lookup, index: Tensor) -> Tensor:
        """The noise of the rows at an index; no other row is drawn."""
        whole = self._is_given or not self._is_normal
        # What is traced, or on the meta device, has no shapes that depend on values.
        if whole or len(self.shape) > 2 or is_transformed() or index.is_meta:
            return map(index, self.noise)
        index = index.long()  # other integers are no indices to all functions
        # Of the same form whether all rows are drawn or not, as they may be in a recomputation.
        return map(index, again(self._base.scale)) * self._standard_rows(index)

    def _standard_rows(self, index: Tensor) -> Tensor:
        if is_recomputing():
            for rows in self._rows:
                in_step(rows, partial(self._randn, rows.shape))
        if self._standard is not None:
            return self._standard[index]
        if self._position is None:
            self._position = index.new_full(self.shape[:1], -1)
        new = index.unique()
        new = new[self._position[new] < 0]
        if len(new) or not self._rows:
            start = sum(len(drawn) for drawn in self._rows)
            self._position[new] = start + torch.arange(len(new), device=index.device)
            self._rows.append(self._randn((len(new), self.shape[1])))
        rows = self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows)
        return rows[self._position[index]]

    def _randn(self, shape: tuple[int, ...]) -> Tensor:
        loc = self._base.loc
        return torch.randn(shape, dtype=loc.dtype, device=loc.device)


class FlipoutSample(Sample):
    def __init__(
        self,
        noise: Noise,
        loc: Tensor,
        signs: Signs | None = None,
        transposed: bool = False,
    ) -> None:
        self.loc = loc
        self.signs = signs or Signs()
        self._noise = noise
        self._transposed = transposed

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        shape = self._noise.shape
        return shape[:-2] + shape[-2:][::-1] if self._transposed else shape

    @property
    def noise(self) -> Tensor:
        noise = self._noise.noise
        return noise.mT if self._transposed else noise

    @property
    def value(self) -> Tensor:
        value = self._noise.value
        return value.mT if self._transposed else value

    @property
    def mT(self) -> Sample:
        return FlipoutSample(self._noise, self.loc.mT, self.signs, not self._transposed)

    def apply(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        samples = len(self.shape) - map.weight_dim
        num_examples, axis = map.examples(input, samples)
        mean, sample = split_bias(bias)
        output = map(input, again(self.loc), mean)
        side_out, side_in = (side ^ self._transposed for side in map.sides)
        fused = None
        if isinstance(sample, FlipoutSample) and side_out == 0:
            if not sample.signs.drawn and sample.shape[-1] == self.shape[-map.weight_dim]:
                sample.signs = self.signs  # those of the weight
            if sample.signs is self.signs:
                fused = sample.noise

        if isinstance(map, Lookup) and not self._transposed:
            noise = self._look_up(map, input, num_examples)
        else:
            size = self.shape[-map.weight_dim :][map.sides[1]]
            r = self._signs(num_examples, side_in, size)
            noise = map(input * map.align_signs(r, input, axis).to(input.dtype), self.noise, fused)
        size = self.shape[-map.weight_dim :][map.sides[0]]
        s = self._signs(num_examples, side_out, size)
        s = map.align_signs(s, noise, axis).to(noise.dtype)
        output = torch.addcmul(output, noise, s)
        if sample is not None and fused is None:
            output = output + sample.bias_noise(map, input, output, samples)
        return output

    def bias_noise(self, map: LinearMap, input: Tensor, output: Tensor, samples: int) -> Tensor:
        num_examples, axis = map.examples(input, samples)
        signs = self._signs(num_examples, 0, self.shape[-1])
        return map.align_bias(self.noise) * map.align_signs(signs, output, axis).to(output.dtype)

    def _signs(self, num_examples: int, side: int, size: int) -> Tensor:
        return self.signs(num_examples, side, lambda: random_signs(num_examples, size, self.loc))

    def _look_up(self, map: Lookup, index: Tensor, num_examples: int) -> Tensor:
        noise = self._noise.look_up(map, index)
        # Signs of the columns are enough to decorrelate examples, so those of the many rows are
        # all 1, unless the weight has been applied to an input that is not an index.
        signs = self.signs(num_examples, 0, lambda: (self.loc.new_ones(1, 1), None))
        if len(signs) == 1 and signs.shape[1] == 1:
            return noise
        columns = index.reshape(num_examples, -1).long()
        return noise * signs.gather(1, columns).view(*index.shape, 1)
