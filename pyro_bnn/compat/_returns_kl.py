"""Networks in plain torch that return ``(output, kl)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .._gradients import check_gradients
from .._kl_weight import HasKLWeight
from .._parameter_access import parameters_explained
from .._threads import PYRO
from ..posteriors import Posterior
from ..posteriors._groups import parameter_groups
from ..posteriors._together import distributions
from ._twin import Twins


class Site(NamedTuple):
    """A random weight: its posterior, and the attribute of which module a draw takes."""

    posterior: Posterior
    module: Any
    key: str


class ReturnsKL(HasKLWeight, nn.Module):
    """Base class of modules that run a network on one draw of each weight: ``out, kl = m(x)``.

    A subclass lists the sites and has their KL divergences. The network is not changed: what
    gets the draws are twins of its modules, which live for one call.

    Args:
        kl_weight: factor of the KL divergence that is returned.
    """

    _kl_factor: Tensor
    _checked = False
    _twin: Twins  # this and the following are made by `_set_up`
    _lasting: list[Any]  # twins for the compiler, which makes no modules
    _sites: list[Site]
    _indices: list[int]  # of the sites' modules among twins

    def __init__(self, kl_weight: float = 1.0) -> None:
        super().__init__()
        self._make_kl_weight(kl_weight)

    def _make_kl_weight(self, value: float) -> None:
        self.register_buffer("_kl_factor", torch.ones(()), persistent=False)
        self.kl_weight = value

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        if not self._is_current():
            self._set_up()
        draws = [self._is_random(site.module) for site in self._sites]
        posteriors = self._distributions(draws)
        # Autograd goes backwards: KL divergences that come first are differentiated last, when the
        # draws and their noise are no longer in memory.
        kl = self._kl_before_draws(posteriors)
        values = [
            q.rsample() if draw else site.posterior.center()
            for site, q, draw in zip(self._sites, posteriors, draws, strict=True)
        ]
        compiles = torch.compiler.is_compiling()
        twins = self._lasting if compiles else self._twin()
        try:
            for i, (_, _, key), value in zip(self._indices, self._sites, values, strict=True):
                # A plain tensor may have to be another one where activations are recomputed.
                is_plain = type(value) is Tensor and not compiles
                state = twins[i].__dict__
                (state["_drawn"] if is_plain else state)[key] = value
            output = self._run(twins[-1], *args, **kwargs)
            kl = self._add_kl_of_draws(kl, twins, posteriors, values)
        finally:
            if compiles:
                for i, (_, _, key) in zip(self._indices, self._sites, strict=True):
                    twins[i].__dict__.pop(key, None)
        return output, self._weighted(kl)

    def _distributions(self, draws: list[bool]) -> list[Any]:
        """Of all sites. Those that are made together take random numbers at once."""
        made = iter(
            distributions(
                (site.posterior for site, draw in zip(self._sites, draws, strict=True) if draw),
                shared=self._shared,
            )
        )
        return [
            next(made) if draw else site.posterior.distribution()
            for site, draw in zip(self._sites, draws, strict=True)
        ]

    def _run(self, twin: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._checked or torch.compiler.is_compiling():
            return twin(*args, **kwargs)
        with PYRO, _NoSample(), parameters_explained():
            output = twin(*args, **kwargs)
        self.__dict__["_checked"] = True
        return output

    # What a subclass states.

    @abstractmethod
    def _trained_posteriors(self) -> Iterable[Posterior]:
        """All posteriors, also those that :meth:`_set_up` has not seen yet."""

    @abstractmethod
    def _is_current(self) -> bool:
        """Whether the network still has the modules that it had in :meth:`_set_up`."""

    @abstractmethod
    def _set_up(self) -> None:
        """Lists the sites, by :meth:`_set_sites`."""

    @property
    def _shared(self) -> bool:
        """Whether all examples share a weight, whatever the estimators."""
        return False

    @abstractmethod
    def _is_random(self, module: Any) -> bool:
        """Whether weights of a module are drawn, or are the means of their posteriors."""

    @abstractmethod
    def _kl_before_draws(self, posteriors: list[Any]) -> Tensor:
        """The KL divergences that do not depend on draws, a scalar."""

    def _add_kl_of_draws(
        self, total: Tensor, twins: list[Any], posteriors: list[Any], values: list[Any]
    ) -> Tensor:
        """The total with those added that do."""
        return total

    def _set_sites(self, sites: list[Site], twins: Twins) -> None:
        # Kept out of the registered modules: it is the network once more.
        state = self.__dict__
        state.pop("_watched", None)
        state["_checked"] = False
        state["_twin"], state["_lasting"] = twins, twins.lasting()
        state["_sites"] = sites
        state["_indices"] = [twins.index[id(site.module)] for site in sites]

    def _set_kl_weight(self, value: float) -> None:
        super()._set_kl_weight(value)
        self._kl_factor.fill_(value)

    def parameter_groups(self, lr: float, scale_lr: float) -> list[dict[str, Any]]:
        """The parameters in groups for a torch optimizer, the scales of posteriors apart.

        Args:
            lr: learning rate of the means and of all other parameters.
            scale_lr: learning rate of the scales of posteriors.

        Returns:
            Groups with ``params`` and ``lr``, which have every trainable parameter once; frozen
            ones (``requires_grad=False``) are left out.

        Raises:
            ValueError: if a rate is not positive and finite.
        """
        return parameter_groups(self.parameters(), self._trained_posteriors(), lr, scale_lr)

    def _weighted(self, kl: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a number would be compiled in, again at each change
            return kl * self._kl_factor
        kl = kl if self._kl_weight == 1 else kl * self._kl_weight
        if kl.requires_grad:
            check_gradients(kl, self._leaves())
        return kl

    def _leaves(self) -> dict[str, Tensor]:
        known = self.__dict__.get("_watched")
        if known is None:
            known = dict(self.named_parameters())
            # To list them takes long; those of a `functional_call` are there for a while only.
            if all(isinstance(p, nn.Parameter) for p in known.values()):
                self.__dict__["_watched"] = known
            else:
                known = {name: p for name, p in known.items() if p.is_leaf}
        return known

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        replica._set_up()
        return replica

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in state_to_pickle(self).items() if k not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_kl_weight" not in state:  # a pickle of version 0.1.0
            self._make_kl_weight(1.0)
        self._set_up()


_MADE = ("_twin", "_lasting", "_sites", "_indices", "_watched", "_made_for", "_late")


def state_to_pickle(module: nn.Module) -> dict[str, Any]:
    """The state of a module whose parameters may have been in Pyro, too."""
    for parameter in module.parameters():  # Pyro leaves references that do not pickle
        parameter.__dict__.pop("unconstrained", None)
    return module.__dict__.copy()


class _NoSample(Messenger):
    """Without handlers, a sample statement would draw from the prior, silently."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        raise ValueError(
            f"`net` samples `{msg['name']}` in its forward, which only a Pyro model can: make it "
            "a PyroSample attribute, or train by SVI"
        )
