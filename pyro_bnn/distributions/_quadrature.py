"""The KL divergence of one-dimensional families by quadrature, for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Independent

from ..kernels import HALF_LOG_2_PI
from ._normal_mixture import normal_components

# Where to cut the range of a component, in its standard deviations.
_CUTS = (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


class KLQuadrature(NamedTuple):
    """A KL divergence by quadrature, of shape ``batch_shape``.

    Attributes:
        kl: in nats.
        error: an estimate of its error.
    """

    kl: Tensor
    error: Tensor


@torch.no_grad()
def kl_quadrature(q: Distribution, p: Distribution, *, num_nodes: int = 16) -> KLQuadrature:
    r"""The KL divergence :math:`KL(q \Vert p)` by Gauss-Legendre quadrature, in float64.

    The range of ``q`` (12 standard deviations around each component) is split at fixed multiples
    of the scales of all components of ``q`` and ``p``, so that a spike prior is resolved as well
    as a slab. The error is the difference from the same rule with half the nodes, which is far
    larger than the error of the result.

    Args:
        q: a Normal or a mixture of Normals, under any number of ``Independent``.
        p: a distribution with independent entries and as many event dimensions; the split
            follows its components if it is a Normal or a mixture of Normals.
        num_nodes: nodes in each piece, even and at least 2.

    Returns:
        The KL divergence in nats, summed over the event, and the summed estimate of its error.

    Raises:
        ValueError: if ``num_nodes`` is odd or below 2, or the event dimensions differ.
        NotImplementedError: if ``q`` is neither a Normal nor a mixture of Normals.

    Example:
        >>> q, p = torch.distributions.Normal(1.0, 0.5), torch.distributions.Normal(0.0, 1.0)
        >>> kl_quadrature(q, p).kl
        tensor(0.8181, dtype=torch.float64)
    """
    if num_nodes < 2 or num_nodes % 2:
        raise ValueError(f"`num_nodes` (={num_nodes}) must be even and at least 2")
    event_dim = len(q.event_shape)
    if len(p.event_shape) != event_dim:
        raise ValueError(
            f"`q` and `p` must have as many event dimensions, not {event_dim} and "
            f"{len(p.event_shape)}: use `.to_event`"
        )
    q, p = _base(q), _base(p)
    edges = _edges(q, p)
    fine = _integrate(q, p, edges, num_nodes)
    error = (fine - _integrate(q, p, edges, num_nodes // 2)).abs()
    return KLQuadrature(sum_rightmost(fine, event_dim), sum_rightmost(error, event_dim))


def _base(d: Distribution) -> Distribution:
    while isinstance(d, Independent):
        d = d.base_dist
    return d


def _edges(q: Distribution, p: Distribution) -> Tensor:
    """Sorted ends of the pieces, in the first dimension."""
    dims = max(len(q.batch_shape), len(p.batch_shape))

    def cut(d: Distribution) -> Tensor:
        _, loc, scale = (t.double() for t in normal_components(d, dims))
        return torch.cat([loc + cut * scale for cut in _CUTS])

    edges = cut(q)
    try:
        more = cut(p).clamp(edges.amin(0), edges.amax(0))
    except NotImplementedError:  # the pieces of q are narrow enough for a prior without components
        return edges.sort(0).values
    shape = torch.broadcast_shapes(edges.shape[1:], more.shape[1:])
    return torch.cat([e.expand(-1, *shape) for e in (edges, more)]).sort(0).values


def _log_density(d: Distribution, dims: int) -> Callable[[Tensor], Tensor]:
    try:
        log_weight, loc, scale = (t.double() for t in normal_components(d, dims))
    except NotImplementedError:
        return d.log_prob

    def log_density(x: Tensor) -> Tensor:
        z = (x - loc) / scale
        return torch.logsumexp(log_weight - scale.log() - 0.5 * z.square(), 0) - HALF_LOG_2_PI

    return log_density


def _integrate(q: Distribution, p: Distribution, edges: Tensor, num_nodes: int) -> Tensor:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    dims = edges.dim() - 1
    log_q, log_p = _log_density(q, dims), _log_density(p, dims)
    total = torch.zeros_like(edges[0])
    for low, high in itertools.pairwise(edges):
        half, middle = 0.5 * (high - low), 0.5 * (high + low)
        for node, weight in zip(nodes, weights, strict=True):
            x = middle + half * node
            log_density = log_q(x)
            total += weight * half * log_density.exp() * (log_density - log_p(x))
    return total
