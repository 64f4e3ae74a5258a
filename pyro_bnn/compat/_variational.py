"""Layers that compute what torch's do, and have the posteriors of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from pyro.distributions import Independent
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from ..infer._kl import add_up
from ..posteriors import Posterior
from ._returns_kl import state_to_pickle
from ._twin import twin

REDUCTIONS = ("sum", "mean")
_NOT_OF_TORCH = ("_posteriors", "prior", "posterior", "kl_", "dnn_", "init_", "weight_init")


class VariationalLayer(nn.Module):
    """Mixin for a layer like one of torch whose parameters are drawn from posteriors of its own.

    The parameters of the posteriors are parameters of the layer, under the names that another
    library gives them. In a forward pass the draws take the places of torch's parameters; the
    forward is torch's. Pyro takes no part in it.
    """

    #: Names of a posterior's parameters in front of those of the weight.
    PARTS: ClassVar[dict[str, str]] = {}

    kl_reduction = "sum"
    dnn_to_bnn_flag = False
    _posteriors: dict[str, Posterior] = {}

    def _randomize(
        self,
        posterior: Callable[[str, nn.Parameter], Posterior],
        prior: Callable[[str, nn.Parameter], dict[str, Tensor]],
    ) -> None:
        """Replaces each parameter by those of its posterior, and adds the prior's as buffers."""
        self.__dict__["_posteriors"] = {}
        for key, parameter in list(self.named_parameters(recurse=False)):
            q: Any = posterior(key, parameter)
            del self._parameters[key]
            names = {}
            for part, parameter_of_q in q._parameters.items():
                name = self._name(key, self.PARTS[part.removesuffix("_unconstrained")])
                self._holder(name)[0].register_parameter(name.rpartition(".")[2], parameter_of_q)
                names[part] = name
            q.__dict__["_parameters"] = _Borrowed(self, names)
            self._posteriors[key] = q
            for part, value in prior(key, parameter).items():
                self._set_prior_part(key, part, value.expand(parameter.shape))
        with torch.no_grad():
            # Torch looks a formula up in a way that does not compile, but remembers what it found.
            self._kl(self._distributions())

    def _set_prior_part(self, key: str, part: str, value: Tensor) -> None:
        holder, attribute = self._holder(self._prior_name(key, part))
        # Contiguous, since others write into buffers: DDP, moving averages of a network.
        value = value.detach().clone(memory_format=torch.contiguous_format)
        holder.register_buffer(attribute, value, persistent=False)

    def _name(self, key: str, part: str) -> str:
        """The name of a posterior's parameter, for one of torch's."""
        raise NotImplementedError

    def _prior_name(self, key: str, part: str) -> str:
        return self._name(key, "prior_" + part)

    def _prior(self, key: str) -> Distribution:
        """The prior of a weight, without an event."""
        raise NotImplementedError

    def _holder(self, name: str) -> tuple[nn.Module, str]:
        """The module that has a parameter, and its name in there."""
        path, _, attribute = name.rpartition(".")
        return self.get_submodule(path), attribute

    def _get(self, name: str) -> Any:
        holder, attribute = self._holder(name)
        return getattr(holder, attribute)

    @property
    def _is_random(self) -> bool:
        """Whether a forward pass draws the weights, or takes the means of their posteriors."""
        return True

    @property
    def _is_drawn(self) -> bool:
        """Whether this is a twin with draws, whose KL divergence a :class:`WithKL` returns."""
        return bool(self._posteriors) and "_drawn" in self.__dict__

    def _distributions(self) -> dict[str, Distribution]:
        """The posteriors as they are now."""
        return {key: q.distribution() for key, q in self._posteriors.items()}

    def _draws(self, posteriors: Mapping[str, Distribution]) -> dict[str, Tensor]:
        """One draw of each weight."""
        return {key: q.rsample() for key, q in posteriors.items()}

    def _output(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The forward of torch's layer, with these weights."""
        if not values:  # a Pyro model, which draws them (`to_pyro`)
            return self._run(*args, **kwargs)
        if not torch.compiler.is_compiling():  # which makes no modules
            body = twin(self)
            body.__dict__.update(values)
            return body._run(*args, **kwargs)
        state = self.__dict__
        try:
            state.update(values)
            return self._run(*args, **kwargs)
        finally:
            for key in values:
                state.pop(key, None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)

    def _kl(self, distributions: Mapping[str, Distribution]) -> Tensor:
        """The KL divergence of all weights, in nats; reduced by ``kl_reduction``."""
        return add_up(self._kl_of(key, q) for key, q in distributions.items())

    @property
    def _computes_kl(self) -> bool:
        """Whether its KL divergence is not the sum of those of posteriors and priors."""
        return self.kl_reduction == "mean"

    def _pair(self, key: str, q: Distribution) -> tuple[Distribution, Distribution]:
        return q, Independent(self._prior(key), len(q.event_shape))

    def _kl_of(self, key: str, q: Distribution) -> Tensor:
        kl = kl_divergence(*self._pair(key, q))
        return kl / q.event_shape.numel() if self.kl_reduction == "mean" else kl

    def _become_plain(self) -> None:
        """Makes a layer whose weights are parameters, and which returns its output alone, torch's.

        Called by :func:`~pyro_bnn.conversion.to_deterministic`.
        """
        torch_class = getattr(self, "_of", None)
        if torch_class is None or not self._returns_output():
            return
        self._buffers.clear()
        for key in [k for k, p in self._parameters.items() if p is None and "_" in k]:
            del self._parameters[key]
        for name in [name for name in vars(self) if name.startswith(_NOT_OF_TORCH)]:
            del vars(self)[name]
        self.__class__ = torch_class

    def _returns_output(self) -> bool:
        """Whether a call returns what that of torch's layer does."""
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for q in self._posteriors.values():  # which are no submodules
            q.kept = None if q.kept is None else fn(q.kept)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return state_to_pickle(self)

    def __getattr__(self, name: str) -> Any:
        posteriors = self.__dict__.get("_posteriors", ())
        if name in posteriors:
            raise AttributeError(
                f"{type(self).__name__} has no `{name}` outside of its forward, which draws it: "
                f"its mean is `{self._name(name, self.PARTS['loc'])}`"
            )
        return super().__getattr__(name)


class _Borrowed(MutableMapping[str, Any]):
    """The parameters of a posterior that a layer has as its own."""

    def __init__(self, layer: VariationalLayer, names: dict[str, str]) -> None:
        self.layer = layer
        self.names = names

    def __getitem__(self, key: str) -> Any:
        try:
            return self.layer._get(self.names[key])
        except AttributeError as error:
            raise KeyError(key) from error

    def __setitem__(self, key: str, value: Any) -> None:
        holder, name = self.layer._holder(self.names[key])
        holder._parameters[name] = value

    def __delitem__(self, key: str) -> None:
        holder, name = self.layer._holder(self.names[key])
        del holder._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
