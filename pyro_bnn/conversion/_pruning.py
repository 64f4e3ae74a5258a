"""Pruning of weights that are mostly noise."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection

import torch
from torch import Tensor

from ..guides import AutoPosterior
from ..posteriors import ConstrainedPosterior, Posterior
from ._table import table

THRESHOLD = 0.83  # the ratio of mean to standard deviation at which weights are removed


class Sparsity(dict[str, float]):
    """The fraction of pruned weights by site; prints as a table.

    Attributes:
        total: the fraction of all weights.
    """

    def __init__(self, masks: dict[str, Tensor]) -> None:
        super().__init__({name: pruned_fraction(kept) for name, kept in masks.items()})
        self._sizes = {name: kept.numel() for name, kept in masks.items()}
        pruned = sum(self[n] * size for n, size in self._sizes.items())
        self.total = pruned / max(1, sum(self._sizes.values()))

    def __str__(self) -> str:
        rows = [[n, f"{self._sizes[n]:,}", f"{self[n]:.1%}"] for n in self]
        rows.append(["all", f"{sum(self._sizes.values()):,}", f"{self.total:.1%}"])
        return table(["site", "weights", "pruned"], rows)


def pruned_fraction(kept: Tensor) -> float:
    """The fraction of weights that a mask removes; 0 of none."""
    return 1 - kept.double().mean().item() if kept.numel() else 0.0


def pruning_masks(
    guide: AutoPosterior, threshold: float = THRESHOLD, *, sites: str | Collection[str] = "*"
) -> dict[str, Tensor]:
    r"""Which weights carry a signal, :math:`|\mu| / \sigma > t`.

    Args:
        guide: a guide of :mod:`pyro_bnn.guides`, trained.
        threshold: :math:`t \ge 0`; mean and standard deviation are those of the weight itself,
            whatever the family of its posterior.
        sites: names or patterns of the sites, ``"*.weight"``; by default all that are weights or
            biases of a network.

    Returns:
        Masks by site name, true for what stays. What has been pruned before has no signal.

    Raises:
        TypeError: if ``guide`` is not a guide of :mod:`pyro_bnn.guides`.
        ValueError: if ``threshold`` is negative, a pattern fits no site, or the guide has no
            weights of a network yet.

    References:
        Graves (2011), "Practical variational inference for neural networks", section 8; Blundell,
        Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural networks",
        arXiv:1505.05424, section 5.2.

    Example:
        >>> guide = AutoLRT(BayesianLinear(3, 2), init_scale=1e-3)
        >>> {name: kept.shape for name, kept in pruning_masks(guide).items()}
        {'weight': torch.Size([2, 3]), 'bias': torch.Size([2])}
    """
    if not 0 <= threshold < math.inf:
        raise ValueError(f"`threshold` (={threshold}) must be finite and not negative")
    found = weight_posteriors(guide, sites)
    return {name: q.signal_to_noise() > threshold for name, q in found.items()}


@torch.no_grad()
def prune(
    guide: AutoPosterior,
    threshold: float | None = None,
    *,
    fraction: float | None = None,
    sites: str | Collection[str] = "*",
) -> Sparsity:
    r"""Sets the weights with the least :math:`|\mu| / \sigma` to zero, for good.

    A pruned weight is zero in every sample, has no KL divergence and gets no gradient;
    the others train on, in the same tensors. The masks are saved in the guide's ``state_dict``, and
    :func:`~pyro_bnn.to_deterministic` makes zeros of them. Where a KL divergence is estimated by
    Monte Carlo (as by Pyro's ``Trace_ELBO``), the loss has a constant more: the negative log
    density of the prior at each zero, which the model does not know to be pruned.

    Prune a guide that has been trained: before, the ratios are those of its initial values. To
    compare several fractions, prune copies, ``copy.deepcopy(guide)``.

    Args:
        guide: a guide of :mod:`pyro_bnn.guides`, trained; it is changed.
        threshold: prune what is not above it, 0.83 by default; see :func:`pruning_masks`.
        fraction: instead, in [0, 1]: prune this fraction of all weights of these sites, those
            pruned before included.
        sites: names or patterns of the sites, ``"*.weight"``; by default all that are weights or
            biases of a network.

    Returns:
        The fraction that is pruned now, by site; prints as a table.

    Raises:
        TypeError: if ``guide`` is not a guide of :mod:`pyro_bnn.guides`, or a site has a posterior
            of your own whose distribution cannot be pruned. Nothing has changed then.
        ValueError: if ``threshold`` is negative, ``fraction`` is not in [0, 1], both are given, a
            pattern fits no site, or the guide has no weights of a network yet.

    Example:
        >>> guide = AutoLRT(BayesianLinear(3, 2))
        >>> prune(guide, fraction=0.5).total
        0.5
    """
    if threshold is not None and fraction is not None:
        raise ValueError(f"give `threshold` (={threshold}) or `fraction` (={fraction}), not both")
    if fraction is None:
        masks = pruning_masks(guide, THRESHOLD if threshold is None else threshold, sites=sites)
    else:
        masks = _masks_of_fraction(weight_posteriors(guide, sites), fraction)
    for name, kept in masks.items():  # all of them, before one of them changes
        _check_mask(guide, name, kept)
    for name, kept in masks.items():
        guide[name].prune(kept)
    return Sparsity(masks)


def _check_mask(guide: AutoPosterior, name: str, kept: Tensor) -> None:
    try:
        guide[name].check_mask(kept)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`guide` has the site `{name}`: {error}") from None


def _masks_of_fraction(weights: dict[str, Posterior], fraction: float) -> dict[str, Tensor]:
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` (={fraction}) must lie between 0 and 1")
    ratios = {name: q.signal_to_noise() for name, q in weights.items()}
    flat = torch.cat([ratio.flatten().cpu() for ratio in ratios.values()])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.argsort()[: round(fraction * len(flat))]] = False
    parts = kept.split([ratio.numel() for ratio in ratios.values()])
    return {
        name: part.view(ratio.shape).to(ratio.device)
        for (name, ratio), part in zip(ratios.items(), parts, strict=True)
    }


def weight_posteriors(guide: AutoPosterior, sites: str | Collection[str]) -> dict[str, Posterior]:
    """The posteriors of a network's weights, at all sites that a name or pattern fits."""
    if not isinstance(guide, AutoPosterior):
        raise TypeError(f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides")
    found = {n: guide[n] for n in guide if not isinstance(guide[n], ConstrainedPosterior)}
    if not found:
        raise ValueError(
            "`guide` has no weights of a network: if a run of the model is to reveal them, call "
            "the guide once"
        )
    patterns = [sites] if isinstance(sites, str) else list(sites)
    unused = [pattern for pattern in patterns if not fnmatch.filter(found, pattern)]
    if unused:
        raise ValueError(f"`sites` has {unused}, which fit none of {list(found)}")
    return {n: q for n, q in found.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
