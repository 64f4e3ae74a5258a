"""Networks of layers with posteriors of their own, as a whole: in plain torch, and in Pyro."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from typing import Any

import pyro
from torch import Tensor, nn

from ..conversion._pyro_modules import join, make_pyro, make_random
from ..conversion._weights import copied
from ..guides import AutoPosterior, AutoReparameterization
from ..guides._sites import sample_attributes
from ..infer._kl import add_up, total_kl
from ..nn._prior import Prior
from ..posteriors import Posterior
from ..posteriors._together import distributions
from ._returns_kl import ReturnsKL, Site
from ._twin import Twins
from ._variational import VariationalLayer


class WithKL(ReturnsKL):
    r"""A network of layers of :mod:`pyro_bnn.compat` that returns ``(output, kl)`` as a whole.

    In there the layers return their outputs alone, as torch's do, so that they fit into
    ``nn.Sequential`` and into any other network. A weight is drawn once for a call, however often
    its layer is used. The loss of a mini-batch of ``B`` out of ``N`` data is ``N / B * nll + kl``.
    ``net`` itself stays as it is: what its layers return elsewhere is what they returned.

    Args:
        net: a network with such layers, however deep inside; shared, not copied.
        kl_weight: factor of the KL divergence that is returned, at least 0; 1 for the ELBO. May be
            assigned between steps, and is by :class:`~pyro_bnn.infer.KLWarmup`.

    Returns:
        A call returns the output of ``net``, and the sum of the KL divergences of all layers, each
        once, times ``kl_weight``, a scalar.

    Raises:
        ValueError: if the network has no such layer, or ``kl_weight`` is negative or not finite; in
            the first call, if the network calls ``pyro.sample`` itself; in a backward pass through
            ``kl`` that is not compiled, if a gradient is not finite.

    Example:
        >>> net = torch.nn.Sequential(LinearFlipout(3, 4), torch.nn.ReLU(), LSTMRadial(4, 2))
        >>> (hidden, _), kl = WithKL(net)(torch.ones(5, 7, 3))
        >>> hidden.shape, kl.shape
        (torch.Size([5, 7, 2]), torch.Size([]))
    """

    _made_for: list[VariationalLayer]

    def __init__(self, net: nn.Module, *, kl_weight: float = 1.0) -> None:
        super().__init__(kl_weight)
        _layers(net)
        self.net = net
        self._set_up()

    def _trained_posteriors(self) -> Iterable[Posterior]:
        return (q for layer in _layers(self.net) for q in layer._posteriors.values())

    def _is_current(self) -> bool:
        layers = _layers(self.net)
        return len(layers) == len(self._made_for) and all(map(is_, layers, self._made_for))

    def _set_up(self) -> None:
        layers = self.__dict__["_made_for"] = _layers(self.net)
        sites = [Site(q, layer, key) for layer in layers for key, q in layer._posteriors.items()]
        self._set_sites(sites, Twins(self.net, VariationalLayer))

    def _is_random(self, module: VariationalLayer) -> bool:
        return module._is_random

    def _kl_before_draws(self, posteriors: list[Any]) -> Tensor:
        apart: dict[VariationalLayer, dict[str, Any]] = defaultdict(dict)
        pairs = []
        for (_, layer, key), q in zip(self._sites, posteriors, strict=True):
            if layer._computes_kl:
                apart[layer][key] = q
            else:
                pairs.append(layer._pair(key, q))
        return add_up([*(layer._kl(qs) for layer, qs in apart.items()), total_kl(pairs)])


def to_pyro(
    net: nn.Module, model: Callable[[Any], Callable[..., Any]] | None = None
) -> tuple[Any, AutoPosterior]:
    """A network of layers of :mod:`pyro_bnn.compat` as a Pyro model, and a guide of it.

    They share their parameters with ``net``: what ``SVI`` trains, ``net`` has, and the other way
    round. Layers return what they do in ``net``, with a KL divergence of zero, since the guide's is
    the one that counts, in nats whatever their ``kl_reduction``; those of ``WithKL(net)`` return
    their outputs alone. ``Standalone(pyro_net, guide)`` goes back, as does ``net`` itself.

    Args:
        net: a network with such layers, however deep inside, or a :class:`WithKL` of one.
        model: makes the whole model, with a likelihood, of the Pyro network: a PyroModule class, or
            a function that returns a function. By default the network itself is the model; its
            guide also fits functions that call the network and have no latent variables but its
            weights.

    Returns:
        The Pyro network, or what ``model`` makes of it, whose sites have torch's names
        (``"0.weight"``); and a guide, with the layers' own posteriors and estimators. Latent
        variables of the model that are no weights get posteriors as in any guide.

    Raises:
        ValueError: if the network has no such layer.

    Example:
        >>> net = torch.nn.Sequential(bensemble.BayesianLinear(3, 4), torch.nn.ReLU())
        >>> pyro_net, guide = to_pyro(net)
        >>> list(guide)
        ['0.weight', '0.bias']
    """
    is_whole = isinstance(net, WithKL)
    net = net.net if isinstance(net, WithKL) else net
    layers = _layers(net)
    memo: dict[int, Any] = {id(t): t for t in [*net.parameters(), *net.buffers()]}
    memo |= {id(layer._posteriors): {} for layer in layers}
    pyro_net: Any = copied(net, memo)
    make_pyro(pyro_net, {id(memo[id(layer)]) for layer in layers})
    posteriors = {}
    for layer in layers:
        twin = memo[id(layer)]
        if is_whole:
            twin.dnn_to_bnn_flag = True
        for key, q in layer._posteriors.items():
            loc = layer._get(layer._name(key, "mu"))
            make_random(twin, key, Prior(layer._prior(key), loc, 1, "prior"))
            posteriors[id(twin), key] = q
            for name in q._parameters.names.values():  # type: ignore[attr-defined]
                holder, attribute = twin._holder(name)
                del holder._parameters[attribute]
    join(pyro_net)
    whole = pyro_net if model is None else model(pyro_net)
    sites = {
        name: partial(_same, posteriors[id(module), key])
        for name, module, key, _ in sample_attributes(pyro_net)
        if (id(module), key) in posteriors
    }
    return whole, (_OfWeights if model is None else AutoReparameterization)(whole, sites=sites)


class _OfWeights(AutoReparameterization):
    """A guide that knows its sites without a run of the model, whatever its arguments are."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self._check_nan(args, kwargs)
        posteriors = distributions(map(self.__getitem__, self), shared=self.is_shared)
        return {name: pyro.sample(name, q) for name, q in zip(self, posteriors, strict=True)}


def _same(posterior: Posterior, *args: Any, **kwargs: Any) -> Posterior:
    return posterior


def _layers(net: nn.Module) -> list[VariationalLayer]:
    layers = [m for m in net.modules() if isinstance(m, VariationalLayer) and m._posteriors]
    if not layers:
        raise ValueError(
            "`net` has no layers of `pyro_bnn.compat`: build it of such, or use "
            "`Standalone(net, guide)` for a network of `pyro_bnn.nn`"
        )
    return layers
