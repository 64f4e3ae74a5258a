"""Random signs from the bits of random integers, of which there are far fewer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import is_exporting
from ._switch import is_plain

_INT64 = -(1 << 63), (1 << 63) - 1


def random_signs(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Independent signs, and the random integers that they are the bits of."""
    if is_exporting():  # how many words there are would be a condition of the graph
        signs = torch.randint(2, (rows, columns), device=like.device).mul(2).sub(1).to(like.dtype)
        return signs, None
    words = random_words((-(-rows * columns // 64),), like.device)
    if like.is_cpu and not is_plain():
        signs = F.embedding(words.view(torch.uint8).int(), _SIGNS_OF_BYTES).to(like.dtype)
    else:
        signs = _signs_of_bits(words, 64).to(like.dtype)
    return signs.flatten()[: rows * columns].view(rows, columns), words


def random_words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(*_INT64, shape, device=device)


def _signs_of_bits(x: Tensor, number: int) -> Tensor:
    """1 where a bit of an integer is set, -1 where it is not; a row for each integer."""
    bits = (x.unsqueeze(-1) >> torch.arange(number, device=x.device)) & 1
    return bits.mul_(2).sub_(1)


# To look up is the faster way, where there is no compiler that makes one operation of the others.
_SIGNS_OF_BYTES = _signs_of_bits(torch.arange(256), 8).float()
