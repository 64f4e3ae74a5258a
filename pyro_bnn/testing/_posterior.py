"""The contract of a posterior."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import kl_divergence

from ..estimators import Flipout, LocalReparameterization
from ..posteriors import Posterior
from ._statistics import copies, require, require_gradients, require_mean, seeded

_NUMBER = 2000  # draws


def check_posterior(
    make: Callable[..., Posterior], shape: tuple[int, ...] = (3, 2), *, scale: float = 0.1
) -> None:
    """Checks that a posterior does what guides, ELBOs and checkpoints need.

    Its distribution is one event of the shape and the dtype of the weight; its draws have the
    mean and the variance that it tells, under every estimator that it has the noise for; the KL
    divergence from a Normal prior, if one is registered, is that of its densities, or above it;
    every parameter gets a gradient, also on a second pass; those that are scales are named in
    ``SCALES``; parameters are contiguous; copies, pickles and states have the same numbers; scales
    that are not positive are refused; quantiles, if there are any, have their probabilities.

    Args:
        make: the class, or a function of ``loc``, ``scale`` and the keyword ``estimator``.
        shape: shape of the weight.
        scale: initial scale.

    Raises:
        AssertionError: says what is wrong.

    Example:
        >>> check_posterior(NormalPosterior)
    """
    with seeded():
        for dtype in (torch.float, torch.double):
            loc = torch.rand(shape, dtype=dtype) + 0.5
            _check_distribution(make(loc, scale), loc)
        posterior = make(loc, scale)
        _check_parameters(posterior)
        _check_copies(posterior)
        wrong: float | Tensor
        for wrong in (0.0, -1.0, float("nan"), float("inf"), torch.eye(len(loc))[:, :1]):
            try:
                make(loc, wrong)
            except ValueError:
                continue
            raise AssertionError(f"a `scale` of {wrong} is no ValueError")
        _check_moments(posterior)
        _check_estimators(make, posterior, loc, scale)
        _check_kl(posterior, loc)
        _check_quantiles(posterior)


def _check_distribution(posterior: Posterior, loc: Tensor) -> None:
    q = posterior.distribution()
    value = q.rsample()
    require(q.batch_shape == (), f"`batch_shape` is {tuple(q.batch_shape)}: a weight is one event")
    require(
        value.shape == q.event_shape == loc.shape,
        f"a draw has the shape {tuple(value.shape)}, an event {tuple(q.event_shape)}, not "
        f"{tuple(loc.shape)} as `loc`",
    )
    density = q.log_prob(value)
    dtypes = {value.dtype, density.dtype, posterior.median().dtype}
    require(dtypes == {loc.dtype}, f"draws, densities and medians have {dtypes}, not {loc.dtype}")
    require(bool(density.isfinite()), f"the density of a draw is {density}")
    torch.testing.assert_close(
        posterior.median(), loc, msg=lambda m: f"the median at the start is not `loc`: {m}"
    )


def _check_parameters(posterior: Posterior) -> None:
    for name, parameter in posterior.named_parameters():
        require(parameter.is_contiguous(), f"`{name}` is not contiguous, as optimizers need it")
    unknown = set(posterior.SCALES) - posterior._pyro_params.keys()
    require(not unknown, f"`SCALES` has {unknown}, which are no parameters of {posterior.family}")
    for when in ("in a first pass", "in a second pass"):
        q = posterior.distribution()
        loss = q.rsample().sin().sum() + 0 * q.log_prob(q.sample())
        loss.backward()
        require_gradients(posterior.named_parameters(), when, in_every_entry=True)
        posterior.zero_grad()


def _check_copies(posterior: Posterior) -> None:
    fresh = copy.deepcopy(posterior)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1)
        require(
            not torch.equal(fresh.median(), posterior.median()),
            "a copy has the parameters of the original, or the median does not depend on them",
        )
    fresh.load_state_dict(posterior.state_dict())
    for other in (fresh, *copies(posterior)):
        value = posterior.median()
        require(
            torch.equal(
                other.distribution().log_prob(value), posterior.distribution().log_prob(value)
            ),
            "a copy with the same state has another density",
        )


def _moments(q: Any) -> tuple[Tensor, Tensor] | None:
    try:
        return q.mean.detach(), q.variance.detach()
    except NotImplementedError:  # as of a Normal under a constraint
        return None


@torch.no_grad()
def _check_moments(posterior: Posterior) -> None:
    for shared in (False, True):
        q = posterior.distribution(shared=shared)
        moments = _moments(q)
        if moments is not None:
            values = torch.stack([torch.as_tensor(q.rsample() + 0) for _ in range(_NUMBER)])
            require_mean(values, moments[0], "the mean of draws")
            require_mean((values - moments[0]).square(), moments[1], "the variance of draws")


def _check_estimators(
    make: Callable[..., Posterior], posterior: Posterior, loc: Tensor, scale: float
) -> None:
    if loc.dim() != 2 or _moments(posterior.distribution()) is None:
        return
    for estimator in (Flipout(), LocalReparameterization()):
        try:
            estimator.check(posterior.base())
        except ValueError:
            continue
        q = make(loc, scale, estimator=estimator).distribution()
        x = torch.randn(2, loc.shape[1], dtype=loc.dtype)
        with torch.no_grad():
            y = torch.stack([F.linear(x, q.rsample()) for _ in range(_NUMBER)])
            mean, variance = F.linear(x, q.mean), F.linear(x.square(), q.variance)
        require_mean(y, mean, f"the mean of outputs under {estimator!r}")
        require_mean((y - mean).square(), variance, f"the variance of outputs under {estimator!r}")


@torch.no_grad()
def _check_kl(posterior: Posterior, loc: Tensor) -> None:
    q = posterior.distribution(shared=True)
    one = torch.ones_like(loc)
    p = dist.Normal(0.3 * one, 0.5 * one).to_event(loc.dim())
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return
    values = [q.rsample() for _ in range(_NUMBER)]
    ratios = torch.stack([q.log_prob(value) - p.log_prob(value) for value in values])
    estimate, error = ratios.mean(), ratios.std() / _NUMBER**0.5
    require(
        bool(estimate - 5 * error <= kl + 1e-7),
        f"the registered KL divergence from a Normal is {kl:.4g}, that of the densities "
        f"{estimate:.4g}, with a standard error of {error:.2g}",
    )


@torch.no_grad()
def _check_quantiles(posterior: Posterior) -> None:
    probs = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
    try:
        found = posterior.quantiles(probs)
    except NotImplementedError:
        return
    shape = (len(probs), *posterior.median().shape)
    require(found.shape == shape, f"quantiles have the shape {tuple(found.shape)}, not {shape}")
    values = torch.as_tensor(posterior.distribution(shared=True).sample((_NUMBER,)) + 0)
    for prob, quantile in zip(probs, found, strict=True):
        below = (values <= quantile).double()
        require_mean(below, prob, f"the probability of what is below the quantile of {prob:.1f}")
