"""Batches of data, epoch after epoch, which go on in the middle of one where they stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, DistributedSampler

from .._tensors import as_tensor, map_tensors
from .._validation import is_count
from . import _rng
from ._loaders import generators, num_data, samplers


def batches(
    data: Any,
    batch_size: int | None = None,
    *,
    shuffle: bool = True,
    dtype: torch.dtype = torch.float,
    name: str = "data",
) -> Batches:
    """Batches of a DataLoader, or of a tuple or dictionary of tensors.

    Args:
        data: see :func:`~pyro_bnn.fit`.
        batch_size: number of rows of a batch of tensors, 128 by default.
        shuffle: whether to shuffle the rows of tensors in each epoch.
        dtype: that of tensors which are made of arrays of real numbers.
        name: that of the argument, for errors.

    Raises:
        TypeError: if ``data`` are none of these.
        ValueError: if tensors have different numbers of rows, or ``batch_size`` is not positive or
            given with a DataLoader; if the number of a loader's data or batches is unknown.
    """
    if isinstance(data, DataLoader):
        if batch_size is not None:
            raise ValueError(
                f"`batch_size` (={batch_size}) is that of the DataLoader, which has its own: leave "
                "it out"
            )
        return LoaderBatches(data, name)
    if not isinstance(data, (tuple, list, Mapping)):
        raise TypeError(
            f"`{name}` (={type(data).__name__}) must be a tuple `(x, y)` of tensors, a dictionary "
            "of them, or a DataLoader"
        )
    size = 128 if batch_size is None else batch_size
    return TensorBatches(_as_tensors(data, dtype, name), size, shuffle, name)


class Batches:
    """Base class: the batches of the rest of an epoch, on each call of :meth:`epoch`."""

    num_data: int | None  #: None if it is unknown
    is_part = False  #: whether other ranks have the rest of each batch
    weight = 1.0  #: of the likelihood of the present batch

    def __init__(self) -> None:
        self.num_epochs = 0  # finished
        self.position = 0  # in the current epoch

    def __len__(self) -> int:
        raise NotImplementedError

    def epoch(self) -> Iterator[Any]:
        for batch in self._rest():
            self.position += 1  # before it is used, so that what is saved then is right
            yield batch
        self.position = 0
        self.num_epochs += 1

    def weighted(self) -> Iterator[tuple[Any, float]]:
        """The rest of an epoch, with the weight of each batch."""
        for batch in self.epoch():
            yield batch, self.weight

    def first(self) -> Any:
        """A batch to try things with, which leaves random numbers as they are."""
        raise NotImplementedError

    def _rest(self) -> Iterator[Any]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"num_epochs": self.num_epochs, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class TensorBatches(Batches):
    """Shuffled rows of tensors, indexed without a DataLoader."""

    def __init__(
        self, data: Any, batch_size: int, shuffle: bool = True, name: str = "data"
    ) -> None:
        super().__init__()
        if not is_count(batch_size):
            raise ValueError(f"`batch_size` (={batch_size}) must be a positive integer")
        self.data = data
        rows: list[int] = []
        map_tensors(lambda x: rows.append(len(x) if x.dim() else 0), self.data)
        if not rows or len(set(rows)) > 1 or rows[0] == 0:
            raise ValueError(
                f"`{name}` has tensors of {rows} rows: give each the same number, at least one"
            )
        self.num_data = self.num_rows = rows[0]
        self.batch_size, self.shuffle = min(int(batch_size), rows[0]), shuffle
        self.order = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def first(self) -> Any:
        return self._rows(slice(0, self.batch_size))

    def all_rows(self) -> Iterator[Any]:
        """All rows in batches of the same size, the last of which has some rows again."""
        for i in range(len(self)):
            end = min((i + 1) * self.batch_size, self.num_rows)
            rows = slice(end - self.batch_size, end)
            yield map_tensors(lambda x: x[rows], self.data)  # noqa: B023

    def _rest(self) -> Iterator[Any]:
        if len(self) == 1:
            if self.position == 0:
                yield self.data
            return
        if self.position == 0:
            self.order = self._new_order()
        while self.position < len(self):
            start = self.position * self.batch_size
            yield self._rows(self.order[start : start + self.batch_size])

    def _new_order(self) -> Tensor:
        return (torch.randperm if self.shuffle else torch.arange)(self.num_rows)

    def _rows(self, index: Tensor | slice) -> Any:
        if isinstance(index, slice):
            return map_tensors(lambda x: x[index], self.data)
        return map_tensors(lambda x: x[index.to(x.device, non_blocking=True)], self.data)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"order": self.order}


class LoaderBatches(Batches):
    """The batches of a DataLoader, which draws its order when an epoch starts."""

    def __init__(self, loader: DataLoader, name: str = "data") -> None:
        super().__init__()
        self.loader, self.name = loader, name
        self.num_data = num_data(loader)
        self.start: dict[str, Any] = {}  # generators at the start of the epoch

    def __len__(self) -> int:
        return len(self.loader)

    def first(self) -> Any:
        states = [generator.get_state() for generator in generators(self.loader)]
        with _rng.preserved():
            batch = next(self._iterator(), None)
        for generator, state in zip(generators(self.loader), states, strict=True):
            generator.set_state(state)
        if batch is None:
            raise ValueError(f"`{self.name}` is a DataLoader without batches: give it data")
        return batch

    def _rest(self) -> Iterator[Any]:
        if self.position == 0:
            own = [generator.get_state() for generator in generators(self.loader)]
            self.start = {"all": _rng.get_state(), "own": own}
            yield from self._iterator()
            return
        now = _rng.get_state()
        _rng.set_state(self.start["all"])
        for generator, state in zip(generators(self.loader), self.start["own"], strict=True):
            generator.set_state(state)
        iterator = self._iterator()
        _rng.set_state(now)
        yield from iterator

    def _iterator(self) -> Iterator[Any]:
        """The batches from the position on, in an order that is drawn here."""
        if isinstance(sampler := samplers(self.loader)[-1], DistributedSampler):
            sampler.set_epoch(self.num_epochs)
        iterator = iter(self.loader)
        for _ in range(self.position):
            next(iterator)
        return iterator

    def state_dict(self) -> dict[str, Any]:
        own = [generator.get_state() for generator in generators(self.loader)]
        return super().state_dict() | {"start": self.start, "own": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({name: x for name, x in state.items() if name != "own"})
        for generator, value in zip(generators(self.loader), state["own"], strict=True):
            generator.set_state(value)


def _as_tensors(data: Any, dtype: torch.dtype, name: str) -> Any:
    if isinstance(data, Mapping):
        return {key: _as_tensors(x, dtype, name) for key, x in data.items()}
    if isinstance(data, (tuple, list)) and not isinstance(data, PackedSequence):
        return tuple(_as_tensors(x, dtype, name) for x in data)
    if isinstance(data, Tensor):
        return data
    if isinstance(data, np.ndarray):
        made = as_tensor(data)
        return made.to(dtype) if made.is_floating_point() else made
    raise TypeError(f"`{name}` has a {type(data).__name__} in it: give tensors or arrays")
