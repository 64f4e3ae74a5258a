"""The bound on the KL divergence of mixtures of Normals, from a mixture or without a prior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._normal_kl import entry_kl, unexpanded
from ._second_order import gradients_with_graph
from ._sums import exact_sum, log_sum
from ._switch import is_plain

_BLOCK = 1 << 18


def summed_mixture_bound(posterior: Sequence[Tensor], prior: Sequence[Tensor]) -> Tensor:
    """The sum of :func:`mixture_bound` over all entries.

    Args:
        posterior: log weights, means and scales of the mixture, components in front.
        prior: those of the prior; empty, if there is none.
    """
    if is_plain() or any(t.requires_grad for t in prior):
        return exact_sum(mixture_bound(*posterior, *prior))
    return _SummedBound.apply(torch.is_grad_enabled(), *posterior, *prior)


def mixture_bound(log_weight: Tensor, loc: Tensor, scale: Tensor, *prior_parts: Tensor) -> Tensor:
    r"""The bound of each entry; without a prior, that on :math:`\log\sqrt{2\pi} - H(q)`."""
    log_weights, locs, scales = (t.unbind(0) for t in (log_weight, loc, scale))
    variances = [s.square() for s in scales]
    prior = _by_component(prior_parts)

    # A component overlaps with itself by 1, and with another as that one does with it.
    overlaps = [[w] for w in log_weights]
    for a, b in combinations(range(len(locs)), 2):
        total = variances[a] + variances[b]
        bhattacharyya = (
            0.25 * (locs[a] - locs[b]).square() / total
            + 0.5 * (0.5 * total / (scales[a] * scales[b])).log()
        )
        overlaps[a].append(log_weights[b] - bhattacharyya)
        overlaps[b].append(log_weights[a] - bhattacharyya)

    bounds = []
    for a, log_w in enumerate(log_weights):
        against = scales[a].log() + 0.5
        if prior:
            against = log_sum([w - entry_kl(locs[a], scales[a], m, s) for w, m, s in prior])
        bounds.append(log_w.exp() * (log_sum(overlaps[a]) - against))
    return sum(bounds[1:], bounds[0])


class _SummedBound(Function):
    """Goes through blocks of entries, and takes the gradient of each at once.

    By autograd, the formula has some forty results for each pair of components, and twice as many
    operations backwards. Here, those of one block are all that is in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, wants_grad: bool, *inputs: Tensor) -> Tensor:
        shape = inputs[1].shape
        blocks = [t.expand(len(t), *shape[1:]).flatten(1).split(_BLOCK, 1) for t in inputs]
        totals, grads = [], []
        for block in zip(*blocks, strict=True):
            if not wants_grad:
                totals.append(exact_sum(mixture_bound(*block)))
                continue
            bound, *parts = _bound_and_gradients(*block)
            totals.append(exact_sum(bound))
            grads.append(parts)
        ctx.num_inputs = len(inputs)
        ctx.save_for_backward(*inputs, *(_joined(g).view(shape) for g in zip(*grads, strict=True)))
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, grads = ctx.saved_tensors[: ctx.num_inputs], ctx.saved_tensors[ctx.num_inputs :]
        needed = ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled():
            bound = exact_sum(mixture_bound(*inputs))
            return None, *gradients_with_graph(bound, inputs, grad)
        others = (None,) * (len(inputs) - 3)
        scaled = (g * grad if needs else None for g, needs in zip(grads, needed, strict=True))
        return None, *scaled, *others


def _bound_and_gradients(
    log_weight: Tensor, loc: Tensor, scale: Tensor, *prior_parts: Tensor
) -> tuple[Tensor, ...]:
    """The bound of each entry, and its gradients for log weights, means and scales."""
    weight, variance = log_weight.exp(), scale.square()
    overlaps = [[w] for w in log_weight]
    pairs = []
    for a, b in combinations(range(len(loc)), 2):
        total = variance[a] + variance[b]
        difference = loc[a] - loc[b]
        quotient = difference / total
        bhattacharyya = (0.5 * total).div_(scale[a] * scale[b]).log_().mul_(0.5)
        bhattacharyya.addcmul_(difference, quotient, value=0.25)
        overlaps[a].append(log_weight[b] - bhattacharyya)
        overlaps[b].append(log_weight[a] - bhattacharyya)
        pairs.append((a, b, quotient, total))
    overlap = torch.stack([log_sum(terms) for terms in overlaps])

    against, by_loc, by_scale = _against(weight, loc, scale, _by_component(prior_parts))
    terms = weight * (overlap - against)
    by_log_weight = terms + weight * (log_weight - overlap).exp_()
    for a, b, quotient, total in pairs:
        # Component b's part of the overlap of a follows a itself in the list, if b is behind a.
        by_b = weight[a] * (overlaps[a][b] - overlap[a]).exp_()
        by_a = weight[b] * (overlaps[b][1 + a] - overlap[b]).exp_()
        by_log_weight[a].add_(by_a)
        by_log_weight[b].add_(by_b)
        by_distance = by_a + by_b
        by_difference = 0.5 * by_distance * quotient
        by_loc[a].sub_(by_difference)
        by_loc[b].add_(by_difference)
        slope = total.reciprocal_().addcmul_(quotient, quotient, value=-0.5)
        for k in (a, b):
            by_scale[k].addcmul_(by_distance, 0.5 / scale[k] - slope * scale[k])
    return terms.sum(0), by_log_weight, by_loc, by_scale


def _against(
    weight: Tensor, loc: Tensor, scale: Tensor, prior: list[tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The term of the prior for each component, and the weighted gradients of its negative."""
    reciprocal = scale.reciprocal()
    if not prior:
        return scale.log() + 0.5, torch.zeros_like(loc), -weight * reciprocal
    terms = [log_w - entry_kl(loc, scale, m, s) for log_w, m, s in prior]
    against = log_sum(terms)
    by_loc, by_scale = torch.zeros_like(loc), torch.zeros_like(scale)
    for term, (_, m, s) in zip(terms, prior, strict=True):
        part = weight if len(prior) == 1 else weight * (term - against).exp_()
        precise = part / s.square()
        by_loc.addcmul_(loc - m, precise)
        by_scale.addcmul_(scale, precise).addcmul_(part, reciprocal, value=-1)
    return against, by_loc, by_scale


def _by_component(parts: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Log weight, mean and scale of each component, as scalars if they are expanded from them."""
    return list(zip(*(map(unexpanded, t) for t in parts), strict=True))


def _joined(blocks: tuple[Tensor, ...]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
