"""Checkpoints: the state of a run in one file, written at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import _rng
from ._state import adapters, check, plain

_VERSION = 1


def save(path: str | os.PathLike, *objects: Any, **named: Any) -> None:
    """Saves the state of a training run, such that :func:`resume` goes on where it was.

    The file holds tensors and plain data only (``torch.load(path, weights_only=True)`` reads it),
    and the states of the random number generators of torch (on all devices), Python and NumPy. It
    is written beside ``path`` and moved there when it is complete, so that a process that is killed
    leaves the old one whole.

    Args:
        path: the file, which is replaced if it exists.
        objects, named: what is to be saved, by position or name:

            - whatever has ``state_dict()`` and ``load_state_dict()``: models, guides, ELBO modules,
              :class:`~pyro_bnn.compat.Standalone`, optimizers, schedulers,
              :class:`~pyro_bnn.infer.KLWarmup`, gradient scalers;
            - an ``SVI``, for its model, guide and optimizer, or an optimizer of ``pyro.optim``,
              with the parameters that only Pyro's store holds;
            - a ``torch.Generator``;
            - tensors and plain data (numbers, strings, lists, dictionaries of them), which
              :func:`resume` returns.

    Raises:
        TypeError: if something is none of these, nothing being written.

    Example:
        >>> import tempfile
        >>> from pyro_bnn import resume, save
        >>> net = BayesianLinear(3, 2)
        >>> guide = AutoLRT(net)
        >>> optimizer = torch.optim.Adam(guide.parameters())
        >>> path = tempfile.mkdtemp() + "/run.pt"
        >>> save(path, net=net, guide=guide, optimizer=optimizer, step=7)
        >>> resume(path, net=net, guide=guide, optimizer=optimizer)
        {'step': 7}
    """
    content: dict[str, Any] = {"version": _VERSION, "kinds": {}, "states": {}, "values": {}}
    given, values = adapters(_by_name(objects, named))
    for name, adapter in given.items():
        content["kinds"][name] = adapter.kind()
        content["states"][name] = plain(adapter.state(), name)
    content["values"] = plain(values, "")
    _write(Path(path), content | {"rng": _rng.get_state(), "rank": _rank()})


def resume(path: str | os.PathLike, *objects: Any, **named: Any) -> dict[str, Any]:
    """Loads the state of a training run, which then goes on as if it had never stopped.

    All is checked before anything changes. The random number generators continue where they were,
    so that the steps that follow are those of the uninterrupted run, bit for bit.

    Args:
        path: a file that :func:`save` has written.
        objects, named: as for :func:`save`, made by the same code. A guide need not have been
            called yet. Plain data that are given must be equal to those saved.

    Returns:
        The plain data that were saved, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or one of another architecture, posterior, dtype,
            optimizer or other data than given: what differs is named, and nothing has changed. The
            same if an object that was saved is not given, or the other way round.
    """
    content = _read(Path(path))
    given, values = adapters(_by_name(objects, named))
    differences = _missing(content["states"], given)
    for name, adapter in given.items():
        if name in content["states"]:
            kind, state = content["kinds"][name], content["states"][name]
            differences += [f"`{name}`: {text}" for text in adapter.differences(kind, state)]
    known = {name: value for name, value in content["values"].items() if name in values}
    differences += check(known, plain(values, ""))
    if differences:
        shown = "; ".join(differences[:4]) + ("; ..." if len(differences) > 4 else "")
        raise ValueError(
            f"the checkpoint {str(path)!r} is of another run: {shown}. Make the objects as they "
            "were made for it, or start anew with another file. Nothing has been changed"
        )
    for name, adapter in given.items():
        adapter.load(content["states"][name])
    _rng.set_state(content["rng"])
    _rng.part(_rank() - content.get("rank", 0))
    return content["values"]


def _rank() -> int:
    """That of this process in torch.distributed, whose random numbers are its own."""
    is_one_of_many = dist.is_available() and dist.is_initialized()
    return dist.get_rank() if is_one_of_many else 0


def _by_name(objects: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(objects)} | named


def _missing(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    lacks = [name for name in saved if name not in given]
    more = [name for name in given if name not in saved]
    return [f"it has a state of `{n}`, which is not given" for n in lacks] + [
        f"it has no state of `{n}`" for n in more
    ]


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # there is no telling what torch raises of other files' bytes
            message = f"{str(path)!r} is no checkpoint that can be read: {error!r}"
            raise ValueError(message) from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"{str(path)!r} is no checkpoint of `pyro_bnn.save`")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    rank = content["rank"]  # several may save at once, to no good but without harm
    temporary = path.with_name(f"{path.name}.{rank}.tmp" if rank else f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the move itself is to survive a loss of power
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
