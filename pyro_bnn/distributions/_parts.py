"""The tensors inside of distributions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Transform

Path = tuple[str | int, ...]


def children(obj: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(obj, (list, tuple)):
        yield from enumerate(obj)
    elif isinstance(obj, (Distribution, Transform)):
        # Transforms point back from their inverses, and keep their last value.
        yield from ((k, v) for k, v in vars(obj).items() if k not in ("_inv", "_cached_x_y"))


def tensors_of(obj: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    for key, child in children(obj):
        if isinstance(child, Tensor):
            yield (*path, key), child
        else:
            yield from tensors_of(child, (*path, key))


def replaced(obj: Any, tensors: dict[Path, Tensor]) -> Any:
    """A copy of ``obj`` with other tensors at the given paths."""
    inside: dict[str | int, dict[Path, Tensor]] = {}
    for (key, *rest), tensor in tensors.items():
        inside.setdefault(key, {})[tuple(rest)] = tensor
    old: Any = obj if isinstance(obj, (list, tuple)) else vars(obj)
    new: Any = {k: t[()] if () in t else replaced(old[k], t) for k, t in inside.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(new.get(i, child) for i, child in enumerate(obj))
    obj = copy.copy(obj)
    vars(obj).update(new)
    return obj


def detached(d: Distribution) -> Distribution:
    """A distribution of the same values, without what Pyro or autograd attached to them."""
    return replaced(d, {path: tensor.detach() for path, tensor in tensors_of(d)})
