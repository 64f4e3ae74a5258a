"""What the best constant prediction reaches, which a network must surpass."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, Normal


@torch.no_grad()
def constant_log_likelihood(site: dict[str, Any]) -> float:
    """The log-likelihood of an observed site under the best constant prediction.

    There is one for each target of a row. Normals have the standard deviation of the site's
    distribution if that depends on no parameter, and the best one otherwise, of all targets
    together where they share it. It is minus infinity for other distributions than Normals,
    Bernoullis and Categoricals.
    """
    inner, weight = _unwrapped(site)
    if not isinstance(inner, (Normal, dist.Bernoulli, dist.Categorical)):
        return -math.inf
    value = torch.as_tensor(site["value"]).expand(inner.batch_shape)
    num_dims = len(site["fn"].batch_shape)  # those of rows
    num_targets = inner.batch_shape[num_dims:].numel()
    y, weight = value.reshape(-1, num_targets), weight.reshape(-1, num_targets)
    counts = weight > 0
    if not counts.any():
        return 0.0
    y = torch.where(counts, y, y[counts][0])  # what is masked may have any value
    total = weight.sum(0)
    if isinstance(inner, dist.Categorical):
        y = y.long()
        target = torch.arange(num_targets, device=y.device).expand_as(y)
        times = weight.new_zeros(num_targets, int(y.max()) + 1)
        times.index_put_((target, y), weight, accumulate=True)
        return torch.xlogy(times, times / total.clamp_min(1e-30).unsqueeze(-1)).sum().item()
    y = y.double()
    mean = (weight * y).sum(0) / total.clamp_min(1e-30)
    if isinstance(inner, dist.Bernoulli):
        entropy = torch.special.entr(mean) + torch.special.entr(1 - mean)
        return -(total * entropy).sum().item()
    scale = inner.scale.reshape(-1, num_targets).double()
    if not inner.scale.requires_grad:
        precise = weight / scale.square()
        mean = (precise * y).sum(0) / precise.sum(0).clamp_min(1e-30)
        return (weight * Normal(mean, scale, validate_args=False).log_prob(y)).sum().item()
    variance = (weight * (y - mean).square()).sum(0)
    if not any(inner.scale.stride()[num_dims:]):  # one that was expanded
        variance, total = variance.sum(), total.sum()
    variance = (variance / total.clamp_min(1e-30)).clamp_min(1e-30)
    return -0.5 * (total * (2 * math.pi * math.e * variance).log()).sum().item()


def _unwrapped(site: dict[str, Any]) -> tuple[Any, Tensor]:
    """The distribution inside of events and masks, and how often each of its entries counts."""
    fn = site["fn"]
    factors: list[tuple[Any, int]] = [(site[key], fn.event_dim) for key in ("scale", "mask")]
    while isinstance(fn, (Independent, dist.MaskedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            factors.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    device = torch.as_tensor(site["value"]).device
    weight = torch.ones(fn.batch_shape, dtype=torch.double, device=device)
    for factor, event_dim in factors:
        if factor is not None:
            factor = torch.as_tensor(factor, device=device).double()
            weight = weight * factor[(..., *[None] * (event_dim - fn.event_dim))]
    return fn, weight
