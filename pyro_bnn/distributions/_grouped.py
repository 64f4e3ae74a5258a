"""Normals of one weight tensor, groups of whose entries have a variance in common."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .._validation import check_positive
from ..kernels import in_double


class Groups(TypedDict, total=False):
    """How the entries of a weight are grouped: what all constructors take by keyword."""

    group_dims: tuple[int, ...]
    view: tuple[int, ...] | None
    validate_args: bool | None


class Grouped(TorchDistribution):
    """One event of the shape of a weight; what it says of the weight are sums over groups.

    Args:
        shape: shape of the weight.
        parameters: the mean ``loc``, which broadcasts to ``shape``, and positive parameters.
        group_dims: the dimensions that tell groups apart; by default all entries are one group.
        view: the shape that ``group_dims`` refers to, if that is not ``shape`` but one of as many
            entries.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if ``view`` has another number of entries than ``shape``, ``group_dims`` are no
            dimensions of it, ``loc`` does not fit, or another parameter is not positive.
    """

    has_rsample = True
    loc: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        parameters: dict[str, Tensor | float],
        *,
        group_dims: tuple[int, ...] = (),
        view: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.Size(shape)
        self._view = shape if view is None else torch.Size(view)
        if self._view.numel() != shape.numel():
            raise ValueError(
                f"`view` (={tuple(self._view)}) must have as many entries as `shape` "
                f"(={tuple(shape)})"
            )
        dims = len(self._view)
        if not all(-dims <= d < dims for d in group_dims):
            raise ValueError(
                f"`group_dims` (={tuple(group_dims)}) must be dimensions of the shape "
                f"{tuple(self._view)}, from 0 to {dims - 1}"
            )
        self._group_dims = tuple(sorted({d % dims for d in group_dims}))
        for name, value in parameters.items():
            if name != "loc" and not isinstance(value, Tensor):
                check_positive(**{name: value})
        self.__dict__.update(zip(parameters, _tensors(*parameters.values()), strict=True))
        try:
            fits = torch.broadcast_shapes(self.loc.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"`loc` of shape {tuple(self.loc.shape)} must broadcast to `shape` "
                f"(={tuple(shape)})"
            )
        super().__init__(torch.Size(), shape, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[torch.Size, torch.Size]:
        """The batch shape and the event shape of a distribution, from its ``shape``."""
        return torch.Size(), torch.Size(arg_shapes["shape"])

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def group_shape(self) -> torch.Size:
        """The shape that numbers the groups."""
        return torch.Size(self._view[d] for d in self._group_dims)

    @property
    def group_size(self) -> int:
        """The number of entries of a group."""
        # As a list, which `torch.compile` reads without a break of the graph.
        return math.prod([size for d, size in enumerate(self._view) if d not in self._group_dims])

    def expand(self, batch_shape, _instance=None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        for name in (*self.arg_constraints, "_view", "_group_dims"):
            setattr(new, name, getattr(self, name))
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        scale = self.spread(self.group_scale(shape[: len(shape) - self.event_dim]))
        return self.loc + scale * torch.randn(shape, dtype=scale.dtype, device=scale.device)

    def log_prob(self, value: Tensor, kept: Tensor | None = None) -> Tensor:
        """The log density of a weight, or the marginal one of those of its entries that are kept.

        Args:
            value: shape ``(..., *event_shape)``.
            kept: a mask of the shape of the weight; by default all entries are kept.
        """
        if self._validate_args:
            self._validate_sample(value)
        squares = (value - self.loc).square()
        size: Any = self.group_size
        if kept is not None:
            squares = torch.where(kept, squares, 0)
            size = in_double(self.group_sum(kept.to(squares.dtype)))
        half = 0.5 * self.group_sum(squares)
        density = self.expected_log_density(half, size)
        shape = torch.broadcast_shapes(density.shape, self.batch_shape)
        return density.to(half.dtype).expand(shape)

    def group_sum(self, x: Tensor) -> Tensor:
        """The sum of each group's entries, ``group_shape`` in place of the event shape."""
        batch = x.dim() - self.event_dim
        others = [batch + d for d in range(len(self._view)) if d not in self._group_dims]
        x = x.reshape(x.shape[:batch] + self._view)
        return x.sum(others) if others else x

    def spread(self, x: Tensor) -> Tensor:
        """The value of its group for each entry."""
        x = spread(x, self._view, self._group_dims)
        return x.reshape(x.shape[: x.dim() - len(self._view)] + self.event_shape)

    def sum_groups(self, x: Tensor) -> Tensor:
        """The sum over groups."""
        dims = tuple(range(-len(self._group_dims), 0))
        return x.sum(dims) if dims else x

    def group_scale(self, batch_shape: torch.Size) -> Tensor:
        """A sample of the standard deviation of each group, shape ``batch_shape + group_shape``."""
        raise NotImplementedError

    def expected_log_density(self, half: Tensor, size: int | Tensor) -> Tensor:
        """The log density, from half the sum of squares around the mean in each group.

        In float64, since large numbers cancel. With the *expected* sum it is the expectation of the
        log density, or a lower bound on it.

        Args:
            half: half the sum of squares, shape ``batch + group_shape``.
            size: the number of entries of each group.

        Returns:
            The sum over groups, shape ``batch``.
        """
        raise NotImplementedError

    def density_and_precision(self, half: Any) -> tuple[Any, Any]:
        """:meth:`expected_log_density`, and minus its derivative by ``half``.

        Args:
            half: shape ``group_shape``, or a number if there is one group.
        """
        raise NotImplementedError


def spread(x: Tensor, view: torch.Size, dims: tuple[int, ...]) -> Tensor:
    """Values of groups, which ``dims`` of the shape ``view`` tell apart, for each entry of it."""
    batch = x.shape[: x.dim() - len(dims)]
    ones = [size if d in dims else 1 for d, size in enumerate(view)]
    return x.reshape(batch + torch.Size(ones)).expand(batch + view)


def _tensors(*values: Tensor | float) -> tuple[Tensor, ...]:
    """Scalars as tensors of the dtype and device of those that are tensors."""
    given = [v for v in values if isinstance(v, Tensor)]
    like = given[0] if given else torch.empty(())
    return tuple(
        v if isinstance(v, Tensor) else torch.as_tensor(v, dtype=like.dtype, device=like.device)
        for v in values
    )
