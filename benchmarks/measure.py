"""Measures time, in runs that alternate, and memory."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty

Step = Callable[[], object]

WARM_UP = 3
MIN_RUNS, MAX_RUNS = 7, 101


@dataclass(frozen=True)
class Times:
    """The median and the quartiles of the times of some runs, in milliseconds."""

    median: float
    lower: float
    upper: float
    runs: int


def interleaved(
    steps: dict[str, Step], *, runs: int | None = None, seconds: float = 30.0
) -> dict[str, Times]:
    """The times of steps, by name: run i of each is before run i + 1 of any.

    A run is two steps, of which the second is timed: as in training, a step finds its own code and
    data in the caches, not those of another library. Each step has a parameter store of its own in
    Pyro, since names of parameters repeat.

    Args:
        steps: what to measure.
        runs: how many of each; by default an odd number that takes about ``seconds`` in all.
    """
    stores: dict[str, Any] = {name: {"params": {}, "constraints": {}} for name in steps}

    def run() -> dict[str, float]:
        times = {}
        for name, step in steps.items():
            with pyro.get_param_store().scope(stores[name]):
                step()
                times[name] = _milliseconds(step)
        return times

    warm_up = [run() for _ in range(WARM_UP)]
    if not steps:
        return {}
    if runs is None:
        affordable = int(0.5e3 * seconds / sum(warm_up[-1].values()))
        runs = min(max(affordable, MIN_RUNS), MAX_RUNS) | 1
    rounds = [run() for _ in range(runs)]
    return {name: _summary([times[name] for times in rounds]) for name in steps}


def peak_memory(build: Callable[[], Step], device: str, runs: int = 2) -> int:
    """The largest number of bytes that tensors take while a step is built and run.

    On a CPU torch counts only what is allocated under its profiler, hence the building inside.
    Optimizers make their state in the first run.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _build_and_run(build, runs)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _build_and_run(build, runs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before


def _build_and_run(build: Callable[[], Step], runs: int) -> None:
    step = build()
    for _ in range(runs):
        step()


def _milliseconds(step: Step) -> float:
    _synchronize()
    start = time.perf_counter()
    step()
    _synchronize()
    return 1e3 * (time.perf_counter() - start)


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _summary(times: list[float]) -> Times:
    lower, median, upper = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return Times(median, lower, upper, len(times))
