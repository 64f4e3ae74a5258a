"""Torch's recurrent networks, for weights that are draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ._draw import RULES, apply_map
from ._functions import RECURRENT
from ._maps import Steps
from ._sampled import REMEDY

State: TypeAlias = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM, each with a row per example


_OPTIONS = ["hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional"]
_PADDED = ["input", *_OPTIONS, "batch_first"]
_PACKED = ["data", "batch_sizes", *_OPTIONS]


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``, whose weights may be draws.

    The input projections of all steps are one product; the recurrent one is computed step by
    step. Each weight is drawn once for the sequence.

    Args:
        function: one of the four.
        args, kwargs: its arguments, for padded or for packed sequences.

    Returns:
        The outputs of the last layer at all steps, and the final states.

    Raises:
        ValueError: if weights have sample dimensions.
    """
    if kwargs:
        names = _PACKED if {"data", "batch_sizes"} & kwargs.keys() else _PADDED
        args += tuple(kwargs[name] for name in names[len(args) :])
    # Packed sequences come as (data, batch_sizes, hx, ...), padded ones as (input, hx, ...).
    is_packed = isinstance(args[1 if function is torch.lstm else 2], Tensor)
    if is_packed:
        data, batch_sizes, hx, weights, has_biases, layers, dropout, train, both = args
        sizes = batch_sizes.tolist()
        index = torch.cat([torch.arange(size) for size in sizes])
        index = index.to(data.device, non_blocking=True)
        batch_first = False
    else:
        data, hx, weights, has_biases, layers, dropout, train, both, batch_first = args
        data = data.transpose(0, 1) if batch_first else data
        sizes, index = [data.shape[1]] * len(data), None
    states = tuple(zip(*hx, strict=True)) if function is torch.lstm else tuple((h,) for h in hx)
    directions = 2 if both else 1
    per_direction = len(weights) // (layers * directions)
    final: list[State] = []
    for layer in range(layers):
        if layer and dropout:
            data = F.dropout(data, dropout, train)
        outputs = []
        for direction in range(directions):
            i = layer * directions + direction
            own = weights[i * per_direction : (i + 1) * per_direction]
            cell = Cell(function, own, has_biases, Steps(sizes[0]))
            projected = cell.project(data, Steps(sizes[0], index))
            output, state = _one_direction(cell, projected, sizes, states[i], bool(direction))
            outputs.append(output)
            final.append(state)
        data = torch.cat(outputs, -1) if both else outputs[0]
    data = data.transpose(0, 1) if batch_first else data
    return data, *(torch.stack(s) for s in zip(*final, strict=True))


class Cell:
    """One layer of a recurrent network in one direction."""

    def __init__(
        self,
        function: Callable[..., Any],
        weights: Sequence[Tensor],
        has_biases: bool,
        steps: Steps,
    ) -> None:
        for weight, dim in zip(weights, (2, 2, 1, 1, 2) if has_biases else (2, 2, 2), strict=False):
            if weight.dim() > dim:
                raise ValueError(
                    "a weight of a recurrent layer has sample dimensions, as its shape "
                    f"{tuple(weight.shape)} shows. {REMEDY}"
                )
        self.weight_ih, self.weight_hh, *rest = weights
        self.bias_ih = rest[0] if has_biases else None
        self.bias_hh = rest[1] if has_biases else None
        self.weight_hr = rest[-1] if len(rest) % 2 else None
        self._steps = steps
        self._update: Callable[..., State] = getattr(self, "_" + function.__name__)

    def project(self, data: Tensor, steps: Steps) -> Tensor:
        return apply_map(steps, data, self.weight_ih, self.bias_ih)

    def __call__(self, projected: Tensor, state: State) -> State:
        recurrent = apply_map(self._steps, state[0], self.weight_hh, self.bias_hh)
        return self._update(projected, recurrent, *state)

    def _lstm(self, projected: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> State:
        i, f, g, o = (projected + recurrent).chunk(4, -1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        return (h if self.weight_hr is None else apply_map(self._steps, h, self.weight_hr)), c

    def _gru(self, projected: Tensor, recurrent: Tensor, h: Tensor) -> State:
        size = 2 * h.shape[-1]
        r, z = (projected[..., :size] + recurrent[..., :size]).sigmoid().chunk(2, -1)
        n = (projected[..., size:] + r * recurrent[..., size:]).tanh()
        return (n + z * (h - n),)

    def _rnn_tanh(self, projected: Tensor, recurrent: Tensor, h: Tensor) -> State:
        return ((projected + recurrent).tanh(),)

    def _rnn_relu(self, projected: Tensor, recurrent: Tensor, h: Tensor) -> State:
        return ((projected + recurrent).relu(),)


def _one_direction(
    cell: Cell, projected: Tensor, sizes: list[int], initial: State, reverse: bool
) -> tuple[Tensor, State]:
    """Outputs at all steps, and the state after the last step of each sequence.

    Sequences are sorted by length: ``sizes`` tells how many of them reach each step.
    """
    is_packed = projected.dim() == 2
    steps = projected.split(sizes) if is_packed else projected.unbind()
    outputs: list[Tensor] = []
    ended: list[State] = []
    state = tuple(s[: sizes[-1]] for s in initial) if reverse else initial
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        size = sizes[t]
        if size < len(state[0]):
            ended.append(tuple(s[size:] for s in state))
            state = tuple(s[:size] for s in state)
        elif size > len(state[0]):
            state = tuple(
                torch.cat([s, i[len(s) : size]]) for s, i in zip(state, initial, strict=True)
            )
        state = cell(steps[t], state)
        outputs.append(state[0])
    if reverse:
        outputs.reverse()
    state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return (torch.cat(outputs) if is_packed else torch.stack(outputs)), state


RULES.update({function: partial(run, function) for function in RECURRENT})
