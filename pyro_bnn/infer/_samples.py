"""The samples that a prediction is conditioned on, and what they must be."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from ..estimators._draw import plain
from ..guides import AutoPosterior
from ..guides._sites import attribute_names
from ._vectorized import Samples

_PLATE = "_num_predictive_samples"


class GrownPlates(Messenger):
    """Lets plates have more rows in prediction than there were in training.

    ``pyro.plate("data", N, subsample_size=len(x))`` draws ``len(x)`` of ``N`` indices, and Pyro
    refuses to draw more. A prediction reads neither the indices nor the scale that they lead to.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if site_is_subsample(msg) and msg["value"] is None and (fn.subsample_size or 0) > fn.size:
            msg["value"] = torch.arange(fn.subsample_size, device=fn.device)


def run(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The trace of a model, apart from whatever handlers are around."""
    with poutine.block():
        return prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))


def max_plate_nesting(trace: Any) -> int:
    frames = [
        f for s in trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def sampler(guide: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[int], Samples]:
    """A function that draws samples of the sites of a guide, except auxiliary ones."""
    masked = poutine.mask(GrownPlates()(guide), mask=False)
    sites = lambda function: {
        name: site
        for name, site in run(function, args, kwargs).iter_stochastic_nodes()
        if not site["infer"].get("is_auxiliary")
    }
    if not isinstance(guide, AutoPosterior):  # others may not take a plate around them

        def stacked(size: int) -> Samples:
            draws = [sites(masked) for _ in range(size)]
            return {n: torch.stack([plain(d[n]["value"]) for d in draws]) for n in draws[0]}

        return stacked

    one = run(masked, args, kwargs)
    dim = -1 - max_plate_nesting(one)
    shapes = {name: site["value"].shape for name, site in one.iter_stochastic_nodes()}

    def vectorized(size: int) -> Samples:
        drawn = sites(
            lambda *args, **kwargs: pyro.plate(_PLATE, size, dim=dim)(masked)(*args, **kwargs)
        )
        return {n: plain(drawn[n]["value"]).reshape(size, *shape) for n, shape in shapes.items()}

    return vectorized


def check_arguments(samples: Any, num_samples: Any, return_sites: Any, chunk_size: Any) -> None:
    """Checks what a ``Predictive`` is built with."""
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value is not None:
            check_count(name, value)
    if isinstance(return_sites, str) or not isinstance(return_sites, Collection | None):
        raise TypeError(
            f"`return_sites` (={return_sites!r}) must be a list, tuple or set of names, such as "
            '["obs", "_RETURN"], or None'
        )
    if samples is None:
        return
    if not isinstance(samples, Mapping):
        raise TypeError(
            f"`posterior_samples` must be a dictionary from site names to tensors, not "
            f"{type(samples).__name__}: a guide is passed as `guide=`"
        )
    for name, value in samples.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the `posterior_samples` of `{name}` are of type {type(value).__name__}: pass "
                "tensors, say by `torch.as_tensor`"
            )
    sizes = {name: len(x) if x.dim() else 0 for name, x in samples.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(
            f"`posterior_samples` must have as many samples, at least one, of each site in the "
            f"first dimension; they have {sizes}"
        )


def check_count(name: str, value: Any) -> None:
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"`{name}` (={value!r}) must be an integer")
    if count < 1:
        raise ValueError(f"`{name}` (={value}) must be positive")


def check_names(
    model: Callable[..., Any], prototype: Any, given: Collection[str], source: str
) -> None:
    """Checks that no weight is drawn from its prior by mistake.

    Args:
        model: a Pyro model.
        prototype: a trace of it.
        given: names of the sites that there are samples of.
        source: where these are from.

    Raises:
        ValueError: if a weight is not among them, or if some are of no site of the model while
            the model has latent sites of other names.
    """
    latent = dict(prototype.iter_stochastic_nodes())
    plates = {f.name for s in latent.values() for f in s["cond_indep_stack"]}
    other = [name for name in latent if name not in given]
    attributes = attribute_names(model) if other else set()
    weights = [n for n in other if n in attributes and not latent[n]["cond_indep_stack"]]
    unknown = [name for name in given if name not in prototype.nodes and name not in plates]
    remedy = f"(it has {list(given)}): correct the names or the model, or leave `{source}` out to "
    remedy += "sample all sites from their priors"
    if weights:
        raise ValueError(f"`{source}` has no samples of the weights {weights} {remedy}")
    if unknown and other:
        raise ValueError(
            f"`{source}` has samples of {unknown}, which are not sites of the model, and none of "
            f"its sites {other} {remedy}, or those of {unknown} to sample only {other}"
        )


def fitted(samples: Samples, prototype: Any) -> Samples:
    """Samples in the shapes of the model's sites, without the dimensions of plates around them.

    Raises:
        ValueError: if the samples of a site have another shape.
    """
    result = dict(samples)
    for name, x in samples.items():
        if name not in prototype.nodes or prototype.nodes[name]["type"] != "sample":
            continue
        shape = prototype.nodes[name]["value"].shape
        if _without_leading_ones(x.shape[1:]) == _without_leading_ones(shape):
            result[name] = x.reshape(len(x), *shape)
        elif not _broadcasts(x.shape[1:], shape):
            raise ValueError(
                f"the samples of `{name}` have the shape {tuple(x.shape[1:])} each, but the site "
                f"of the model has {tuple(shape)} for these arguments. If it is a latent variable "
                "of each datum, and these are new data, leave its samples out, to draw it from its "
                f'prior: `guide=poutine.block(guide, hide=["{name}"])`'
            )
    return result


def _without_leading_ones(shape: torch.Size) -> tuple[int, ...]:
    first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:  # which is how torch says that they do not
        return False
