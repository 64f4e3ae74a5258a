"""A prior inside a layer: its parameters are the layer's buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import Distribution, Transform

from .._axes import Axes

Rule = Callable[[torch.Size, int], Distribution]
Path = tuple[str | int, ...]


class Prior(PyroModule):
    """The prior of one weight tensor, one event of the weight's shape.

    The tensors of the given distribution, however deep inside, become buffers (those that are
    ``learnable``, parameters), so that they move, convert and are saved with the layer.

    Args:
        prior: a distribution that broadcasts to the weight, or a rule that makes one.
        weight: gives shape, dtype and device.
        fan_in: number of inputs of the weight, for rules.
        name: what errors call the argument.
        initial: where posteriors start by default, the value that a converted network had.
        axes: which dimensions of the weight count its inputs and its outputs, for rules with a
            method ``by_axes``; by default, those of a linear layer.

    Attributes:
        meets_both_sides: whether the weight is used both as it is and transposed, as that of an
            embedding and the decoder tied to it.

    Raises:
        TypeError: if ``prior`` is neither a distribution nor a rule that returns one.
        ValueError: if it does not broadcast to the shape of the weight.
    """

    initial: Tensor | None

    def __init__(
        self,
        prior: Distribution | Rule,
        weight: Tensor,
        fan_in: int,
        name: str,
        initial: Tensor | None = None,
        axes: Axes | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("initial", initial, persistent=False)
        self.meets_both_sides = False
        made = prior
        if not isinstance(prior, Distribution) and callable(prior):
            by_axes = getattr(prior, "by_axes", None)
            if by_axes is None:
                made = prior(weight.shape, fan_in)
            else:
                made = by_axes(weight.shape, Axes.of_shape(weight.shape) if axes is None else axes)
        if not isinstance(made, Distribution):
            raise TypeError(
                f"`{name}` (={prior!r}) must be a distribution, or a rule such as "
                "`pyro_bnn.priors.Normal(0, 1)`"
            )
        self.shape = weight.shape
        _check_shape(made, weight.shape, name)
        self._template = copy.deepcopy(made)
        self._paths: dict[str, list[Path]] = {}
        self._register(getattr(prior, "learnable", ()), weight)
        self._bind()

    def forward(self) -> dist.TorchDistribution:
        """The prior, with event shape that of the weight."""
        if self._pyro_params:
            values = {name: getattr(self, name) for name in self._pyro_params}
            return self._expanded(self._rebuilt(values))
        assert self._bound is not None
        return self._bound

    def _register(self, learnable: tuple[str, ...], weight: Tensor) -> None:
        names: dict[int, str] = {}
        for path, tensor in _tensors(self._template):
            name = names.setdefault(id(tensor), "_".join(map(str, path)).lstrip("_"))
            self._paths.setdefault(name, []).append(path)
            if len(self._paths[name]) > 1:
                continue
            if tensor.is_floating_point():
                tensor = tensor.to(weight)
            tensor = tensor.detach().clone().contiguous()
            if name in learnable:
                constraint = self._template.arg_constraints.get(name, constraints.positive)
                if constraint is constraints.positive:
                    constraint = constraints.softplus_positive
                setattr(self, name, PyroParam(tensor, constraint))
            else:
                self.register_buffer(name, tensor)

    def _rebuilt(self, values: dict[str, Tensor]) -> Distribution:
        by_path = {path: value for name, value in values.items() for path in self._paths[name]}
        return _replaced(self._template, by_path)

    def _expanded(self, prior: Distribution) -> dist.TorchDistribution:
        event_dim = len(prior.event_shape)
        batch_dim = len(self.shape) - event_dim
        prior = prior.expand(self.shape[:batch_dim])
        if batch_dim == 0 and isinstance(prior, dist.TorchDistribution):
            return prior
        return dist.Independent(prior, batch_dim)

    def _bind(self) -> None:
        """Points the distribution at the buffers; again whenever these are other tensors."""
        buffers = {n: b for n, b in self._buffers.items() if n in self._paths and b is not None}
        self._template = self._rebuilt(buffers)
        self._bound = None if self._pyro_params else self._expanded(self._template)

    def _apply(self, *args: Any, **kwargs: Any) -> Prior:
        super()._apply(*args, **kwargs)
        self._bind()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._bind()

    def __getstate__(self) -> dict[str, Any]:
        return dict(super().__getstate__()) | {"_bound": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()


def _check_shape(prior: Distribution, shape: torch.Size, name: str) -> None:
    own = prior.batch_shape + prior.event_shape
    try:
        fits = torch.broadcast_shapes(own, shape) == shape
    except RuntimeError:
        fits = False
    event = prior.event_shape
    if not fits or shape[len(shape) - len(event) :] != event:
        raise ValueError(
            f"`{name}` has shape {tuple(own)}, of which {tuple(event)} is one event; it must "
            f"broadcast to the shape {tuple(shape)} of the weight, with an event of the same "
            "size: give it that shape or a scalar one"
        )


def _children(obj: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(obj, (list, tuple)):
        yield from enumerate(obj)
    elif isinstance(obj, (Distribution, Transform)):
        # Transforms point back from their inverses, and keep their last value.
        yield from ((k, v) for k, v in vars(obj).items() if k not in ("_inv", "_cached_x_y"))


def _tensors(obj: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    for key, child in _children(obj):
        if isinstance(child, Tensor):
            yield (*path, key), child
        else:
            yield from _tensors(child, (*path, key))


def _replaced(obj: Any, tensors: dict[Path, Tensor], path: Path = ()) -> Any:
    """A copy of ``obj`` with other tensors at the given paths."""
    new = {
        key: tensors[(*path, key)]
        if (*path, key) in tensors
        else _replaced(child, tensors, (*path, key))
        for key, child in _children(obj)
    }
    if isinstance(obj, (list, tuple)):
        return type(obj)(new.values()) if type(obj) in (list, tuple) else obj
    if isinstance(obj, (Distribution, Transform)):
        obj = copy.copy(obj)
        vars(obj).update(new)
    return obj
