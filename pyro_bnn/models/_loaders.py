"""What a DataLoader tells of itself, and others made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

# What a DataLoader is made of, beside its data and their order.
_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def num_data(loader: DataLoader) -> int | None:
    """The number of data that the batches of a loader are drawn from, if that is known."""
    if isinstance(loader.dataset, IterableDataset) or not _gives_lists(loader):
        return None  # without lists of indices, an entry of the dataset may be a batch
    sampler = samplers(loader)[-1]
    if isinstance(sampler, SubsetRandomSampler):
        return len(sampler.indices)
    known = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
    return len(loader.dataset) if isinstance(sampler, known) else None  # type: ignore


def samplers(loader: DataLoader) -> list[Any]:
    """What gives a loader its indices, or lists of them, and what is inside of that."""
    # Of lists, `loader.sampler` tells nothing: beside a `batch_sampler` it is there, but not used.
    found: list[Any] = [loader.sampler if loader.batch_sampler is None else loader.batch_sampler]
    while isinstance(found[-1], BatchSampler):
        found.append(found[-1].sampler)
    return found


def _gives_lists(loader: DataLoader) -> bool:
    return loader.batch_sampler is not None or isinstance(loader.sampler, BatchSampler)


def generators(loader: DataLoader) -> list[torch.Generator]:
    """Those that the user gave to a loader and its samplers."""
    found = [getattr(owner, "generator", None) for owner in (loader, *samplers(loader))]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def of_parts(loader: DataLoader, sampler: Any) -> DataLoader:
    """A loader of the same data in the order of another sampler, of lists or single indices."""
    options = {name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)}
    return DataLoader(loader.dataset, **_sampled(loader, sampler), **options)


def of_indices(loader: DataLoader) -> DataLoader:
    """A loader of the indices themselves, which draws the same random numbers for their order."""
    options: dict[str, Any] = {"generator": loader.generator, "collate_fn": _same}
    return DataLoader(_Indices(), **_sampled(loader, samplers(loader)[0]), **options)


def _sampled(loader: DataLoader, sampler: Any) -> dict[str, Any]:
    if loader.batch_sampler is None:  # what the sampler gives is what the dataset is asked for
        return {"batch_size": None, "sampler": sampler}
    return {"batch_sampler": sampler}


class _Indices(Dataset):
    """Data that are their own indices."""

    def __getitem__(self, index: Any) -> Any:
        return index


def _same(value: Any) -> Any:
    return value
