"""The exact posterior of the last layer of a regression, given its features."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from .._tensors import map_tensors
from ..guides import AutoPosterior
from ..guides._sites import sample_attributes
from ..infer._data import arguments
from ..posteriors import FullNormalPosterior
from ._batches import batches
from ._bnn import BNN
from ._contexts import evaluating
from ._inputs import device_and_dtype
from ._rows import innermost


@torch.no_grad()
def refit_last_layer(
    model: BNN, guide: AutoPosterior, data: Any, *, batch_size: int | None = None
) -> float:
    r"""Gives the last layer its exact posterior, in one pass over the data.

    With the inputs :math:`\phi_n` of the last layer as features this is Bayesian linear regression:
    for each target, with prior :math:`N(m, \mathrm{diag}(s^2))` and noise :math:`\sigma^2`,

    .. math::
        \Lambda = \frac{\phi^T \phi}{\sigma^2} + \mathrm{diag}(s^{-2}), \qquad
        \mu = \Lambda^{-1} \Bigl(\frac{\phi^T y}{\sigma^2} + \frac{m}{s^2}\Bigr), \qquad
        q(w) = N(\mu, \Lambda^{-1}).

    All that is not of the last layer stays as it is: other weights have the median of their
    posteriors, and so has a random noise.

    Args:
        model: with the likelihood ``Normal``, and a last layer ``nn.Linear``, whose outputs are
            those of the network. Its bias is deterministic, if there is one; to have a random one,
            let the features have a constant.
        guide: whose posterior of the weight of the last layer is a
            :class:`~pyro_bnn.posteriors.FullNormalPosterior`, by
            ``sites={"net.2.weight": FullNormalPosterior}``.
        data: as for :func:`~pyro_bnn.fit`, without masks and weights.
        batch_size: rows to process at once.

    Returns:
        The log evidence of the data given the features, in nats,

        .. math::
            -\frac12 \Bigl[N \ln 2 \pi \sigma^2 + \ln |\Lambda| + \sum \ln s^2
            + \frac{\lVert y - \phi\mu \rVert^2}{\sigma^2} + \sum \frac{(\mu - m)^2}{s^2}\Bigr].

    Raises:
        TypeError: if ``model`` is no BNN, or ``guide`` not of pyro_bnn.
        ValueError: if the guide has no such posterior, or model or data are not as above. Nothing
            has changed then.

    Example:
        >>> from pyro_bnn import BNN, likelihoods, refit_last_layer
        >>> from pyro_bnn.posteriors import FullNormalPosterior
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh())
        >>> net.append(torch.nn.Linear(9, 1, bias=False))
        Sequential(...)
        >>> net = bayesianize(net, where="last_layer")
        >>> model = BNN(net, likelihoods.Normal(0.1))
        >>> guide = AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})
        >>> x = torch.linspace(-1, 1, 50).unsqueeze(-1)
        >>> evidence = refit_last_layer(model, guide, (x, x ** 2))
    """
    name, layer, posterior = _last_layer(model, guide)
    device, dtype = device_and_dtype(model, guide)
    fixed = {site: guide[site].median() for site in guide}
    sums: Any = None
    num_rows = 0
    features: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    with evaluating(model, guide):
        try:
            for batch in batches(data, batch_size, shuffle=False, dtype=dtype).epoch():
                features.clear()
                args, kwargs = arguments(map_tensors(lambda t: t.to(device), batch))
                run = poutine.trace(poutine.condition(model, fixed))
                trace: Any = run.get_trace(*args, **kwargs)
                phi, y = _regression(trace, name, layer, features, kwargs)
                new = phi.T @ phi, phi.T @ y, y.square().sum(0)
                sums = new if sums is None else tuple(map(torch.add, sums, new))
                num_rows += len(y)
        finally:
            hook.remove()
    if sums is None:
        raise ValueError("`data` is a DataLoader without batches: give it data")
    noise = innermost(trace.nodes["obs"]["fn"]).scale[0].double().reshape(-1)
    prior = innermost(trace.nodes[name]["fn"])
    if not isinstance(prior, torch.distributions.Normal):
        raise ValueError(f"the prior of `{name}` is {prior}: the closed form is for a Normal")
    square, cross, y_square = sums
    loc, tril, evidence = _posterior(
        square, cross, y_square, num_rows, noise, prior.loc, prior.scale
    )
    posterior.set(loc.to(dtype), torch.block_diag(*tril).to(dtype))
    return evidence


def _posterior(
    square: Tensor, cross: Tensor, y_square: Tensor, num: int, noise: Tensor, m: Tensor, s: Tensor
) -> tuple[Tensor, list[Tensor], float]:
    """Mean, Cholesky factors of the covariances, and log evidence, over all targets."""
    locs, trils, evidence = [], [], 0.0
    for k, variance in enumerate(noise.square()):
        mean, inverse = m[k].double(), s[k].double().square().reciprocal()
        precision = square / variance + torch.diag(inverse)
        factor, failed = torch.linalg.cholesky_ex(precision)
        if failed:
            raise ValueError(
                "the precision of the last layer is not positive definite in float64: the noise of "
                "the model is too small, or features too large, beside the scale of the prior"
            )
        shift = (cross[:, k] / variance + inverse * mean).unsqueeze(-1)
        loc = torch.cholesky_solve(shift, factor).squeeze(-1)
        locs.append(loc)
        trils.append(torch.linalg.cholesky(torch.cholesky_inverse(factor)))
        error = y_square[k] - 2 * loc @ cross[:, k] + loc @ square @ loc
        terms = num * (2 * math.pi * variance).log() + 2 * factor.diagonal().log().sum()
        terms += error / variance + (inverse * (loc - mean).square() - inverse.log()).sum()
        evidence -= 0.5 * terms.item()
    return torch.stack(locs), trils, evidence


def _last_layer(model: Any, guide: Any) -> tuple[str, nn.Linear, FullNormalPosterior]:
    if not isinstance(model, BNN):
        raise TypeError(f"`model` (={type(model).__name__}) must be a BNN")
    if not isinstance(guide, AutoPosterior):
        raise TypeError(f"`guide` (={type(guide).__name__}) must be one of pyro_bnn.guides")
    owners = {name: (module, key) for name, module, key, _ in sample_attributes(model)}
    found = [n for n in guide if isinstance(guide[n], FullNormalPosterior) and n in owners]
    layers = [(name, owners[name][0]) for name in found if owners[name][1] == "weight"]
    if len(layers) != 1 or not isinstance(layers[0][1], nn.Linear):
        raise ValueError(
            f"`guide` has a FullNormalPosterior for {found}: give it to the weight of one linear "
            f"layer, the last one, `sites={{name: FullNormalPosterior}}` with one of {list(owners)}"
        )
    name, layer = layers[0]
    if "bias" in vars(layer)["_pyro_samples"]:
        raise ValueError(
            f"the bias beside `{name}` is random, but not part of the closed form: build the layer "
            "with `bias=False`, or convert the weight alone by `where`"
        )
    return name, layer, guide[name]  # type: ignore[return-value]


def _regression(
    trace: Any, name: str, layer: nn.Linear, features: list[Tensor], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Features and targets without the bias, in double precision."""
    site = trace.nodes["obs"]
    base, output = innermost(site["fn"]), trace.nodes["_RETURN"]["value"]
    if not site["is_observed"] or any(kwargs.get(n) is not None for n in ("mask", "weight")):
        raise ValueError("`data` must have inputs and targets alone, as a tuple `(x, y)`")
    is_normal = isinstance(base, torch.distributions.Normal)
    if not is_normal or not bool((base.scale == base.scale[:1]).all()):
        raise ValueError(
            f"the targets are {base}: the closed form is for Normals with one noise for all rows, "
            "`likelihoods.Normal`"
        )
    weight = trace.nodes[name]["value"]
    alone = len(features) == 1 and features[0].dim() == 2
    own = F.linear(features[-1], weight, layer.bias) if alone else None
    if own is None or own.shape != output.shape or not torch.equal(own, output):
        raise ValueError(
            "the layer with the FullNormalPosterior is not the last one: its outputs are not those "
            "of the network"
        )
    y = site["value"].double().reshape(len(output), -1)
    return features[0].double(), y if layer.bias is None else y - layer.bias.double()
