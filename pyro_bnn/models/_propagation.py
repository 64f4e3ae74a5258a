"""Moments of activations in closed form, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..conversion import to_deterministic
from ..conversion._classes import LINEAR
from ..guides import AutoPosterior
from ..guides._sites import other_names
from ..posteriors import NormalPosterior
from ..posteriors._normal import ConstrainedPosterior


class Moments(NamedTuple):
    """Mean and variance of each entry of a tensor; a variance of None is 0."""

    mean: Tensor
    variance: Tensor | None


Step = Callable[[Moments], Moments]


def propagation(net: nn.Module, guide: AutoPosterior) -> Step:
    """From the moments of a network's inputs to those of its outputs.

    Raises:
        TypeError: if ``guide`` is not of pyro_bnn, or a forward is written in a PyroModule.
        ValueError: if a layer or a posterior has no rule.
    """
    plain = to_deterministic(net, guide).eval()
    prefix = getattr(net, "_pyro_name", "")
    sites = {name.removeprefix(prefix).lstrip("."): site for name, site in other_names(net).items()}
    steps, used = [], set[str]()
    for path, layer in _layers(plain, ""):
        names = [name for name, _ in layer.named_parameters()]
        own = {n: sites[_join(path, n)] for n in names if _join(path, n) in sites}
        if not used.isdisjoint(own.values()):
            raise _refusal(path, layer, "shares weights with another layer")
        used.update(own.values())
        variances = {name: _variance(guide[site], site) for name, site in own.items()}
        steps.append(_step(path, layer, variances))

    def propagate(x: Moments) -> Moments:
        for step in steps:
            x = step(x)
        return x

    return propagate


def _layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():  # with those that are there twice
        yield from _layers(child, _join(path, name))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _variance(posterior: Any, site: str) -> Tensor:
    is_normal = isinstance(posterior, NormalPosterior)
    if not is_normal or isinstance(posterior, ConstrainedPosterior):
        raise ValueError(
            f"the posterior of `{site}` is a {type(posterior).__name__}: moments are propagated "
            "for mean-field Normals, those of `AutoLRT`, say; for others draw samples, by `predict`"
        )
    return posterior._masked(posterior.base().variance)


def _step(path: str, layer: nn.Module, variances: dict[str, Tensor]) -> Step:
    kind = type(layer)
    if kind in LINEAR:
        return lambda x: _linear(layer, variances, x)
    if kind not in _RULES:
        raise _refusal(path, layer, "has no rule")
    if variances:
        raise _refusal(path, layer, f"has random {list(variances)}")
    rule = _RULES[kind]
    if rule is _normalised and layer.running_mean is None:
        raise _refusal(path, layer, "normalises by the statistics of a batch")
    # Without uncertainty all layers are functions.
    return lambda x: rule(layer, x) if x.variance is not None else Moments(layer(x.mean), None)


def _refusal(path: str, layer: nn.Module, problem: str) -> ValueError:
    known = sorted(kind.__name__ for kind in (*LINEAR, *_RULES))
    return ValueError(
        f"moments cannot be propagated: `{path or 'net'}`, a {type(layer).__name__}, {problem}. "
        f"Draw samples, by `predict`, or make the network an `nn.Sequential` of {', '.join(known)}"
    )


# Layers with weights, which are linear in their inputs and in their weights.


def _linear(layer: nn.Module, variances: dict[str, Tensor], x: Moments) -> Moments:
    r"""By independence, :math:`V[wx] = V[w] (E[x]^2 + V[x]) + E[w]^2 V[x]`."""
    mean = layer(x.mean)
    if x.variance is None and not variances:
        return Moments(mean, None)
    given = dict(layer.named_parameters())
    spread = {name: variances.get(name, torch.zeros_like(value)) for name, value in given.items()}
    variance = functional_call(layer, spread, (x.mean.square(),))
    if x.variance is not None:
        squares = {name: torch.zeros_like(value) for name, value in given.items()}
        squares["weight"] = spread["weight"] + given["weight"].square()
        variance = variance + functional_call(layer, squares, (x.variance,))
    return Moments(mean, variance)


# Layers without weights.


def _rearranged(layer: Any, x: Any) -> Moments:
    return Moments(layer(x.mean), layer(x.variance))


def _averaged(layer: Any, x: Any) -> Moments:
    """Of values that are wholly correlated: those of a convolution share its weights."""
    return Moments(layer(x.mean), layer(x.variance.sqrt()).square())


def _normalised(layer: Any, x: Any) -> Moments:
    """Batch normalisation in evaluation mode, which is linear."""
    offset = layer(torch.zeros_like(x.mean))
    slope = layer(torch.ones_like(x.mean)) - offset
    return Moments(slope * x.mean + offset, slope.square() * x.variance)


def _relu(layer: Any, x: Any) -> Moments:
    """Of a Normal: the moments of max(0, x)."""
    return _leaky(0.0, x)


def _leaky_relu(layer: Any, x: Any) -> Moments:
    return _leaky(layer.negative_slope, x)


def _leaky(slope: float, x: Any) -> Moments:
    stddev = x.variance.sqrt()
    # Beyond 40, one of the two sides has no probability left.
    a = (x.mean / stddev.clamp(min=torch.finfo(stddev.dtype).tiny)).clamp(-40, 40)
    above, below = torch.special.ndtr(a), torch.special.ndtr(-a)
    density = (-0.5 * a.square()).exp() / math.sqrt(2 * math.pi)
    mean = x.mean * above + stddev * density
    # E[max(0, x)^2] - mean^2, without their difference.
    part = above + a * (a * above * below + density * (below - above)) - density.square()
    variance = x.variance * part.clamp(min=0)
    if slope:
        rest = 1 - slope  # the function is slope * x + rest * max(0, x)
        covariance = x.variance * above
        variance = slope**2 * x.variance + rest**2 * variance + 2 * slope * rest * covariance
        mean = slope * x.mean + rest * mean
    return Moments(mean, variance)


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)


def _smooth(layer: Any, x: Any) -> Moments:
    """Of a Normal, by Gauss-Hermite quadrature."""
    stddev, center = x.variance.sqrt(), layer(x.mean)
    first, second = torch.zeros_like(center), torch.zeros_like(center)
    for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
        difference = layer(x.mean + float(node) * stddev) - center
        first += float(weight) * difference
        second += float(weight) * difference.square()
    return Moments(center + first, (second - first.square()).clamp(min=0))


_KINDS: dict[Callable[[Any, Any], Moments], tuple[type[nn.Module], ...]] = {
    _rearranged: (
        nn.Identity,
        nn.Flatten,
        nn.Unflatten,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
    ),
    _averaged: (
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
    ),
    _normalised: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    _relu: (nn.ReLU,),
    _leaky_relu: (nn.LeakyReLU,),
    _smooth: (nn.ELU, nn.GELU, nn.Mish, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh),
}
_RULES = {kind: rule for rule, kinds in _KINDS.items() for kind in kinds}
