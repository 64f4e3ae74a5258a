"""What the best constant prediction reaches, which a network must surpass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, Normal


@torch.no_grad()
def constant_log_likelihood(site: dict[str, Any]) -> float | None:
    """The log-likelihood of an observed site under the best constant prediction.

    There is one for each target of a row. Scales, degrees of freedom and dispersions are those of
    the site's distribution where they are known, and the best ones otherwise, of all targets
    together where they share them.

    Args:
        site: the site, in a run where all parameters have gradients.

    Returns:
        None for distributions other than those of ``_BEST``.
    """
    inner, weight = _unwrapped(site)
    best = next((f for kind, f in _BEST.items() if isinstance(inner, kind)), None)
    if best is None:
        return None
    num_dims = len(site["fn"].batch_shape)  # those of rows
    num_targets = inner.batch_shape[num_dims:].numel()
    value = torch.as_tensor(site["value"]).expand(inner.batch_shape)
    y, weight = value.reshape(-1, num_targets).double(), weight.reshape(-1, num_targets)
    counts = weight > 0
    if not counts.any():
        return 0.0
    y = torch.where(counts, y, y[counts][0])  # what is masked may have any value
    found = best(_Targets(inner, num_dims, y, weight))
    return found if math.isfinite(found) else None


@dataclass
class _Targets:
    """The targets of a site: a row for each datum, and how often each counts."""

    distribution: Any
    num_dims: int  # of the rows, in the distribution
    y: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        self.total = self.weight.sum(0).clamp_min(1e-30)
        self.mean = (self.weight * self.y).sum(0) / self.total
        self.squares = (self.weight * (self.y - self.mean).square()).sum(0)

    def add_up(self, log_prob: Tensor) -> Tensor:
        return (self.weight * log_prob).sum()

    def known(self, name: str) -> Tensor | None:
        """A parameter of the distribution, unless it is learned."""
        x = getattr(self.distribution, name)
        return None if x.requires_grad else x.reshape(self.y.shape).double()

    def pooled(self, name: str, x: Tensor) -> Tensor:
        """Sums of the targets, or their sum where these share a parameter."""
        strides = getattr(self.distribution, name).stride()
        return x if any(strides[self.num_dims :]) else x.sum(0, keepdim=True)


def _categorical(t: _Targets) -> float:
    y = t.y.long()
    target = torch.arange(y.shape[1], device=y.device).expand_as(y)
    times = t.weight.new_zeros(y.shape[1], int(y.max()) + 1)
    times.index_put_((target, y), t.weight, accumulate=True)
    return torch.xlogy(times, times / t.total.unsqueeze(-1)).sum().item()


def _bernoulli(t: _Targets) -> float:
    entropy = torch.special.entr(t.mean) + torch.special.entr(1 - t.mean)
    return -(t.total * entropy).sum().item()


def _poisson(t: _Targets) -> float:
    return t.add_up(torch.xlogy(t.y, t.mean) - t.mean - (t.y + 1).lgamma()).item()


def _negative_binomial(t: _Targets) -> float:
    def log_likelihood(log_count: Tensor) -> Tensor:
        logits = t.mean.clamp_min(1e-30).log() - log_count  # the best mean is that of the targets
        best = dist.NegativeBinomial(log_count.exp(), logits=logits, validate_args=False)
        return t.add_up(best.log_prob(t.y))

    count = t.known("total_count")
    if count is not None:
        return log_likelihood(count.log()).item()
    n, sums, squares = (t.pooled("total_count", x) for x in (t.total, t.total * t.mean, t.squares))
    variance = (sums / n).square() / ((squares - sums) / n).clamp_min(1e-3)
    return _maximum(log_likelihood, variance.clamp_min(1e-3).log())


def _student(t: _Targets) -> float:
    df, scale = t.known("df"), t.known("scale")

    def log_likelihood(loc: Tensor, log_scale: Tensor, log_df: Tensor) -> Tensor:
        best = dist.StudentT(
            log_df.exp() if df is None else df,
            loc,
            log_scale.exp() if scale is None else scale,
            validate_args=False,
        )
        return t.add_up(best.log_prob(t.y))

    variance = t.pooled("scale", t.squares) / t.pooled("scale", t.total)
    log_df = torch.full_like(t.pooled("df", t.total), math.log(4))
    return _maximum(log_likelihood, t.mean, 0.5 * variance.clamp_min(1e-30).log(), log_df)


def _normal(t: _Targets) -> float:
    scale = t.known("scale")
    if scale is not None:
        precision = t.weight / scale.square()
        mean = (precision * t.y).sum(0) / precision.sum(0).clamp_min(1e-30)
        return t.add_up(Normal(mean, scale, validate_args=False).log_prob(t.y)).item()
    total = t.pooled("scale", t.total)
    variance = (t.pooled("scale", t.squares) / total).clamp_min(1e-30)
    return -0.5 * (total * (2 * math.pi * math.e * variance).log()).sum().item()


_BEST: dict[Any, Callable[[_Targets], float]] = {
    dist.Categorical: _categorical,
    dist.Bernoulli: _bernoulli,
    dist.Poisson: _poisson,
    dist.NegativeBinomial: _negative_binomial,
    dist.StudentT: _student,
    Normal: _normal,
}


def _maximum(function: Callable[..., Tensor], *start: Tensor) -> float:
    """The greatest value of a function of tensors, by L-BFGS."""
    with torch.inference_mode(False), torch.enable_grad():
        free = [x.clone().requires_grad_() for x in start]
        optimizer = torch.optim.LBFGS(free, max_iter=500, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -function(*free)
            loss.backward()
            return loss

        optimizer.step(closure)
        return function(*free).item()


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
