"""Priors of several small weights as one, if some of them are hierarchical."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from ..kernels import (
    HALF_LOG_2_PI,
    flatten,
    in_double,
    is_number,
    is_plain,
    location_scale_bound,
    number,
    unexpanded,
)
from ._grouped import Grouped, spread
from ._hierarchical_normal import HierarchicalNormal
from ._joint import is_normal

Form = tuple[torch.Size, tuple[int, ...], float, float, float, float]


def is_joinable(p: Any) -> bool:
    """Whether :func:`joint_grouped_kl` takes a hierarchical prior: it is of numbers, but means."""
    if type(p) is not HierarchicalNormal or not p.event_shape.numel() or is_plain():
        return False
    return not any(t.requires_grad or not t.is_cpu for t in (p.concentration, p.rate))


def is_alike(p: Normal) -> bool:
    """Whether all entries of a Normal prior are of the same known numbers."""
    parameters = unexpanded(p.loc), unexpanded(p.scale)
    return not any(t.dim() or t.requires_grad or not t.is_cpu for t in parameters)


def joint_grouped_kl(q: Any, priors: Sequence[Any]) -> Tensor:
    """The sum of :func:`hierarchical_kl_bound` over several weights.

    Args:
        q: the Normal of all entries, end to end as a vector; of a single weight, as it is.
        priors: that of each weight, hierarchical or, by its entries, Normal.
    """
    p = priors[0] if len(priors) == 1 else _Several(priors)
    entropy = (0.5 + HALF_LOG_2_PI) * q.loc.numel()
    return location_scale_bound(q.loc, q.scale, p, 1.0, entropy)


class _Several(Grouped):
    r"""The product of the priors of several weights, as a density of the vector of all.

    With half the sum of squares of a group, :math:`h`, its log density is :math:`K - c \log(b + h)
    - t h`; if hierarchical, with :math:`t = 0`, and otherwise with :math:`c = 0`.
    """

    arg_constraints: dict[str, Any] = {}
    group_size: Any = None  # is in the constants

    def __init__(self, priors: Sequence[Any]) -> None:
        form = _layout(tuple(map(_form, priors)))
        self._index, self._c, self._b, self._t, self._constant = form
        self.loc = unexpanded(priors[0].loc)
        if not all(is_number(unexpanded(p.loc), 0) for p in priors):
            self.loc = flatten([p.loc.expand(p.shape()) for p in priors])

    @property
    def group_shape(self) -> torch.Size:
        return self._c.shape

    def group_sum(self, x: Tensor) -> Tensor:
        x = in_double(x)  # since the entries of a group are added one after the other
        return x.new_zeros(self.group_shape).index_add_(0, self._index, x)

    def spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._index)

    def expected_log_density(self, half: Tensor, size: Any = None) -> Tensor:
        return self._constant - (self._c * (self._b + half).log() + self._t * half).sum()

    def density_and_precision(self, half: Any) -> tuple[Any, Any]:
        return self.expected_log_density(half), (self._c / (self._b + half)).add_(self._t)


def _form(p: Any) -> Form:
    """The weight's shape and the dimensions that tell groups apart; `c`, `b`, `t` and `K`."""
    if is_normal(p):
        size, scale = p.batch_shape.numel(), number(unexpanded(p.scale))
        return p.batch_shape, (), 0.0, 1.0, scale**-2, -size * (math.log(scale) + HALF_LOG_2_PI)
    c, b, constant = p._constants()
    return p._view, p._group_dims, c, b, 0.0, constant


@lru_cache(maxsize=32)
def _layout(forms: tuple[Form, ...]) -> tuple[Any, ...]:
    """The group of each entry; `c`, `b` and `t` of each group; and the sum of all constants."""
    groups = [math.prod(view[d] for d in dims) for view, dims, *_ in forms]
    numbers = torch.arange(sum(groups)).split(groups)
    by_weight = [spread(n, view, dims) for n, (view, dims, *_) in zip(numbers, forms, strict=True)]
    index = torch.cat([numbers.reshape(-1) for numbers in by_weight])
    values = torch.tensor([form[2:] for form in forms], dtype=torch.float64)
    c, b, t, constant = values.repeat_interleave(torch.tensor(groups), 0).T.contiguous()
    return index, c, b, t, constant.sum().item()
