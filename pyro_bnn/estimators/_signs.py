"""Random signs of channels, which make of one sample of a weight one for each example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recomputation import in_step
from .._torch import is_transformed

Pair = tuple[Tensor, Tensor | None]  # signs, and what they are of
_INT64 = -(1 << 63), (1 << 63) - 1


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
                    in_step(words, partial(_random_words, words.shape, words.device))
                return signs
        signs, words = make()
        self.drawn.append((number, side, signs, words))
        return signs


def random_signs(rows: int, columns: int, like: Tensor) -> Pair:
    """Independent signs, and the random integers that they are the bits of, which are far fewer."""
    if torch.compiler.is_exporting():  # how many words there are would be a condition of the graph
        signs = torch.randint(2, (rows, columns), device=like.device).mul(2).sub(1).to(like.dtype)
        return signs, None
    words = _random_words((-(-rows * columns // 64),), like.device)
    if like.is_cpu and not is_transformed():
        signs = F.embedding(words.view(torch.uint8).int(), _SIGNS_OF_BYTES).to(like.dtype)
    else:
        signs = _signs_of_bits(words, 64).to(like.dtype)
    return signs.flatten()[: rows * columns].view(rows, columns), words


def _random_words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(*_INT64, shape, device=device)


def _signs_of_bits(x: Tensor, number: int) -> Tensor:
    """1 where a bit of an integer is set, -1 where it is not; a row for each integer."""
    bits = (x.unsqueeze(-1) >> torch.arange(number, device=x.device)) & 1
    return bits.mul_(2).sub_(1)


# To look up is the faster way, where there is no compiler that makes one operation of the others.
_SIGNS_OF_BYTES = _signs_of_bits(torch.arange(256), 8).float()
