"""Batches that ranks divide among them, in an order that all of them know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset, Sampler

from ._batches import Batches, LoaderBatches, TensorBatches
from ._loaders import of_indices, of_parts, samplers
from ._ranks import Ranks


def shared(given: Batches, ranks: Ranks, *, once: bool = False) -> Batches:
    """The parts of batches that are this rank's.

    A loader that has a ``DistributedSampler`` or an iterable dataset is used as it is: it is up to
    these what each rank sees.

    Args:
        given: the same on all ranks.
        ranks: those that share.
        once: whether no row may come twice, in which case a rank may have fewer batches.

    Raises:
        ValueError: if a loader cannot be shared as is asked.
    """
    if ranks.size == 1:
        return given
    if isinstance(given, TensorBatches):
        return SharedTensors(given, ranks, once)
    assert isinstance(given, LoaderBatches)
    sampler = samplers(given.loader)[-1]
    if isinstance(sampler, DistributedSampler):
        if once or ranks.whole:
            raise ValueError(
                "a DistributedSampler repeats data until all ranks have equally many, and gives "
                "each rank others: give validation data, and data of ranks that divide particles, "
                "in a DataLoader without one"
            )
        given.is_part = True
        return given
    if isinstance(given.loader.dataset, IterableDataset):
        return given
    return SharedLoader(given, ranks, once)


class SharedTensors(TensorBatches):
    """Rows of tensors that all ranks hold."""

    kind_of_state = "TensorBatches"  # of one process, which goes on from it, and back

    def __init__(self, given: TensorBatches, ranks: Ranks, once: bool) -> None:
        vars(self).update(vars(given))
        self.is_part = not ranks.whole
        self._ranks, self._once = ranks, once

    def first(self) -> Any:
        # Whoever has no row of it tries the first one.
        rows, _ = self._ranks.share(min(self.batch_size, self.num_rows))
        return self._rows(rows)

    def _rest(self) -> Iterator[Any]:
        if self.position == 0 and len(self) > 1:
            self.order = self._ranks.from_first(self._new_order)
        for i in range(self.position, len(self)):
            start, stop = i * self.batch_size, min((i + 1) * self.batch_size, self.num_rows)
            rows, self.weight = self._ranks.share(stop - start, once=self._once)
            if rows.start < rows.stop:
                yield self._rows(rows if len(self) == 1 else self.order[start:stop][rows])


class SharedLoader(LoaderBatches):
    """The batches of a DataLoader, each rank loading its part of each."""

    kind_of_state = "LoaderBatches"

    def __init__(self, given: LoaderBatches, ranks: Ranks, once: bool) -> None:
        vars(self).update(vars(given))
        self.is_part = not ranks.whole
        self._ranks, self._once = ranks, once
        self._sampler = _Given()
        self._indices, self._parts = of_indices(self.loader), of_parts(self.loader, self._sampler)

    def first(self) -> Any:
        once, self._once = self._once, False  # whoever has no row of it tries the first one
        try:
            return super().first()
        finally:
            self._once = once

    def _iterator(self) -> Iterator[Any]:
        order = self._ranks.from_first(lambda: list(self._indices))[self.position :]
        if any(not isinstance(index, (list, Tensor)) for index in order[:1]):
            raise ValueError(
                "`data` is a DataLoader whose sampler gives one datum at a time, which ranks "
                "cannot divide: give it a `batch_size`, or a sampler of lists"
            )
        shares = [self._ranks.share(len(index), once=self._once) for index in order]
        parts = zip(order, shares, strict=True)
        self._sampler.indices = [i[rows] for i, (rows, _) in parts if rows.start < rows.stop]
        weights = [weight for rows, weight in shares if rows.start < rows.stop]
        return self._weighted(iter(self._parts), weights)

    def _weighted(self, parts: Iterator[Any], weights: list[float]) -> Iterator[Any]:
        for part, weight in zip(parts, weights, strict=True):
            self.weight = weight
            yield part


class _Given(Sampler):
    """Indices that are given."""

    def __init__(self) -> None:
        self.indices: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
