"""Gradients that are not finite raise before an optimizer can take them."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ._tensors import has_values
from ._torch import at_end_of_backward, flatten_dense_tensors, is_transformed

_MAX_SIZE = 1 << 13  # up to this size, the time of an operation is that of calling it


def alive(kind: type) -> list[Any]:
    """All instances of a class that there are; takes tens of milliseconds."""
    kinds = set(_subclasses(kind))
    objects = gc.get_objects()
    return list(compress(objects, map(kinds.__contains__, map(type, objects))))


def _subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield from _subclasses(subclass)


def check_gradients(
    result: Tensor, parameters: Mapping[str, Tensor], cause: Callable[[], str] = str
) -> None:
    """Lets every backward pass through a tensor end in a look at the gradients of parameters.

    Where one is not finite, all of them are dropped and a ValueError is raised, so that no
    optimizer makes a step. Gradients that a ``GradScaler`` has scaled are left to it, as it skips
    the steps itself.

    Args:
        result: a part of the loss.
        parameters: leaves, by the names that an error tells.
        cause: says what is known of the reason.
    """
    if not result.requires_grad or is_transformed() or not has_values(result):
        return

    def check() -> None:
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        if not _sum_is_finite(grads):
            _refuse(parameters, cause)

    # What DDP and FSDP finish by is queued later than ours: behind it, gradients are averages over
    # all ranks, which then find the same.
    result.register_hook(lambda grad: at_end_of_backward(lambda: at_end_of_backward(check)))


def _sum_is_finite(grads: list[Tensor]) -> bool:
    """Whether the sum of all entries is finite; it is not where an entry is not."""
    small: dict[Any, list[Tensor]] = defaultdict(list)
    totals = []
    for grad in grads:
        if grad.layout is torch.strided and grad.numel() <= _MAX_SIZE:
            small[grad.device, grad.dtype].append(grad)
        else:
            totals.append(grad.sum())
    totals += [flatten_dense_tensors(group).sum() for group in small.values()]
    if not totals:
        return True
    total = totals[0]
    for other in totals[1:]:
        total = total + other.to(total.device)
    return math.isfinite(total.item())


def _refuse(parameters: Mapping[str, Tensor], cause: Callable[[], str]) -> None:
    bad = [n for n, p in parameters.items() if p.grad is not None and not _is_finite(p.grad)]
    if not bad or any(scaler.is_enabled() for scaler in alive(torch.amp.GradScaler)):
        return
    bad = [name.replace("$$$", ".") for name in bad]  # as Pyro's store joins names
    for parameter in parameters.values():
        parameter.grad = None  # lest they be added to the next ones
    raise ValueError(
        f"the gradients of {bad} are not finite{cause()}, and were dropped; no parameter was "
        "changed. If the data are finite, look for roots, norms and logarithms at 0, and divisions "
        "by 0, in the model"
    )


def _is_finite(grad: Tensor) -> bool:
    values = grad if grad.layout is torch.strided else grad.coalesce().values()
    return bool(values.isfinite().all())
