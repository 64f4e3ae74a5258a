"""Random signs of channels, which make of one sample of a weight one for each example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .._recomputation import in_step, unseen
from ..kernels import random_words

Pair = tuple[Tensor, Tensor | None]  # signs, and what they are of


class Signs:
    """Random signs of the channels of a weight, drawn once for each number of examples."""

    def __init__(self) -> None:
        # A list, since a compiler makes constants of the keys of a dictionary. The last entries are
        # the random numbers that the signs are of.
        self.drawn: list[tuple[int, int, Tensor, Tensor | None]] = []

    def __call__(self, number: int, side: int, make: Callable[[], Pair]) -> Tensor:
        for known_number, known_side, signs, words in self.drawn:
            if known_side == side and known_number == number:
                if words is not None:
                    in_step(words, partial(random_words, words.shape, words.device))
                return signs
        with unseen():
            signs, words = make()
        self.drawn.append((number, side, signs, words))
        return signs
