"""What is random in a network, and how."""

from __future__ import annotations

from typing import IO, Any

import torch
from torch import nn
from torch.distributions import Distribution, Independent

from .._pyro import make_name
from ..guides import AutoPosterior
from ..guides._checks import check_posteriors
from ..infer._kl import kl_kind
from ..posteriors import ConstrainedPosterior
from ._pruning import pruned_fraction
from ._table import table
from ._weights import weights


def summary(
    net: nn.Module, guide: AutoPosterior | None = None, file: IO[str] | None = None
) -> None:
    """Prints each site of a network, and what stays deterministic.

    For a site these are its full name, shape, number of weights, prior, posterior with estimator,
    what the KL divergence from the prior is by :func:`pyro_bnn.infer.kl` (exact, a bound or an
    estimate) and, once some are pruned, the fraction of weights that is; for a parameter, its name,
    shape, and why it has no prior. Tied weights are one site, with all their names.

    Args:
        net: a network or model with random weights.
        guide: a guide of it, or of a model that it is part of; without one, there is nothing about
            posteriors.
        file: where to print to; by default, to the standard output.

    Raises:
        TypeError: if ``guide`` is not a guide of :mod:`pyro_bnn.guides`.
        ValueError: if ``net`` has no random weights, or the guide lacks posteriors for some.

    Example:
        >>> net = bayesianize(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)))
        >>> summary(net, AutoLRT(net))
        site      shape   weights  prior         posterior  estimator                KL
        0.weight  (2, 3)  6        Normal(0, 1)  Normal     LocalReparameterization  exact
        0.bias    (2,)    2        Normal(0, 1)  Normal     LocalReparameterization  exact
        8 random weights in 2 sites
        <BLANKLINE>
        deterministic  shape  weights  why
        1.weight       (2,)   2        normalisation
        1.bias         (2,)   2        normalisation
        4 deterministic weights
    """
    if guide is not None:
        check_posteriors(net, guide)
    random, fixed, total = [], [], 0
    for weight in weights(net):
        names = [make_name(getattr(net, "_pyro_name", ""), name) for name in weight.names]
        if weight.parameter is not None:
            why = "frozen" if weight.is_frozen else "not converted"
            why = "normalisation" if weight.is_normalisation else why
            shape = weight.parameter.shape
            fixed.append([" = ".join(names), _shape(shape), f"{shape.numel():,}", why])
            continue
        module: Any = weight.module
        prior = module._pyro_samples[weight.key]
        fn = prior if hasattr(prior, "sample") else prior(module)
        shape = fn.shape()
        total += shape.numel()
        row = [" = ".join(names), _shape(shape), f"{shape.numel():,}", _described(fn)]
        if guide is not None:
            row += _posterior(guide, names[0], fn)
        random.append(row)
    if guide is not None and guide.prototype_trace is not None and guide._model == (net,):
        shown = {name for row in random for name in row[0].split(" = ")}
        for name, site in guide.prototype_trace.iter_stochastic_nodes():
            if name not in shown:  # a latent variable that no module has
                shape = site["fn"].shape()
                total += shape.numel()
                row = [name, _shape(shape), f"{shape.numel():,}", _described(site["fn"])]
                random.append(row + _posterior(guide, name, site["fn"]))
    header = ["site", "shape", "weights", "prior"]
    header += ["posterior", "estimator", "KL", "pruned"] if guide is not None else []
    if guide is not None and not any(row[-1] for row in random):
        header, random = header[:-1], [row[:-1] for row in random]
    print(table(header, random), file=file)
    print(f"{total:,} random weights in {len(random)} sites", file=file)
    if fixed:
        print("\n" + table(["deterministic", "shape", "weights", "why"], fixed), file=file)
        sizes = [w.parameter.numel() for w in weights(net) if w.parameter is not None]
        print(f"{sum(sizes):,} deterministic weights", file=file)


def _shape(shape: torch.Size) -> str:
    return str(tuple(shape))


def _posterior(guide: AutoPosterior, name: str, prior: Distribution) -> list[str]:
    q = guide[name]
    kind = type(q).__name__.removesuffix("Posterior")
    estimator = "" if isinstance(q, ConstrainedPosterior) else type(q.estimator).__name__
    pruned = "" if q.kept is None else f"{pruned_fraction(q.kept):.1%}"
    return [kind, estimator, kl_kind(q.distribution(shared=True), prior), pruned]


def _described(fn: Distribution) -> str:
    """The family, with those parameters that are the same for all weights."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    texts = []
    for name in fn.arg_constraints:
        value = vars(fn).get(name)
        if isinstance(value, torch.Tensor):
            same = value.numel() > 0 and bool((value == value.flatten()[0]).all())
            texts.append(f"{value.flatten()[0].item():.3g}" if same else f"<{name}>")
    return type(fn).__name__ + (f"({', '.join(texts)})" if texts else "")
