"""Networks of layers that own their posteriors, as a whole: in plain torch, and in Pyro."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion._bayesianize import join, make_pyro, make_random
from ..conversion._weights import copied
from ..guides import AutoPosterior, AutoReparameterization
from ..nn._prior import Prior
from ..posteriors import Posterior
from ._variational import VariationalLayer, state_to_pickle


class WithKL(nn.Module):
    r"""A network of layers of :mod:`pyro_bnn.compat` that returns ``(output, kl)`` as a whole.

    From then on the layers return their outputs alone, as torch's do, so that they fit into
    ``nn.Sequential`` and into any other network. The loss of a mini-batch of ``B`` out of ``N``
    data is ``N / B * nll + kl``.

    Args:
        net: a network with such layers, however deep inside; shared, not copied.

    Returns:
        From a call: the output of ``net``, and the sum of the divergences of all layers, each once,
        a scalar.

    Raises:
        ValueError: if the network has no such layer.

    Example:
        >>> net = torch.nn.Sequential(LinearFlipout(3, 4), torch.nn.ReLU(), LSTMRadial(4, 2))
        >>> (hidden, _), kl = WithKL(net)(torch.ones(5, 7, 3))
        >>> hidden.shape, kl.shape
        (torch.Size([5, 7, 2]), torch.Size([]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for _, layer in _layers(net):
            layer.dnn_to_bnn_flag = True
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        output = self.net(*args, **kwargs)
        divergences = [layer._kl(layer._distributions()) for _, layer in _layers(self.net)]
        return output, torch.stack(divergences).sum()

    def __getstate__(self) -> dict[str, Any]:
        return state_to_pickle(self)


def to_pyro(net: nn.Module) -> tuple[nn.Module, AutoPosterior]:
    """A network of layers of :mod:`pyro_bnn.compat` as a Pyro model, and a guide of it.

    They share their parameters with ``net``: what ``SVI`` trains, ``net`` has, and the other way
    round. Layers return what they did, with a divergence of zero, since the guide's is the one that
    counts. ``Standalone(pyro_net, guide)`` goes back, as does ``net`` itself.

    Args:
        net: a network with such layers, however deep inside.

    Returns:
        The Pyro model, with the priors of the layers at sites with torch's names (``"0.weight"``),
        and the guide, with the layers' own posteriors and estimators.

    Raises:
        ValueError: if the network has no such layer.

    Example:
        >>> net = torch.nn.Sequential(bensemble.BayesianLinear(3, 4), torch.nn.ReLU())
        >>> pyro_net, guide = to_pyro(net)
        >>> list(guide)
        ['0.weight', '0.bias']
    """
    posteriors: dict[str, Posterior] = {}
    memo: dict[int, Any] = {id(t): t for t in [*net.parameters(), *net.buffers()]}
    for path, layer in _layers(net):
        memo[id(layer._posteriors)] = {}
        for key, q in layer._posteriors.items():
            posteriors[f"{path}.{key}" if path else key] = q
    new: Any = copied(net, memo)
    make_pyro(new, {id(new.get_submodule(path)) for path, _ in _layers(net)})
    for path, layer in _layers(net):
        twin: Any = new.get_submodule(path)
        for key, q in layer._posteriors.items():
            loc = layer._get(layer._name(key, "mu"))
            make_random(twin, key, Prior(layer._prior(key), loc, 1, "prior"))
            for name in q._parameters.names.values():  # type: ignore[attr-defined]
                holder, own = twin._holder(name)
                del holder._parameters[own]
    join(new)
    factories = {name: partial(_same, q) for name, q in posteriors.items()}
    return new, AutoReparameterization(new, sites=factories)


def _same(posterior: Posterior, loc: Tensor, scale: Any, event_dim: int) -> Posterior:
    return posterior


def _layers(net: nn.Module) -> list[tuple[str, VariationalLayer]]:
    layers = [
        (path, layer)
        for path, layer in net.named_modules()
        if isinstance(layer, VariationalLayer) and layer._posteriors
    ]
    if not layers:
        raise ValueError(
            "`net` has no layers of `pyro_bnn.compat`: build it of such, or use "
            "`Standalone(net, guide)` for a network of `pyro_bnn.nn`"
        )
    return layers
