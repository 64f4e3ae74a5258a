"""A Bayesian network as a plain torch module that returns (output, kl)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .._threads import PYRO
from ..guides import AutoPosterior
from ..guides._checks import check_posteriors
from ..guides._saving import check_load
from ..guides._sites import sample_attributes
from ..infer._kl import analytic_kl, kl, total_kl
from ..nn._layer import SitePrior
from ..nn._prior import Prior
from ..posteriors import Posterior
from ..posteriors._together import distributions
from ._training import ReturnsKL
from ._twin import Twins


class Standalone(ReturnsKL):
    r"""Runs a network on the posteriors of a guide, without Pyro's runtime: ``out, kl = m(x)``.

    .. math:: \mathrm{kl} = \sum_{\text{sites}} KL(q \Vert p)

    is a scalar in nats, once for each site, analytic where there is a formula and otherwise
    estimated at the draw that made the output. The loss of a mini-batch of ``B`` out of ``N``
    data is ``N / B * nll + kl``, or ``nll.mean() + kl / N`` with the mean over the batch.

    Network and guide are shared, not copied: what trains here is trained for ``SVI`` and
    ``Predictive``, and back. ``m.parameters()`` are those of the guide and whatever
    deterministic parameters the network has. ``torch.compile(m, fullgraph=True)`` works with
    each of the five posteriors.

    Args:
        net: a PyroModule with PyroSample attributes, whose forward calls no ``pyro.sample``.
        guide: a guide of it, or of a model that it is part of.
        sample: whether to draw weights, or to use the mean of each posterior (the median where
            a prior has a constraint). An attribute that may be assigned at any time, independent
            of ``train()`` and ``eval()``.
        kl_weight: factor of the KL divergence that is returned, at least 0; 1 for the ELBO. May be
            assigned between steps, and is by :class:`~pyro_bnn.infer.KLWarmup`.

    Returns:
        From a call: the output of ``net``, and the KL divergence times ``kl_weight``, a scalar.

    Raises:
        TypeError: if ``guide`` is not a guide of :mod:`pyro_bnn.guides`.
        ValueError: if the network has no random weights, or one without a posterior in the
            guide, or if ``kl_weight`` is negative or not finite; in the first call, if the network
            calls ``pyro.sample`` itself; in a backward pass through ``kl`` that is not compiled, if
            a gradient is not finite.

    Example:
        >>> net = BayesianLinear(3, 2)
        >>> out, kl = Standalone(net, AutoLRT(net))(torch.ones(5, 3))
        >>> out.shape, kl.shape
        (torch.Size([5, 2]), torch.Size([]))
    """

    _net: nn.Module  # what the following is made for
    _twins: Twins
    _lasting: list[Any]  # for the compiler
    _twin: nn.Module  # the last of them
    _sites: list[tuple[Posterior, Any, int, str]]  # with the module, its index among twins, a key
    _late: set[int]  # sites whose KL divergence has no formula, or a prior that depends on draws
    _checked: bool

    def __init__(
        self,
        net: nn.Module,
        guide: AutoPosterior,
        *,
        sample: bool = True,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__(kl_weight)
        check_posteriors(net, guide)
        self.net = net
        self.guide = guide
        self.sample = sample
        self._set_up()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        if self._net is not self._modules["net"]:  # as in the copies of `nn.DataParallel`
            self._set_up()
        sites, shared = self._sites, self.guide.is_shared
        if self.sample:
            posteriors = distributions((posterior for posterior, *_ in sites), shared=shared)
        else:
            posteriors = [posterior.distribution(shared=shared) for posterior, *_ in sites]
        # Autograd goes backwards: KL divergences that come first are differentiated last, when the
        # draws and their noise are no longer in memory.
        total = self._kl_before_draws(posteriors)
        if self.sample:
            values = [q.rsample() for q in posteriors]
        else:
            values = [posterior.center() for posterior, *_ in sites]
        compiles = torch.compiler.is_compiling()  # which makes no modules
        twins = self._lasting if compiles else self._twins()
        try:
            for (_, _, i, key), value in zip(sites, values, strict=True):
                # A plain tensor may have to be another one where activations are recomputed.
                is_plain = type(value) is Tensor and not compiles
                state = twins[i].__dict__
                (state["_drawn"] if is_plain else state)[key] = value
            output = self._run(twins[-1], *args, **kwargs)
            for k in self._late:
                _, _, i, key = sites[k]
                prior = _prior(twins[i], key)
                total = total + kl(posteriors[k], prior, values[k]).value.sum()
        finally:
            if compiles:
                for _, _, i, key in sites:
                    twins[i].__dict__.pop(key, None)
        return output, self._weighted(total)

    def _trained_posteriors(self) -> Iterable[Posterior]:
        return (self.guide[name] for name in self.guide)

    def _run(self, twin: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._checked or torch.compiler.is_compiling():
            return twin(*args, **kwargs)
        with PYRO, _NoSample():
            output = twin(*args, **kwargs)
        self.__dict__["_checked"] = True
        return output

    def _kl_before_draws(self, posteriors: list[Any]) -> Tensor:
        pairs = [
            (q, _prior(module, key))
            for i, (q, (_, module, _, key)) in enumerate(zip(posteriors, self._sites, strict=True))
            if i not in self._late
        ]
        return total_kl(pairs)

    def _set_up(self) -> None:
        # Kept out of the registered modules: it is the network once more.
        state = self.__dict__
        state.pop("_watched", None)
        state["_checked"] = False
        state["_net"] = self.net
        state["_twins"] = twins = Twins(self.net, PyroModule, Prior)
        state["_lasting"] = twins.lasting()
        state["_twin"] = state["_lasting"][-1]
        attributes = list(sample_attributes(self.net))
        state["_sites"] = [
            (self.guide[name], module, twins.index[id(module)], key)
            for name, module, key, _ in attributes
        ]
        with torch.no_grad():
            # Torch looks a formula up in a way that does not compile, but remembers what it found.
            kls = [analytic_kl(self.guide[name].distribution(), p) for name, _, _, p in attributes]
        state["_late"] = {
            i
            for i, (kl, (_, module, key, _)) in enumerate(zip(kls, attributes, strict=True))
            if kl is None or not _is_fixed(module, key)
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a state whole or, if there is an error, not at all; see that of the guides."""
        check_load(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        replica._set_up()
        return replica

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_up()


_MADE = ("_net", "_twins", "_lasting", "_twin", "_sites", "_late", "_watched")


class _NoSample(Messenger):
    """Without handlers, a sample statement would draw from the prior, silently."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        raise ValueError(
            f"`net` samples `{msg['name']}` in its forward, which only a Pyro model can: make it "
            "a PyroSample attribute, or train by SVI"
        )


def _is_fixed(module: Any, key: str) -> bool:
    """Whether a prior is the same whatever the draws of other sites are."""
    prior = module._pyro_samples[key]
    return hasattr(prior, "sample") or isinstance(prior, SitePrior)


def _prior(module: Any, key: str) -> Any:
    prior = module._pyro_samples[key]
    if isinstance(prior, SitePrior):
        return module._modules[prior.name].forward()
    return prior if hasattr(prior, "sample") else prior(module)
