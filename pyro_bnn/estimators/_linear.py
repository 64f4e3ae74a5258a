"""The linear map of torch for weights with leading sample dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map, for ordinary tensors; see :func:`pyro_bnn.estimators.linear`."""
    if input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"`input` must have {weight.shape[-1]} features in its last dimension, as the weight "
            f"of shape {tuple(weight.shape)} does, not {input.shape[-1]} (shape "
            f"{tuple(input.shape)})"
        )
    if weight.dim() == 2 and (bias is None or bias.dim() == 1):
        return F.linear(input, weight, bias)
    check_rows(input)
    if weight.dim() == 2:
        output = F.linear(input, weight)
    elif weight.dim() > 3 and weight.shape[-3] > 1:  # another weight for each row
        output = (weight @ input.unsqueeze(-1)).squeeze(-1)
    else:
        if weight.dim() > 3:
            weight = weight.squeeze(-3)
        output = input @ weight.mT
    return output if bias is None else output + row_bias(bias)


def row_bias(bias: Tensor) -> Tensor:
    """A bias that broadcasts with the output of :func:`plain_linear`."""
    return bias.unsqueeze(-2) if bias.dim() == 2 else bias


def check_rows(input: Tensor) -> None:
    if input.dim() < 2:
        raise ValueError(
            f"`input` (shape {tuple(input.shape)}) must have a dimension for rows where weights "
            "have sample dimensions: use `input.unsqueeze(0)`"
        )


def leading_shape(input: Tensor, samples: torch.Size) -> torch.Size:
    """Shape of the output of :func:`plain_linear` without its last dimension."""
    if not samples:
        return input.shape[:-1]
    check_rows(input)
    if len(samples) == 1:
        return torch.broadcast_shapes(input.shape[:-2], samples) + input.shape[-2:-1]
    return torch.broadcast_shapes(input.shape[:-1], samples)


def collapse(parameter: Tensor, event_dim: int) -> Tensor:
    """``parameter`` without the leading dimensions along which it only repeats."""
    while parameter.dim() > event_dim and (parameter.shape[0] == 1 or parameter.stride(0) == 0):
        parameter = parameter[0]
    return parameter
