"""A prior inside a layer: its parameters are the layer's buffers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import Distribution

from .._axes import Axes
from .._parameters import read
from .._recomputation import unseen
from .._tensors import has_values
from .._validation import size_mismatch
from ..distributions._parts import Path, children, replaced, tensors_of

Rule = Callable[[torch.Size, int], Distribution]


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
        is_also_transposed: whether the weight is used both as it is and transposed, as that of an
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
        self.is_also_transposed = False
        is_rule = not isinstance(prior, Distribution)
        made: Any = _by_rule(prior, weight, fan_in, name, axes) if is_rule else prior
        self.shape = weight.shape
        _check_shape(made, weight.shape, name)
        self._template: Any = copy.deepcopy(made)
        self._paths: dict[str, list[Path]] = {}
        self._register(getattr(prior, "learnable", ()), weight)
        self._bind()
        problem = next(_problems(self._template), None)
        if problem:
            raise ValueError(f"`{name}` (={prior!r}) has {problem}")

    def forward(self) -> dist.TorchDistribution:
        """The prior, with event shape that of the weight."""
        if self._pyro_params:
            with unseen():  # by a second use of the weight, for which Pyro asks no prior
                values = {name: read(self, name) for name in self._pyro_params}
                return self._expanded(self._rebuilt(values))
        assert self._bound is not None
        return self._bound

    def _register(self, learnable: tuple[str, ...], weight: Tensor) -> None:
        names: dict[int, str] = {}
        for path, tensor in tensors_of(self._template):
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
        return replaced(self._template, by_path)

    def _expanded(self, prior: Distribution) -> dist.TorchDistribution:
        event_dim = len(prior.event_shape)
        batch_dim = len(self.shape) - event_dim
        if prior.batch_shape != self.shape[:batch_dim]:
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

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        values = {
            name: state_dict[prefix + name].to(buffer)
            for name, buffer in self._buffers.items()
            if name in self._paths
            and buffer is not None
            and size_mismatch(name, buffer, state_dict.get(prefix + name)) is None
        }
        problem = next(_problems(self._rebuilt(values)), None)
        if problem:
            *_, errors = args
            errors.append(f"the prior `{prefix.rstrip('.')}` was saved with {problem}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._bind()

    def __getstate__(self) -> dict[str, Any]:
        return dict(super().__getstate__()) | {"_bound": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()


def _by_rule(rule: Any, weight: Tensor, fan_in: int, name: str, axes: Axes | None) -> Distribution:
    remedy = "a distribution, or a rule such as `pyro_bnn.priors.Normal(0, 1)`"
    if isinstance(rule, type):
        raise TypeError(f"`{name}` (={rule!r}) is a class: give an instance, {remedy}")
    if not callable(rule):
        raise TypeError(f"`{name}` (={rule!r}) must be {remedy}")
    args: tuple[Any, ...] = (weight.shape, fan_in)
    if hasattr(rule, "by_axes"):
        args = (*args, Axes.of_shape(weight.shape) if axes is None else axes)
        rule = rule.by_axes
    with suppress(ValueError):  # some builtins have no signature
        signature = inspect.signature(rule)
        try:
            signature.bind(*args)
        except TypeError as error:
            raise TypeError(
                f"`{name}` (={rule!r}) is a function of other arguments than a rule ({error}): a "
                "rule takes the shape of the weight and its number of inputs, "
                "`lambda shape, fan_in: dist.Normal(0.0, 1.0)`"
            ) from None
    made = rule(*args)
    if not isinstance(made, Distribution):
        raise TypeError(f"`{name}` (={rule!r}) returned {made!r}: a rule returns a distribution")
    return made


def _problems(obj: Any) -> Iterator[str]:
    """What is wrong with the values of a distribution, and of those inside."""
    for key, constraint in getattr(obj, "arg_constraints", {}).items():
        value = vars(obj).get(key)
        if not isinstance(value, Tensor) or not has_values(value) or not value.numel():
            continue
        if constraints.is_dependent(constraint) or constraint.event_dim:
            continue
        if not constraint.check(value).all():
            wrong = value[~constraint.check(value)].flatten()[0].item()
            yield f"a `{key}` of {wrong:.3g} in {value.dtype}, which must satisfy {constraint}"
        elif not value.isfinite().all():
            wrong = value[~value.isfinite()].flatten()[0].item()
            yield f"a `{key}` of {wrong} in {value.dtype}, which must be finite"
        elif key == "scale" and value.is_floating_point():
            # KL divergences have squares of scales, in float32 at least.
            info = torch.finfo(torch.promote_types(value.dtype, torch.float))
            least, most = (float(value.min()), float(value.max()))
            low, high = math.sqrt(info.tiny), math.sqrt(info.max)
            if least < low or most > high:
                yield (
                    f"a `scale` of {least if least < low else most:.3g}, whose square is no number "
                    f"of {value.dtype}: choose one between {low:.2g} and {high:.2g}, or float64"
                )
    for _, child in children(obj):
        yield from _problems(child)


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
