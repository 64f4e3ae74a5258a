"""Draws of the weights, the same ones for every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..infer._samples import check_arguments, check_count, sampler
from ..infer._vectorized import Samples
from . import _rng

_NUM_SAMPLES = 100
_MAX_CHUNK, _MAX_KEPT = 2**22, 2**26  # elements of weights: 16 and 256 MiB in single precision


class Draws:
    """Draws of the weights, the same ones for all batches: kept if small, else drawn again.

    Args:
        guide: a guide, or samples by site name.
        num_samples: number of draws.

    Attributes:
        names: the sites that are drawn, known after :meth:`prepare`.
    """

    def __init__(self, guide: Any, num_samples: int | None) -> None:
        if isinstance(guide, Mapping):
            if num_samples is not None or not guide:
                raise ValueError(
                    f"`num_samples` (={num_samples}) is that of the samples given as `guide`, "
                    f"of the sites {list(guide)}: leave it out, and give one site at least"
                )
            check_arguments(guide, None, None, None)
            num_samples = len(next(iter(guide.values())))
        elif not callable(guide):
            raise TypeError(
                f"`guide` (={type(guide).__name__}) must be a guide, such as `AutoLRT(model)`, or "
                "a dictionary of samples by site name"
            )
        self.guide = guide
        self.num_samples = _NUM_SAMPLES if num_samples is None else num_samples
        check_count("num_samples", self.num_samples)
        self.names = list(guide) if isinstance(guide, Mapping) else []
        self._chunk = 0
        self._seed = int(torch.randint(2**62, ()))  # before a DataLoader draws its own
        self._kept: list[Samples] = [dict(guide)] if isinstance(guide, Mapping) else []
        self._keeps = True

    def prepare(self, args: Any, kwargs: Any) -> None:
        """Finds the sites of the guide, and how many draws to make at once."""
        if self.names:
            return
        with _rng.preserved():
            one = sampler(self.guide, args, kwargs)(1)
        size = max(1, sum(value.numel() for value in one.values()))
        self.names = list(one)
        self._chunk = min(self.num_samples, max(1, _MAX_CHUNK // size))
        self._keeps = size * self.num_samples <= _MAX_KEPT

    def chunks(self, args: Any, kwargs: Any) -> Iterator[Samples]:
        """The draws, some at a time; the same on each call."""
        if self._kept:
            yield from self._kept
            return
        draw = sampler(self.guide, args, kwargs)
        for start in range(0, self.num_samples, self._chunk):
            with _rng.preserved():
                torch.manual_seed(self._seed + start)
                samples = draw(min(self._chunk, self.num_samples - start))
            if self._keeps:
                self._kept.append(samples)
            yield samples
