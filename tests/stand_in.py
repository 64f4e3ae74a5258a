"""A stand-in for a GPU: tensors on a device of their own, whose values the CPU computes.

As on a GPU, operations refuse tensors of several devices, and the host waits where it reads a
value. Importing this registers the device ``gpu`` with torch for good: do it in a process apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pyro_bnn.estimators import _draw

_setup_privateuseone_for_python_backend("gpu")
DEVICE = torch.device("gpu:0")

aten = torch.ops.aten
# Whose results, or the shapes of these, depend on values: the host has to know them.
_READ = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount),
    aten.repeat_interleave,
}
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class OnGPU(torch.Tensor):
    """A tensor of the device, whose values are in ``held``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGPU:
        new = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        new.held = held
        return new

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, *args, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl


# Torch makes no other subclass of these either.
_draw.FakeTensor = (_draw.FakeTensor, OnGPU)  # type: ignore[misc, assignment]


class Watch:
    """What happens in a step.

    Attributes:
        waits: operations that the host waits for.
        on_cpu: functions that have returned numbers on the CPU.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.on_cpu: list[str] = []


_watch = Watch()


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            is_number = isinstance(x, torch.Tensor) and x.is_floating_point()
            if is_number and x.numel() and x.device.type == "cpu":
                _watch.on_cpu.append(getattr(func, "__name__", str(func)))
        return result


@contextmanager
def watched() -> Iterator[Watch]:
    """Tells of the steps inside."""
    global _watch
    _watch = Watch()
    with _Functions():
        yield _watch


def _compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on the values, whose results are on the device if its tensors are."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [isinstance(x, OnGPU) for x in given]
    device = kwargs.get("device")
    is_ours = any(ours) if device is None else torch.device(device).type == DEVICE.type
    if _waits(func.overloadpacket, args, kwargs, ours, is_ours):
        _watch.waits.append(str(func))
    with torch._C.DisableTorchFunction():
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not is_ours:
        return result
    if func.overloadpacket is aten.copy_:  # from one device to the other, perhaps
        return args[0]
    same = {id(x.held): x for x in given if isinstance(x, OnGPU)} if func._schema.is_mutable else {}

    def on_gpu(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return same[id(x)] if id(x) in same else OnGPU(x)
        return x

    return tree_map(on_gpu, result)


def _waits(packet: Any, args: Any, kwargs: Any, ours: list[bool], is_ours: bool) -> bool:
    """Whether the host waits for an operation.

    Raises:
        RuntimeError: if it has numbers on several devices, as GPUs do.
    """
    if packet in (aten.copy_, aten._to_copy):
        source, target = (ours[1], ours[0]) if packet is aten.copy_ else (ours[0], is_ours)
        is_async = kwargs.get("non_blocking") or args[2:] == (True,)
        return source != target and not (is_async and target)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if any(ours) and any(x.dim() and not isinstance(x, OnGPU) for x in tensors):
        raise RuntimeError(f"{packet}: Expected all tensors to be on the same device")
    masks = args[1] if packet in _INDEXED else ()
    is_masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in masks)
    return any(ours) and (packet in _READ or is_masked)


def _held(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.held if isinstance(x, OnGPU) else x


_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(_compute, "PrivateUse1")  # for functions of no tensor, such as `torch.empty`
