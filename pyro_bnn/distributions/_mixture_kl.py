"""The upper bound on KL divergences of mixtures of Normals, the lower bound on their entropy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, MixtureSameFamily, Normal

from .._torch import is_transformed
from ._bounds import register_bound
from ._divergence import HALF_LOG_2_PI, entry_kl, exact_sum, unexpanded
from ._normal_mixture import NormalMixture, log_sum, normal_components

_BLOCK = 1 << 18


def mixture_kl_bound(q: Distribution, p: Distribution) -> Tensor:
    r"""Closed-form upper bound on :math:`KL(q \Vert p)` of Normals and mixtures of Normals.

    The entropy of :math:`q` is bounded from below through Bhattacharyya distances (Kolchinsky
    and Tracey 2017, Entropy 19(7):361) and the cross-entropy from above by Jensen's inequality
    in each component (Hershey and Olsen 2007):

    .. math::
        KL(q \Vert p) \le -\sum_a \pi_a H_a
        + \sum_a \pi_a \log \sum_b \pi_b e^{-BD_{ab}}
        - \sum_a \pi_a \log \sum_b \omega_b e^{E_{q_a}[\log p_b]}
        = \sum_a \pi_a \Big(\log \sum_b \pi_b e^{-BD_{ab}}
        - \log \sum_b \omega_b e^{-KL(q_a \Vert p_b)}\Big)

    It is exact for two Normals, where the two mixtures coincide with well separated components,
    and wherever one component of each matters. In between it can be loose (twice the KL divergence,
    say); :func:`kl_quadrature` and ``Trace_ELBO`` give the KL divergence itself. Since it is an
    upper bound, an ELBO made of it still bounds the evidence from below.

    ``torch.distributions.kl_divergence`` returns this bound for (:class:`NormalMixture`, Normal),
    (:class:`NormalMixture`, mixture) and (Normal, mixture), where a mixture is any
    ``MixtureSameFamily`` of Normals from torch or Pyro.

    Args:
        q: a Normal or a mixture of Normals.
        p: a Normal or a mixture of Normals, broadcastable with ``q``.

    Returns:
        The bound in nats, shape ``batch_shape``.

    Raises:
        NotImplementedError: if either is neither a Normal nor a mixture of Normals.
    """
    dims = max(len(q.batch_shape), len(p.batch_shape))
    return _bound(*normal_components(q, dims), *normal_components(p, dims))


def _bound(log_weight: Tensor, loc: Tensor, scale: Tensor, *prior_parts: Tensor) -> Tensor:
    r"""The bound of each entry; without a prior, that on :math:`\log\sqrt{2\pi} - H(q)`."""
    log_weights, locs, scales = (t.unbind(0) for t in (log_weight, loc, scale))
    variances = [s.square() for s in scales]
    prior = list(zip(*(map(unexpanded, t) for t in prior_parts), strict=True))

    # A component overlaps with itself by 1, and with another as that one does with it.
    overlaps = [[own] for own in log_weights]
    for a, b in combinations(range(len(locs)), 2):
        total = variances[a] + variances[b]
        bhattacharyya = (
            0.25 * (locs[a] - locs[b]).square() / total
            + 0.5 * (0.5 * total / (scales[a] * scales[b])).log()
        )
        overlaps[a].append(log_weights[b] - bhattacharyya)
        overlaps[b].append(log_weights[a] - bhattacharyya)

    bounds = []
    for a, own in enumerate(log_weights):
        against = scales[a].log() + 0.5
        if prior:
            against = log_sum([w - entry_kl(locs[a], scales[a], m, s) for w, m, s in prior])
        bounds.append(own.exp() * (log_sum(overlaps[a]) - against))
    return sum(bounds[1:], bounds[0])


def summed_mixture_kl_bound(q: Distribution, p: Distribution) -> Tensor:
    """The sum of :func:`mixture_kl_bound` over all entries of two distributions of equal shape."""
    return _summed(normal_components(q), normal_components(p))


def mixture_entropy_bound(q: Distribution) -> Tensor:
    """The lower bound on the entropy of each entry that :func:`mixture_kl_bound` is made of."""
    return HALF_LOG_2_PI - _bound(*normal_components(q))


def summed_mixture_entropy_bound(q: Distribution) -> Tensor:
    """The sum of :func:`mixture_entropy_bound` over all entries."""
    return HALF_LOG_2_PI * q.batch_shape.numel() - _summed(normal_components(q), [])


def _summed(own: list[Tensor], others: list[Tensor]) -> Tensor:
    is_small = own[1][0].numel() <= _BLOCK
    if is_small or is_transformed() or any(t.requires_grad for t in others):
        return exact_sum(_bound(*own, *others))
    return _SummedBound.apply(*own, *others)


class _SummedBound(Function):
    """Goes through blocks of entries, and takes the gradient of each at once.

    The formula has some forty intermediate results for each pair of components: those of one block
    are all that is in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        wants_grad = any(ctx.needs_input_grad)
        ctx.shapes = [t.shape for t in inputs[:3]]
        blocks = [
            t.expand(len(t), *inputs[1].shape[1:]).flatten(1).split(_BLOCK, 1) for t in inputs
        ]
        totals, grads = [], []
        for block in zip(*blocks, strict=True):
            own = [t.detach().requires_grad_(wants_grad) for t in block[:3]]
            with torch.set_grad_enabled(wants_grad):
                bound = _bound(*own, *block[3:]).sum()
            totals.append(bound.detach())
            if wants_grad:
                grads.append(torch.autograd.grad(bound, own))
        ctx.save_for_backward(*(torch.cat(g, 1) for g in zip(*grads, strict=True)))
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.shapes, strict=True)
        others = (None,) * (len(ctx.needs_input_grad) - 3)
        return *((g * grad).view(shape) for g, shape in grads), *others


register_bound(Normal, MixtureSameFamily)(mixture_kl_bound)
register_bound(NormalMixture, Normal)(mixture_kl_bound)
register_bound(NormalMixture, MixtureSameFamily)(mixture_kl_bound)
