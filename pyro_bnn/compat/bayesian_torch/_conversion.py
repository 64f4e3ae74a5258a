"""Whole networks made Bayesian."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..._validation import check_positive
from ...conversion._classes import LINEAR
from ...conversion._weights import weights
from ...guides import init_to_fraction
from ...infer._kl import add_up
from .._checks import check_broadcasts, check_finite, check_variances
from .._variational import VariationalLayer
from . import _layers
from ._base import check_reduction

KINDS: dict[type[nn.Module], str] = {kind: kind.__name__ for kind in (*LINEAR, nn.LSTM)}


def dnn_to_bnn(m: nn.Module, bnn_prior_parameters: Mapping[str, Any]) -> None:
    """Makes the linear, convolutional and LSTM layers of a network Bayesian, in place.

    Modules keep their identity, so that shared ones stay shared and ``m`` itself may be a layer;
    all of their arguments stay, too. The layers then return outputs alone, so that the network runs
    as it did; :func:`get_kl_loss` gives the KL divergence.

    Args:
        m: the network.
        bnn_prior_parameters: ``prior_mu``, ``prior_sigma`` (a standard deviation),
            ``posterior_mu_init``, ``posterior_rho_init``, ``type`` ("Reparameterization",
            "Flipout", "Radial" or "Mixture"), and maybe ``kl_reduction``, ``moped_enable`` and
            ``moped_delta``: then posteriors and priors have the trained weights as means, and a
            posterior's standard deviation is ``moped_delta`` times the size of its weight, at least
            1e-4.

    Raises:
        TypeError: if a layer cannot be converted, naming its path and the reason.
        ValueError: if a parameter is missing or unknown, or there is nothing to convert.

    References:
        Krishnan, Subedar and Tickoo (2020), arXiv:1906.05323 (MOPED).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> parameters = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0}
        >>> parameters |= {"posterior_rho_init": -3.0, "type": "Flipout", "moped_enable": False}
        >>> dnn_to_bnn(net, parameters)
        >>> net(torch.ones(5, 3)).shape, get_kl_loss(net).shape
        (torch.Size([5, 2]), torch.Size([]))
    """
    parameters = _checked(bnn_prior_parameters)
    found = [(path or "m", layer) for path, layer in m.named_modules() if _is_meant(layer)]
    if not found:
        raise ValueError("`m` has no linear, convolutional or LSTM layers to convert")
    for path, layer in found:
        reason = _reason(layer, parameters)
        if reason:
            raise TypeError(f"`{path}`, a {type(layer).__name__}, {reason}")
        for parameter in layer.parameters(recurse=False):
            for name in ("prior_mu", "prior_sigma"):
                check_broadcasts(name, parameters[name], parameter.shape)
    for weight in weights(m):
        if len({id(layer) for _, layer, _ in weight.places}) > 1:
            raise TypeError(
                f"`{weight.name}` is also `{weight.names[1]}`, but two layers would have two "
                "posteriors: convert by `pyro_bnn.bayesianize`, which keeps it one weight"
            )
    for _, layer in found:
        _convert(layer, parameters)


def converted(params: Mapping[str, Any], d: nn.Module) -> nn.Module:
    """A Bayesian copy of one layer of torch's; see :func:`dnn_to_bnn`."""
    layer = copy.deepcopy(d)
    dnn_to_bnn(layer, params)
    return layer


def get_kl_loss(m: nn.Module) -> Tensor:
    """The KL divergence of all Bayesian layers of a network, each once.

    Raises:
        ValueError: if there are none.
    """
    layers: list[Any] = [layer for layer in m.modules() if hasattr(layer, "kl_loss")]
    if not layers:
        raise ValueError("`m` has no Bayesian layers: convert it by `dnn_to_bnn`")
    return add_up(layer.kl_loss() for layer in layers)


_REQUIRED = ("prior_mu", "prior_sigma", "posterior_mu_init", "posterior_rho_init", "type")
_OPTIONAL = ("moped_enable", "moped_delta", "kl_reduction")
_TYPES = ("Reparameterization", "Flipout", "Radial", "Mixture")


def _checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in _REQUIRED if key not in parameters]
    unknown = [key for key in parameters if key not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        raise ValueError(
            f"`bnn_prior_parameters` lacks {missing} and has unknown {unknown}: it takes "
            f"{[*_REQUIRED, *_OPTIONAL]}"
        )
    if parameters["type"] not in _TYPES:
        raise ValueError(f"`type` (={parameters['type']!r}) must be one of {_TYPES}")
    if parameters.get("moped_enable"):
        if "moped_delta" not in parameters:
            raise ValueError("`moped_enable` needs `moped_delta`, a fraction of each weight's size")
        check_positive(moped_delta=parameters["moped_delta"])
    check_reduction(parameters.get("kl_reduction", "sum"))
    check_variances(prior_sigma=parameters["prior_sigma"])
    for name in ("prior_mu", "posterior_mu_init", "posterior_rho_init"):
        check_finite(**{name: parameters[name]})
    return dict(parameters)


def _is_meant(layer: nn.Module) -> bool:
    return isinstance(layer, tuple(KINDS))


def _reason(layer: nn.Module, parameters: Mapping[str, Any]) -> str | None:
    """Why a layer cannot be converted."""
    remedy = "convert by `pyro_bnn.bayesianize`, which takes any module"
    if type(layer) not in KINDS:
        return f"is a subclass of torch's layer with a computation of its own: {remedy}"
    if isinstance(layer, nn.LSTM):
        plain = (layer.num_layers, layer.bidirectional, layer.proj_size, layer.dropout)
        if plain != (1, False, 0, 0.0) or not layer.batch_first:
            return (
                "is not one layer in one direction with `batch_first=True`, which is all that the "
                f"LSTMs of bayesian-torch are: {remedy}"
            )
        if parameters.get("moped_enable") and parameters["type"] == "Mixture":
            return NO_MOPED
    if parameters.get("moped_enable") and parameters["type"] in ("Radial", "Mixture"):
        return NO_MOPED
    return None


NO_MOPED = (
    "cannot have a posterior of this `type` with `moped_enable`, which is for Normal posteriors: "
    "use `Reparameterization` or `Flipout`"
)


def _convert(layer: Any, parameters: Mapping[str, Any]) -> None:
    cls = getattr(_layers, KINDS[type(layer)] + parameters["type"])
    trained = {key: p.detach().clone() for key, p in layer.named_parameters(recurse=False)}
    layer.__class__ = cls
    layer._set_up(
        prior_mean=parameters["prior_mu"],
        prior_variance=parameters["prior_sigma"] ** 2,
        posterior_mu_init=parameters["posterior_mu_init"],
        posterior_rho_init=parameters["posterior_rho_init"],
        kl_reduction=parameters.get("kl_reduction", "sum"),
    )
    layer.dnn_to_bnn_flag = True
    if parameters.get("moped_enable"):
        for key, weight in trained.items():
            scale = init_to_fraction(parameters["moped_delta"])({}, weight)
            set_to_trained(layer, key, weight, scale + torch.log(-torch.expm1(-scale)))


@torch.no_grad()
def set_to_trained(layer: VariationalLayer, key: str, weight: Tensor, rho: Tensor) -> None:
    """MOPED: the trained weight as the mean of posterior and prior."""
    layer._get(layer._name(key, "mu")).copy_(weight)
    layer._get(layer._name(key, "rho")).copy_(rho)
    layer._set_prior_part(key, "mu", weight.to(layer._get(layer._name(key, "mu"))))
