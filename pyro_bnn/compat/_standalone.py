"""A Bayesian network as a plain torch module that returns (output, kl)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..guides import AutoPosterior
from ..guides._checks import check_posteriors
from ..guides._saving import check_load
from ..guides._sites import sample_attributes
from ..infer._kl import analytic_kl, kl, total_kl
from ..nn._layer import SitePrior
from ..nn._prior import Prior
from ..posteriors import Posterior
from ._returns_kl import ReturnsKL, Site
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
        A call returns the output of ``net``, and the KL divergence times ``kl_weight``, a scalar.

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

    _made_for: nn.Module
    _late: set[int]  # sites whose KL divergence has no formula, or a prior that depends on draws

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

    def _is_current(self) -> bool:
        return self._made_for is self._modules["net"]  # unlike in the copies of `nn.DataParallel`

    @property
    def _shared(self) -> bool:
        return self.guide.is_shared

    def _is_random(self, module: Any) -> bool:
        return self.sample

    def _kl_before_draws(self, posteriors: list[Any]) -> Tensor:
        pairs = [
            (q, _prior(site.module, site.key))
            for i, (q, site) in enumerate(zip(posteriors, self._sites, strict=True))
            if i not in self._late
        ]
        return total_kl(pairs)

    def _add_kl_of_draws(
        self, total: Tensor, twins: list[Any], posteriors: list[Any], values: list[Any]
    ) -> Tensor:
        for k in self._late:
            prior = _prior(twins[self._indices[k]], self._sites[k].key)
            total = total + kl(posteriors[k], prior, values[k]).value.sum()
        return total

    def _trained_posteriors(self) -> Iterable[Posterior]:
        return (self.guide[name] for name in self.guide)

    def _set_up(self) -> None:
        attributes = list(sample_attributes(self.net))
        sites = [Site(self.guide[name], module, key) for name, module, key, _ in attributes]
        self._set_sites(sites, Twins(self.net, PyroModule, Prior))
        self.__dict__["_made_for"] = self.net
        with torch.no_grad():
            # Torch looks a formula up in a way that does not compile, but remembers what it found.
            kls = [
                analytic_kl(site.posterior.distribution(), prior)
                for site, (*_, prior) in zip(sites, attributes, strict=True)
            ]
        self.__dict__["_late"] = {
            i
            for i, (kl, site) in enumerate(zip(kls, sites, strict=True))
            if kl is None or not _is_fixed(site.module, site.key)
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a state whole or, if there is an error, not at all; see that of the guides."""
        check_load(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict, assign)


def _is_fixed(module: Any, key: str) -> bool:
    """Whether a prior is the same whatever the draws of other sites are."""
    prior = module._pyro_samples[key]
    return hasattr(prior, "sample") or isinstance(prior, SitePrior)


def _prior(module: Any, key: str) -> Any:
    prior = module._pyro_samples[key]
    if isinstance(prior, SitePrior):
        return module._modules[prior.name].forward()
    return prior if hasattr(prior, "sample") else prior(module)
