"""Vectorized particles, whose samples stand where a function may look for the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..estimators._draw import plain
from ..guides._dry_run import dry_run
from ..guides._lists import posterior_guides, shared_draws
from ..guides._sites import referred_modules

Likelihoods = dict[str, Tensor]  # by observed site, of each of its entries

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def check_particles(
    vectorized: Callable[[Any], Any],
    dim: int,
    model: Callable[..., Any],
    guide: Any,
    args: Any,
    kwargs: Any,
) -> None:
    """Compares the first of vectorized particles with the same one alone, once for each guide.

    Args:
        vectorized: puts model and guide into the plate of particles.
        dim: the dimension of that plate, from the right.
        model, guide, args, kwargs: as of the ELBO.

    Raises:
        ValueError: if the model finds another likelihood, or none.
    """
    if not posterior_guides(guide) or vars(guide).get("_are_particles_checked"):
        return

    def traces(source: Callable[..., Any]) -> tuple[Any, Any]:
        runs = (poutine.trace(f).get_trace(*args, **kwargs) for f in (source, vectorized(source)))
        one, many = runs
        _take_first(one, many)
        return one, many

    def alone(one: Any, seed: int = 0) -> Likelihoods:
        return _likelihoods(poutine.replay(model, trace=one), args, kwargs, seed)

    def together(many: Any) -> Likelihoods:
        replayed = poutine.replay(vectorized(model), trace=many)
        return _likelihoods(replayed, args, kwargs, 0, dim)

    with poutine.block(), dry_run(), torch.no_grad(), shared_draws(guide), _no_dropout(model):
        one, many = traces(guide)
        expected = alone(one)
        try:
            found = together(many)
        except (RuntimeError, IndexError, ValueError) as error:
            cause = str(error).partition("\n")[0]  # Pyro adds the shapes of all sites
            raise ValueError(
                "the model runs with one draw of the weights, but not with vectorized particles, "
                f"whose dimension is in front of the rows: {cause}. Leave out `vectorize_particles`"
            ) from error
        _compare(found, expected, lambda: alone(_nudged(one), 1))
        # Draws of a guide that has not been trained are almost alike, those of the prior are not.
        try:
            one, many = traces(model)
            expected, found = alone(one), together(many)
        except (RuntimeError, ValueError):
            pass  # a prior need not be proper, nor all of its draws suit the model
        else:
            _compare(found, expected, lambda: alone(_nudged(one), 1))
    guide._are_particles_checked = True


def _take_first(one: Any, many: Any) -> None:
    """Replaces the samples of a run by the first ones of vectorized particles."""
    for name, site in one.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            value = plain(many.nodes[name]["value"])
            same = site_is_subsample(site) or value.shape == site["value"].shape
            site["value"] = value if same else value[0].reshape(site["value"].shape)


def _nudged(one: Any) -> Any:
    """The same samples up to rounding."""
    for site in one.nodes.values():
        is_drawn = site["type"] == "sample" and not site["is_observed"]
        if is_drawn and site["value"].is_floating_point():
            site["value"] = torch.nextafter(site["value"], torch.zeros_like(site["value"]))
    return one


def _likelihoods(
    model: Callable[..., Any], args: Any, kwargs: Any, seed: int, dim: int | None = None
) -> Likelihoods:
    """The log likelihoods of observed sites; with a dimension of particles, of the first one."""
    torch.manual_seed(seed)
    trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob(lambda name, site: site["is_observed"])
    found = {}
    for name in trace.observation_nodes:
        value = trace.nodes[name]["log_prob"]
        if dim is not None and value.dim() >= -dim:
            value = value.select(dim, 0)
        found[name] = value.reshape(-1).cpu()
    return found


def _compare(found: Likelihoods, expected: Likelihoods, again: Callable[[], Likelihoods]) -> None:
    for name, value in expected.items():
        # Nothing is known of a model with random numbers of its own, or that amplifies rounding.
        if not _agree(found[name], value) and _agree(again()[name], value):
            raise ValueError(_difference(name, found[name], value))


def _difference(name: str, found: Tensor, expected: Tensor) -> str:
    if len(found) != len(expected):
        return (
            f"`{name}` has {len(expected)} log likelihoods for a draw of the weights, but "
            f"{len(found)} for the same draw among vectorized particles, whose dimension is in "
            "front of the rows: make outputs of a row one event, `.to_event(1)`, rather than a "
            "plate, or leave out `vectorize_particles`"
        )
    row = int((found - expected).abs().argmax())
    return (
        f"the log likelihood of a row of `{name}` is {expected[row]:.4g} for a draw of the "
        f"weights, but {found[row]:.4g} for the same draw among vectorized particles, whose "
        "dimension is in front of the rows: count dimensions from the last, as in "
        "`softmax(dim=-1)`, or leave out `vectorize_particles`"
    )


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether numbers are the same but for rounding."""
    if len(a) != len(b):
        return False
    known = b.isfinite()
    if not known.any():
        return True
    is_half = a.dtype in (torch.float16, torch.bfloat16)
    a, b = a[known].double(), b[known].double()
    root_mean_square = lambda x: x.square().mean().sqrt()
    tolerance = 0.03 if is_half else 1e-3
    return bool(root_mean_square(a - b) <= tolerance * (1 + root_mean_square(b)))


@contextmanager
def _no_dropout(model: Callable[..., Any]) -> Iterator[None]:
    modules = [m for root in referred_modules(model, nn.Module) for m in root.modules()]
    active = [m for m in modules if isinstance(m, _DROPOUTS) and m.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True
