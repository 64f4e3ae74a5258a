"""Networks of layers that own their posteriors, as a whole: in plain torch, and in Pyro."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..conversion._pyro_modules import join, make_pyro, make_random
from ..conversion._weights import copied
from ..guides import AutoPosterior, AutoReparameterization
from ..guides._sites import sample_attributes
from ..infer._kl import add_up, total_kl
from ..nn._prior import Prior
from ..posteriors import Posterior
from ..posteriors._together import distributions
from ._training import ReturnsKL
from ._twin import Twins
from ._variational import VariationalLayer, state_to_pickle


class WithKL(ReturnsKL):
    r"""A network of layers of :mod:`pyro_bnn.compat` that returns ``(output, kl)`` as a whole.

    From then on the layers return their outputs alone, as torch's do, so that they fit into
    ``nn.Sequential`` and into any other network. The loss of a mini-batch of ``B`` out of ``N``
    data is ``N / B * nll + kl``.

    Args:
        net: a network with such layers, however deep inside; shared, not copied.
        kl_weight: factor of the KL divergence that is returned, at least 0; 1 for the ELBO. May be
            assigned between steps, and is by :class:`~pyro_bnn.infer.KLWarmup`.

    Returns:
        From a call: the output of ``net``, and the sum of the KL divergences of all layers, each
        once, times ``kl_weight``, a scalar.

    Raises:
        ValueError: if the network has no such layer, or ``kl_weight`` is negative or not finite; in
            a backward pass through ``kl`` that is not compiled, if a gradient is not finite.

    Example:
        >>> net = torch.nn.Sequential(LinearFlipout(3, 4), torch.nn.ReLU(), LSTMRadial(4, 2))
        >>> (hidden, _), kl = WithKL(net)(torch.ones(5, 7, 3))
        >>> hidden.shape, kl.shape
        (torch.Size([5, 7, 2]), torch.Size([]))
    """

    def __init__(self, net: nn.Module, *, kl_weight: float = 1.0) -> None:
        super().__init__(kl_weight)
        for _, layer in _layers(net):
            layer.dnn_to_bnn_flag = True
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        layers = [layer for _, layer in _layers(self.net)]
        made = iter(distributions(q for layer in layers for q in layer._posteriors.values()))
        given: list[tuple[VariationalLayer, dict[str, Distribution]]] = [
            (layer, {key: next(made) for key in layer._posteriors}) for layer in layers
        ]
        # First, as in `Standalone`, since autograd goes backwards.
        kl = _total(given)
        net, bodies = self._bodies(layers)
        try:
            for body, (_, posteriors) in zip(bodies, given, strict=True):
                body.__dict__["_given"] = posteriors  # each is made once, not again for its KL
                # An activation checkpoint with reentrance has none at first.
                body.__dict__["_has_graph"] = torch.is_grad_enabled()
            return net(*args, **kwargs), self._weighted(kl)
        finally:
            if bodies is layers:
                for layer in layers:
                    layer.__dict__.pop("_given", None)
                    layer.__dict__.pop("_has_graph", None)

    def _bodies(self, layers: list[VariationalLayer]) -> tuple[nn.Module, list[Any]]:
        """The network and its layers, for one call."""
        if torch.compiler.is_compiling():  # which makes no modules
            return self.net, layers
        known, twins = self.__dict__.get("_twins", ((), None))
        if len(known) != len(layers) or not all(map(is_, known, layers)):
            twins = Twins(self.net, VariationalLayer)
            self.__dict__.pop("_watched", None)
            self.__dict__["_twins"] = layers, twins
        made = twins()
        return made[-1], [made[twins.index[id(layer)]] for layer in layers]

    def _trained_posteriors(self) -> Iterable[Posterior]:
        return (q for _, layer in _layers(self.net) for q in layer._posteriors.values())

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in state_to_pickle(self).items() if k not in _MADE}

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        for name in _MADE:
            replica.__dict__.pop(name, None)
        return replica


_MADE = ("_twins", "_watched")


def _total(given: list[tuple[VariationalLayer, dict[str, Distribution]]]) -> Tensor:
    apart = [layer._kl(posteriors) for layer, posteriors in given if layer._has_kl_of_its_own]
    sums = total_kl(
        layer._pair(key, q)
        for layer, posteriors in given
        if not layer._has_kl_of_its_own
        for key, q in posteriors.items()
    )
    return add_up([*apart, sums])


def to_pyro(
    net: nn.Module, model: Callable[[Any], Callable[..., Any]] | None = None
) -> tuple[Any, AutoPosterior]:
    """A network of layers of :mod:`pyro_bnn.compat` as a Pyro model, and a guide of it.

    They share their parameters with ``net``: what ``SVI`` trains, ``net`` has, and the other way
    round. Layers return what they did, with a divergence of zero, since the guide's is the one that
    counts, in nats whatever their ``kl_reduction``. ``Standalone(pyro_net, guide)`` goes back, as
    does ``net`` itself.

    Args:
        net: a network with such layers, however deep inside.
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
    memo: dict[int, Any] = {id(t): t for t in [*net.parameters(), *net.buffers()]}
    memo |= {id(layer._posteriors): {} for _, layer in _layers(net)}
    pyro_net: Any = copied(net, memo)
    make_pyro(pyro_net, {id(memo[id(layer)]) for _, layer in _layers(net)})
    posteriors = {}
    for _, layer in _layers(net):
        twin = memo[id(layer)]
        for key, q in layer._posteriors.items():
            loc = layer._get(layer._name(key, "mu"))
            make_random(twin, key, Prior(layer._prior(key), loc, 1, "prior"))
            posteriors[id(twin), key] = q
            for name in q._parameters.names.values():  # type: ignore[attr-defined]
                holder, own = twin._holder(name)
                del holder._parameters[own]
    join(pyro_net)
    whole = pyro_net if model is None else model(pyro_net)
    own = {
        name: partial(_same, posteriors[id(module), key])
        for name, module, key, _ in sample_attributes(pyro_net)
        if (id(module), key) in posteriors
    }
    return whole, (_OfWeights if model is None else AutoReparameterization)(whole, sites=own)


class _OfWeights(AutoReparameterization):
    """A guide that knows its sites without a run of the model, whatever its arguments are."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self._check_nan(args, kwargs)
        posteriors = distributions(map(self.__getitem__, self), shared=self.is_shared)
        return {name: pyro.sample(name, q) for name, q in zip(self, posteriors, strict=True)}


def _same(posterior: Posterior, *args: Any, **kwargs: Any) -> Posterior:
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
