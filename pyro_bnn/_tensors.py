"""What a tensor is fit for."""

from __future__ import annotations

import torch
from torch import Tensor

from ._torch import FakeTensor


def has_values(x: Tensor) -> bool:
    """Whether the entries of a tensor can be looked at; meta and fake tensors have none."""
    return not (x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_compiling())


def wide(x: Tensor) -> Tensor:
    """``x`` in a format that has its square: float16 ends at 256 squared."""
    return x.float() if x.dtype is torch.float16 else x
