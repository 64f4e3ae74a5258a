"""Simulation-based calibration: is what inference returns the posterior?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._tensors import as_tensor
from ..estimators._draw import plain
from ._samples import check_count, run, sampler
from ._vectorized import Samples


def sbc_ranks(
    model: Callable[..., Any],
    infer: Callable[[Any, Any], Callable[..., Any] | Mapping[str, Tensor]],
    x: Any,
    *,
    num_simulations: int = 100,
    num_samples: int = 99,
    site: str = "obs",
) -> Samples:
    r"""Ranks of latent variables among samples of their posterior, for simulated data.

    .. math:: w \sim p(w), \quad y \sim p(y \mid x, w), \quad w_1, \dots, w_S \sim q(w \mid y),
        \quad r = \#\{s : w_s < w\}

    If :math:`q` is the posterior, every rank is uniform on :math:`\{0, \dots, S\}`
    (:func:`uniformity`). Ranks that pile up at both ends tell of posteriors that are too narrow,
    ranks in the middle of posteriors that are too wide. Ties, of discrete variables, are broken at
    random. Mean-field posteriors are exact only if the
    variables are independent under the posterior, which is rare in networks.

    Args:
        model: a Pyro model, called as ``model(x)`` to simulate.
        infer: ``infer(x, y)`` returns a guide that is trained on these data, or ``num_samples``
            samples of each latent variable by site name. Those of Markov chains have to be thinned
            until they are independent. It must start anew each time, with a new guide.
        x: the inputs.
        num_simulations: number of data sets, each with other latent variables.
        num_samples: number of samples :math:`S` of each posterior.
        site: name of the targets.

    Returns:
        A dictionary from site names to ranks, of shape ``(num_simulations, *shape of the site)``.

    Raises:
        TypeError: if a number is no integer, or ``infer`` returns neither guide nor dictionary.
        ValueError: if one is not positive, if the model does not sample ``site``, or samples of
            ``infer`` are of other sites or another number, or NaN.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference
        algorithms with simulation-based calibration", arXiv:1804.06788.

    Example:
        >>> def model(x, y=None):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        ...     return pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=y)
        >>> def exact(x, y):
        ...     return {"w": y / 2 + 0.5**0.5 * torch.randn(99, 50)}
        >>> def narrow(x, y):
        ...     return {"w": y / 2 + 0.5 * torch.randn(99, 50)}
        >>> _ = pyro.set_rng_seed(0)
        >>> uniformity(sbc_ranks(model, exact, None, num_simulations=20)["w"], 100) > 0.001
        True
        >>> uniformity(sbc_ranks(model, narrow, None, num_simulations=20)["w"], 100) > 0.001
        False
    """
    check_count("num_simulations", num_simulations)
    check_count("num_samples", num_samples)
    ranks: dict[str, list[Tensor]] = {}
    for _ in range(num_simulations):
        values = _simulated(model, x)
        if site not in values:
            raise ValueError(f"the model does not sample `site` (={site!r}), but {list(values)}")
        found = infer(x, values.pop(site))
        if isinstance(found, Mapping):
            posterior = {name: as_tensor(samples) for name, samples in found.items()}
        elif callable(found):
            with torch.no_grad():
                posterior = sampler(found, (x,), {})(num_samples)
        else:
            raise TypeError(
                f"`infer` has returned a {type(found).__name__}: return a guide, or a dictionary "
                "of samples by site, such as `mcmc.get_samples()`"
            )
        _check(posterior, values, num_samples)
        for name, value in values.items():
            samples = posterior[name].reshape(num_samples, *value.shape)
            rank, ties = (samples < value).sum(0), (samples == value).sum(0)
            if bool(ties.any()):  # of discrete variables, any of the ranks that they share
                rank += (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()
            ranks.setdefault(name, []).append(rank)
    return {name: torch.stack(found) for name, found in ranks.items()}


def uniformity(ranks: Tensor, num_ranks: int, num_bins: int = 20) -> float:
    r"""The p-value of the chi-square test that ranks are uniform.

    .. math:: P\left(\chi^2_{B-1} > \sum_b \frac{(n_b - e_b)^2}{e_b}\right)

    with counts :math:`n_b` in :math:`B` bins and the counts :math:`e_b` that are expected. State
    the level below which you would reject before you look.

    Args:
        ranks: independent integers, in any shape.
        num_ranks: how many there may be, from 0 on: one more than samples.
        num_bins: :math:`B`; no more than there are ranks, with five or more expected in each.

    Raises:
        TypeError: if ``ranks`` is no tensor, or a number no integer.
        ValueError: if there are no ranks, some are out of range, or the bins too many.

    Example:
        >>> uniformity(torch.arange(100), num_ranks=100)
        1.0
    """
    if not isinstance(ranks, Tensor):
        raise TypeError(f"`ranks` (={type(ranks).__name__}) must be a tensor")
    check_count("num_ranks", num_ranks)
    check_count("num_bins", num_bins)
    is_rank = (ranks >= 0) & (ranks < num_ranks) & (ranks == ranks.long())
    if not ranks.numel() or not bool(is_rank.all()):
        raise ValueError(
            f"`ranks` must be integers from 0 to `num_ranks` (={num_ranks}) - 1, at least one: "
            "`num_ranks` is the number of samples plus 1"
        )
    if not 2 <= num_bins <= num_ranks:
        raise ValueError(f"`num_bins` (={num_bins}) must be from 2 to `num_ranks` (={num_ranks})")
    binned = lambda r: (r.flatten() * num_bins // num_ranks).bincount(minlength=num_bins).double()
    expected = binned(torch.arange(num_ranks)) * ranks.numel() / num_ranks
    statistic = ((binned(ranks.long().cpu()) - expected).square() / expected).sum()
    half = torch.tensor((num_bins - 1) / 2, dtype=torch.double)
    return torch.special.gammaincc(half, statistic / 2).item()


@torch.no_grad()
def _simulated(model: Callable[..., Any], x: Any) -> Samples:
    sites = run(model, (x,), {}).iter_stochastic_nodes()
    return {name: plain(node["value"]) for name, node in sites}


def _check(posterior: Mapping[str, Tensor], values: Mapping[str, Tensor], num_samples: int) -> None:
    missing = [name for name in values if name not in posterior]
    if missing:
        raise ValueError(
            f"`infer` has returned no samples of {missing}, but of {list(posterior)}: return those "
            "of all latent sites of the model"
        )
    for name, value in values.items():
        if bool(posterior[name].isnan().any()):
            raise ValueError(f"`infer` has returned NaN among the samples of `{name}`: mend it")
        without_ones = lambda shape: [size for size in shape if size != 1]
        expected = [num_samples, *without_ones(value.shape)]
        shape = posterior[name].shape
        if [*shape[:1], *without_ones(shape[1:])] != expected:
            raise ValueError(
                f"`infer` has returned samples of `{name}` of shape "
                f"{tuple(posterior[name].shape)}, not {(num_samples, *value.shape)}: return "
                f"`num_samples` (={num_samples}) of them, each in the shape of the site"
            )
