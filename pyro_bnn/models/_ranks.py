"""The processes of torch.distributed that train together, each of which is a rank."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from . import _rng

_DIVIDED = ("data", "particles")


def together(divided: str | None) -> Ranks:
    """The processes that train together: those of torch.distributed, or this one alone.

    Under ``torchrun`` the process group is initialised unless the caller has done so.

    Args:
        divided: what the ranks divide, the rows of a batch (``"data"``) or the particles
            (``"particles"``); None for nothing, each rank being alone.
    """
    if divided not in (None, *_DIVIDED):
        raise ValueError(
            f"`ranks` (={divided!r}) says what processes divide: it must be 'data', 'particles' "
            "or None"
        )
    if divided is None or not dist.is_available():
        return Ranks()
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), whole=divided == "particles")


class Ranks:
    """This process among those that train together.

    Args:
        rank: its number, from 0.
        size: number of processes.
        whole: whether each has the whole of each batch, rather than a part.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, whole: bool = False) -> None:
        self.rank, self.size, self.whole = rank, size, whole
        self.device = torch.device("cpu")  # of tensors that are sent

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the function returns on rank 0, where alone it is called."""
        made = [make() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def total(self, *values: float) -> tuple[float, ...]:
        """The sums of numbers over all ranks."""
        if self.size == 1 or not values:  # gloo waits for ever where there is nothing to send
            return values
        numbers = torch.tensor(values, dtype=torch.double, device=self.device)
        dist.all_reduce(numbers)
        return tuple(numbers.tolist())

    def mean(self, *values: float) -> tuple[float, ...]:
        return tuple(value / self.size for value in self.total(*values))

    def any(self, flag: bool) -> bool:
        return self.total(flag)[0] > 0

    def all_or_none(self, exists: bool, path: str) -> bool:
        """Whether a file exists, which all ranks must see or none."""
        seen = self.total(exists)[0]
        if seen not in (0, self.size):
            raise ValueError(
                f"`checkpoint` (={path!r}) exists for {seen:.0f} of {self.size} processes: give a "
                "file that all of them can read"
            )
        return seen > 0

    def check_same(self, values: dict[str, Any]) -> None:
        """Raises a ValueError if the ranks have different values: they would wait for ever."""
        for rank, others in enumerate(self.gather(values)):
            for name, value in others.items():
                if value != values[name]:
                    raise ValueError(
                        f"`{name}` is {value} on rank {rank}, {values[name]} on rank {self.rank}: "
                        "call `fit` alike on all ranks"
                    )

    def share(self, num_rows: int, *, once: bool = False) -> tuple[slice, float]:
        """The rows of a batch that are this rank's, and the weight of their likelihood.

        With it, the mean over the ranks is the likelihood of the batch also where parts differ in
        size. If there are fewer rows than ranks, some have the same ones, or none if ``once``.
        """
        if self.whole and not once:
            return slice(0, num_rows), 1.0
        if num_rows < self.size and not once:
            row = self.rank % num_rows
            copies = len(range(row, self.size, num_rows))
            return slice(row, row + 1), self.size / (num_rows * copies)
        start, stop = (num_rows * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(start, stop), self.size * (stop - start) / num_rows

    def part_random_numbers(self, states: list[Any]) -> None:
        """Gives each rank random numbers of its own, however alike the user has seeded them.

        Args:
            states: those to go on with, if there is one for each rank.
        """
        if self.size == 1:
            return
        if len(states) == self.size:
            _rng.set_state(states[self.rank])
        else:
            _rng.set_state(self.from_first(_rng.get_state))
            _rng.part(self.rank)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Says what has happened where another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_backend(error):
                raise
            raise RuntimeError(
                f"rank {self.rank} has lost another one, which ended: its error is the cause. Then "
                "start all of them again; with `checkpoint` and `resume=True` they go on from the "
                "last checkpoint"
            ) from error


def _is_of_backend(error: RuntimeError) -> bool:
    """Torch has no common class for these errors."""
    words = ("gloo", "NCCL", "Connection")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
