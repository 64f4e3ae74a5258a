"""Normals of an unknown variance, which is integrated out."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .._validation import check_positive
from ..kernels import HALF_LOG_2_PI, in_double


class HierarchicalNormal(TorchDistribution):
    r"""One weight tensor, groups of whose entries have an unknown variance in common.

    .. math:: \tau_g \sim \mathrm{InvGamma}(a, b), \qquad w_i \mid \tau \sim N(m, \tau_{g(i)})

    The variances are integrated out: the :math:`n` entries of a group are a multivariate Student-t
    variable with :math:`2a` degrees of freedom,

    .. math::
        \log p(w) = \sum_g \log\Gamma(c) - \log\Gamma(a) + a \log b - \tfrac n2 \log 2\pi
        - c \log\Bigl(b + \tfrac12 \sum_{i \in g} (w_i - m)^2\Bigr),
        \qquad c = a + \tfrac n2.

    ``torch.distributions.kl_divergence`` has an upper bound on the KL divergence from it, see
    :func:`hierarchical_kl_bound`.

    Args:
        shape: shape of the weight, which is one event.
        concentration: shape parameter :math:`a > 0` of the prior of the variances, a scalar.
        rate: scale parameter :math:`b > 0` of it, a scalar; like a variance.
        loc: the mean :math:`m`, broadcastable to ``shape``.
        group_dims: the dimensions that tell groups apart, say ``(1,)`` for one variance for each
            column of a matrix; by default all entries are one group.
        view: the shape that ``group_dims`` refers to, if that is not ``shape`` but one of as many
            entries.
        validate_args: as in ``torch.distributions``.

    Raises:
        ValueError: if ``concentration`` or ``rate`` is not positive, ``view`` has another number of
            entries than ``shape``, or ``group_dims`` are no dimensions of it.

    References:
        Tomczak, Swaroop, Foong and Turner (2021), "Collapsed variational bounds for Bayesian neural
        networks", NeurIPS 34.

    Example:
        >>> from pyro_bnn.distributions import HierarchicalNormal
        >>> prior = HierarchicalNormal((3, 4), concentration=2.0, rate=1.0, group_dims=(1,))
        >>> prior.sample().shape, prior.log_prob(torch.zeros(3, 4))
        (torch.Size([3, 4]), tensor(-6.2234))
    """

    arg_constraints = {
        "loc": constraints.real,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        shape: tuple[int, ...],
        concentration: Tensor | float = 0.5,
        rate: Tensor | float = 0.01,
        loc: Tensor | float = 0.0,
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
        self.loc, self.concentration, self.rate = _tensors(loc, concentration, rate)
        for name, given in (("concentration", concentration), ("rate", rate)):
            value = getattr(self, name)
            if not isinstance(given, Tensor):
                check_positive(**{name: given})
            if value.dim():
                raise ValueError(
                    f"`{name}` must be a scalar, the same for all groups, not of shape "
                    f"{tuple(value.shape)}"
                )
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
        others = (size for d, size in enumerate(self._view) if d not in self._group_dims)
        return math.prod(others)

    @property
    def mean(self) -> Tensor:
        r"""The mean; NaN where there is none, for :math:`a \le 1/2`."""
        mean = torch.where(self.concentration > 0.5, self.loc, math.nan)
        return mean.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        r"""The variance :math:`b / (a - 1)`; infinite for :math:`a \le 1`, NaN without a mean."""
        a, b = self.concentration, self.rate
        variance = torch.where(a > 1, b / (a - 1), math.inf)
        return torch.where(a > 0.5, variance, math.nan).expand(self._extended_shape())

    def expand(self, batch_shape, _instance=None) -> HierarchicalNormal:
        new = self._get_checked_instance(HierarchicalNormal, _instance)
        new.loc, new.concentration, new.rate = self.loc, self.concentration, self.rate
        new._view, new._group_dims = self._view, self._group_dims
        super(HierarchicalNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        batch_shape = shape[: len(shape) - self.event_dim]
        gamma = torch.distributions.Gamma(self.concentration, self.rate, validate_args=False)
        scale = gamma.rsample(batch_shape + self.group_shape).rsqrt()
        noise = torch.randn(shape, dtype=scale.dtype, device=scale.device)
        return self.loc + self.spread(scale) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 * self.group_sum((value - self.loc).square())
        density = self.expected_log_density(half, self.group_size)
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
        batch = x.dim() - len(self._group_dims)
        ones = [size if d in self._group_dims else 1 for d, size in enumerate(self._view)]
        x = x.reshape(x.shape[:batch] + torch.Size(ones))
        return x.expand(x.shape[:batch] + self._view).reshape(x.shape[:batch] + self.event_shape)

    def expected_log_density(self, half: Tensor, size: int | Tensor) -> Tensor:
        r"""The log density, from half the sum of squares around the mean in each group.

        In float64, since :math:`c \log c` and :math:`\log\Gamma(c)` leave the difference of
        large numbers. With the *expected* sum it is a lower bound on the expectation.

        Args:
            half: half the sum of squares, shape ``batch + group_shape``.
            size: the number of entries of each group.

        Returns:
            The sum over groups, shape ``batch``.
        """
        a, b, half = (in_double(t) for t in (self.concentration, self.rate, half))
        c = a + 0.5 * size
        constant = torch.lgamma(c) - torch.lgamma(a) - size * HALF_LOG_2_PI
        density = constant + a * b.log() - c * (b + half).log()
        dims = tuple(range(-len(self._group_dims), 0))
        return density.sum(dims) if dims else density


def _tensors(*values: Tensor | float) -> tuple[Tensor, ...]:
    """Scalars as tensors of the dtype and device of those that are tensors."""
    given = [v for v in values if isinstance(v, Tensor)]
    like = given[0] if given else torch.empty(())
    return tuple(
        v if isinstance(v, Tensor) else torch.as_tensor(v, dtype=like.dtype, device=like.device)
        for v in values
    )
