"""Where posteriors start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import init_to_median
from torch import Tensor

from .._validation import check_positive
from ..posteriors._normal import is_real
from ._sites import other_names, own_state


def init_to_fan_in(site: dict[str, Any] | None = None) -> Any:
    r"""Starts weights as torch does, :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` for :math:`n` inputs.

    Biases (real vectors) start at 0, all else at the prior's median.

    Args:
        site: a Pyro site; without one, the function itself is returned.

    Returns:
        The initial value, shape of the site.
    """
    if site is None:
        return init_to_fan_in
    fn = site["fn"]
    if not is_real(fn.support) or fn.event_dim == 0:
        return init_to_median(site)
    value = torch.zeros_like(fn.sample())
    if fn.event_dim > 1:
        value.uniform_(-1, 1).div_(math.sqrt(_fan_in(fn)))
    value._pyro_custom_init = False  # type: ignore[attr-defined]
    return value


def init_to_network(site: dict[str, Any]) -> Any:
    """The value that a network had when it was converted, or :func:`init_to_fan_in`."""
    prior = site["infer"].get("prior")
    return init_to_fan_in(site) if prior is None or prior.initial is None else prior.initial


def init_to_state(state: Mapping[str, Tensor], site: dict[str, Any]) -> Any:
    """The value in a state; for what it does not have, :func:`init_to_network`."""
    if site["name"] not in state:
        return init_to_network(site)
    return state[site["name"]].to(site["fn"].sample())


def checked_state(
    state: Mapping[str, Tensor], model: Callable[..., Any], sites: Iterable[dict[str, Any]]
) -> dict[str, Tensor]:
    """The values that the ``state_dict`` of a deterministic network has for the sites of a model.

    Raises:
        ValueError: if names or shapes are those of another network, or if the network has other
            values than the model where the model is deterministic.
    """
    shapes = {site["name"]: site["fn"].shape() for site in sites}
    own, others = own_state(model), other_names(model)
    values = {}
    for name, value in state.items():
        site = others.get(name, name)
        if site not in shapes and name not in own:
            raise ValueError(
                f"`init_loc_fn` has a value for `{name}`, which the model has not: among its "
                f"weights are {list(shapes)[:3]}. Give it the names of the model"
            )
        shape = shapes[site] if site in shapes else own[name].shape
        if value.shape != shape:
            raise ValueError(
                f"`init_loc_fn` has a value of shape {tuple(value.shape)} for `{name}`, whose "
                f"shape is {tuple(shape)}"
            )
        if site in shapes:
            values[site] = value
        elif not torch.equal(own[name].to(value), value):
            raise ValueError(
                f"`init_loc_fn` has another value for `{name}` than the model, where it is "
                "deterministic: load it by `model.load_state_dict(state, strict=False)`"
            )
    return values


@dataclass(frozen=True)
class init_to_fraction:
    r"""Starts scales in proportion to the weights, :math:`\sigma = \max(\delta |w|, \epsilon)`.

    With a prior around the weights of a trained network (:class:`pyro_bnn.priors.Pretrained`) this
    is MOPED, model priors extracted from deterministic networks.

    Args:
        fraction: :math:`\delta`, positive.
        least: :math:`\epsilon`, positive, for weights near zero.

    Raises:
        ValueError: if an argument is not positive.

    References:
        Krishnan, Subedar and Tickoo (2020), "Specifying weight priors in Bayesian deep neural
        networks with empirical Bayes", arXiv:1906.05323.

    Example:
        >>> guide = AutoLRT(BayesianLinear(3, 2), init_scale=init_to_fraction(0.1))
        >>> bool((guide["weight"].base().stddev <= 0.1).all())
        True
    """

    fraction: float = 0.1
    least: float = 1e-4

    def __post_init__(self) -> None:
        check_positive(fraction=self.fraction, least=self.least)

    def __call__(self, site: dict[str, Any], loc: Tensor) -> Tensor:
        return (self.fraction * loc.abs()).clamp(min=self.least)


def default_scale(site: dict[str, Any]) -> float:
    """The initial scale of a site's posterior where the guide is given none."""
    fn = site["fn"]
    if not is_real(fn.support) or fn.event_dim == 0:
        return 0.1
    return 0.03 / math.sqrt(_fan_in(fn))


def _fan_in(fn: Any) -> int:
    return max(1, fn.event_shape[1:].numel())
