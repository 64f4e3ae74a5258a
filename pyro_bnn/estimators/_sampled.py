"""Outputs with sample dimensions, which not every module of torch can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import DisableTorchFunctionSubclass

REMEDY = (
    "What cannot take sample dimensions, as pooling or a sequence, needs a run for each: predict "
    "by `pyro_bnn.infer.Predictive`, train without `vectorize_particles`"
)
_MIN_DIM = 4  # modules that count the dimensions of their input ask for three or more


class Sampled(Tensor):
    """An image or sequence with sample dimensions; says so where a function cannot take them.

    Results are ordinary tensors once they have few dimensions.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(cls, t) for t in types):
            return NotImplemented  # a draw knows better
        call = _pad if func is F.pad else func
        try:
            with DisableTorchFunctionSubclass():
                result = call(*args, **(kwargs or {}))
        except RuntimeError as error:
            shapes = [tuple(x.shape) for x in args if isinstance(x, Sampled)]
            raise ValueError(
                f"`{getattr(func, '__name__', func)}` failed on inputs of shape {shapes}, whose "
                f"first dimensions are samples of the weights ({error}). {REMEDY}"
            ) from error
        if func in _RESHAPES:
            return result.as_subclass(cls)
        return sampled(result) if type(result) is Tensor else result


def sampled(x: Tensor) -> Tensor:
    """``x``, marked as having sample dimensions if some function might stumble over them."""
    return x.as_subclass(Sampled) if x.dim() >= _MIN_DIM and x.is_floating_point() else x


def unsampled(x: Tensor, samples: int, event_dim: int) -> Tensor:
    """``x`` as an ordinary tensor, for a map whose weight has as many sample dimensions.

    Raises:
        ValueError: if dimensions of ``x`` that are no samples would be taken for such.
    """
    if not isinstance(x, Sampled):
        return x
    leading = samples - 1 if samples > 1 else samples
    if samples and x.dim() > leading + 1 + event_dim:
        raise ValueError(
            f"an input of shape {tuple(x.shape)} has dimensions between those of its samples and "
            f"its rows, as sequences have. {REMEDY}"
        )
    return x.as_subclass(Tensor)


def _pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """``F.pad``, which reflects and repeats only what has no sample dimensions."""
    rows = input.shape[: input.dim() - len(pad) // 2 - 1]
    return F.pad(input.flatten(0, len(rows) - 1), pad, mode, value).unflatten(0, rows)


_RESHAPES = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}
