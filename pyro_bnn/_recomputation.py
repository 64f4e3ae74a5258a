"""Recomputation of activations in the backward pass, as by ``torch.utils.checkpoint``.

It runs a part of a network again, with nothing but its arguments and the random numbers that it
started from. What a call keeps beside these, its draws, has to be what it was.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ._torch import (
    backward_id,
    disable_current_modes,
    operations_are_counted,
    saves_are_watched,
)


def is_recomputing() -> bool:
    """Whether a backward pass is running, in which nothing is computed for the first time."""
    return not torch.compiler.is_compiling() and backward_id() != -1


def again(x: Tensor) -> Tensor:
    """A tensor from outside of what is recomputed, for use in there.

    Recomputation with reentrance has a backward pass of its own, which would free the graph of
    ``x`` for the pass around it; here, that graph is kept.
    """
    if not is_recomputing() or type(x) is not Tensor or x.grad_fn is None:
        return x
    leaf = x.detach().requires_grad_()
    leaf.register_hook(lambda grad: torch.autograd.backward(x, grad, retain_graph=True))
    return leaf


def drawn(known: Tensor | None, draw: Callable[[], Tensor]) -> Tensor:
    """Random numbers, which are drawn unless they are known."""
    if known is not None:
        return in_step(known, draw)
    with unseen():
        return draw()


def in_step(known: Tensor, draw: Callable[[], Tensor]) -> Tensor:
    """Random numbers that are known, for which the generator is to move on as it did before.

    It does so only where they were drawn at this point: what comes later, as dropout, then
    finds the generator in the same state.
    """
    if not is_recomputing() or known.device.type not in ("cpu", "cuda"):
        return known
    generator: Any = torch.cuda if known.is_cuda else torch
    where = (known.device,) if known.is_cuda else ()
    state = generator.get_rng_state(*where)
    with torch.no_grad(), unseen():
        same = torch.equal(draw(), known)
    if not same:
        generator.set_rng_state(state, *where)
    return known


def unseen() -> AbstractContextManager[Any]:
    """A context for what is computed once and kept, whoever asks first.

    Recomputation without reentrance counts the tensors that are saved, and where it is selective
    the operations, too, which would be fewer the second time.
    """
    if torch.compiler.is_compiling() or not saves_are_watched():
        return nullcontext()
    hooks = saved_tensors_hooks(_same, _same)
    return _unseen_by_both(hooks) if operations_are_counted() else hooks


@contextmanager
def _unseen_by_both(hooks: AbstractContextManager[Any]) -> Iterator[None]:
    with hooks, disable_current_modes():
        yield


def _same(x: Tensor) -> Tensor:
    return x


class Call:
    """The values of sites in one run of a network, while anything else keeps them."""

    def __init__(self) -> None:
        self._values: dict[str, weakref.ref[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        self._values[name] = weakref.ref(value)

    def __getitem__(self, name: str) -> Tensor | None:
        value = self._values.get(name)
        return None if value is None else value()

    @property
    def is_alive(self) -> bool:
        # All of them, since reference cycles in a trace of the past may keep some a while.
        return all(value() is not None for value in self._values.values())


class _Values(list[Tensor]):
    """A list that weak references may be to."""


class _Current(threading.local):
    is_dry = False
    values: Callable[[], _Values | None] = staticmethod(lambda: None)


_CURRENT = _Current()


def is_recorded() -> bool:
    """Whether what runs now may be recomputed later."""
    return not _CURRENT.is_dry and not is_recomputing()


@contextmanager
def unrecorded() -> Iterator[None]:
    """For runs of a model that no backward pass follows."""
    before, _CURRENT.is_dry = _CURRENT.is_dry, True
    try:
        yield
    finally:
        _CURRENT.is_dry = before


def wait_for_backward(loss: Tensor, values: Iterable[Tensor]) -> None:
    """Keeps the values of sites for as long as the loss that they led to.

    Of several losses in one backward pass, the graph of the last is gone through first, down to
    its end, so that a recomputation knows which it is for.
    """
    kept = _Values(values)

    def begin(grad: Tensor) -> None:
        _CURRENT.values = weakref.ref(kept)

    loss.register_hook(begin)


def recalled(calls: list[Call], name: str) -> Tensor | None:
    """The value of a site in the call that is recomputed; None if that is not known.

    Raises:
        ValueError: if it may be one of several calls.
    """
    alive = [call for call in calls if call.is_alive]
    found = [value for call in alive if (value := call[name]) is not None]
    current = _CURRENT.values() or ()
    ids = {id(value) for value in current}
    found = [value for value in found if id(value) in ids] or found
    if len({id(value) for value in found}) > 1:
        raise ValueError(
            f"the activations of a network are recomputed, and `{name}` has had several values in "
            "runs whose losses still wait for a backward pass, or are kept after it: take the loss "
            "from `TraceKL_ELBO`, and `loss.item()` to keep"
        )
    return again(found[0]) if found else None
