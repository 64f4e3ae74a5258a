"""What all Bayesian layers share."""

from __future__ import annotations

import copyreg
import inspect
from typing import Any

from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import Distribution

from .._axes import Axes
from ..estimators._draw import SharedSample, draw
from ..priors import Normal
from ._prior import Prior, Rule

DEFAULT_PRIOR = Normal(0.0, 1.0)
DEFAULT_BIAS_PRIOR = Normal(0.0, 1.0)


class BayesianLayer:
    """Mixin that turns the parameters of a torch layer into random variables with priors.

    Layers take the arguments of torch's layer that they inherit from and, by keyword, ``prior``
    and ``bias_prior``.
    """

    def __init__(
        self,
        *args: Any,
        prior: Distribution | Rule | None = None,
        bias_prior: Distribution | Rule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sample_parameters(prior, bias_prior)

    def __init_subclass__(cls, without: tuple[str, ...] = ()) -> None:
        """Shows the arguments of torch's layer, and the priors, as those of the class."""
        super().__init_subclass__()
        inits = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
        parameters: dict[str, inspect.Parameter] = {}
        for init in inits:
            own = inspect.signature(init).parameters
            parameters = {**own, **parameters}
            if "kwargs" not in own:
                break
        left_out = {"self", "args", "kwargs", "mode", "_weight", "_freeze", *without}
        shown = [p for name, p in parameters.items() if name not in left_out]
        shown.sort(key=lambda p: p.kind)
        cls.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]

    def _sample_parameters(
        self: Any, prior: Distribution | Rule | None, bias_prior: Distribution | Rule | None
    ) -> None:
        """Replaces each parameter by a site, and adds its prior as ``<name>_prior``."""
        parameters = dict(self.named_parameters(recurse=False))
        if bias_prior is not None and all("bias" not in name for name in parameters):
            raise ValueError(
                f"`bias_prior` (={bias_prior!r}) is given to a layer without biases: drop it"
            )
        made = {}
        for name, parameter in parameters.items():
            is_bias = "bias" in name
            rule = bias_prior if is_bias else prior
            if rule is None:
                rule = DEFAULT_BIAS_PRIOR if is_bias else DEFAULT_PRIOR
            weight = parameters[name.replace("bias", "weight")]
            argument = "bias_prior" if is_bias else "prior"
            axes = Axes.of(self, name, parameter.shape)
            made[name] = Prior(rule, parameter, self._fan_in(weight), argument, axes=axes)
        for name in parameters:
            setattr(self, name + "_prior", made[name])
            setattr(self, name, PyroSample(SitePrior(name + "_prior")))

    def __getattr__(self, name: str) -> Any:
        ties = self.__dict__.get("_ties")
        if ties and name in ties:  # another module's weight is this one's, too
            return getattr(*ties[name])
        value = super().__getattr__(name)  # type: ignore[misc]
        if type(value) is Tensor and name in self.__dict__.get("_pyro_samples", ()):
            prior = self.__dict__["_modules"].get(name + "_prior")
            # Torch's functions take sample dimensions of a draw only.
            if prior is not None and value.dim() > len(prior.shape):
                return draw(SharedSample(value))
        return value

    def __reduce__(self: Any) -> tuple[Any, ...]:
        # Pyro's own would make a copy of torch's layer, without what is added here.
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def _fan_in(self, weight: Tensor) -> int:
        """The number of inputs that an output sums over."""
        return weight.shape[1:].numel()


class SitePrior:
    """The prior of a site: what the layer's module of that name returns."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: PyroModule) -> Any:
        # A call would count as a run of the network, after which no model can contain it.
        return getattr(layer, self.name).forward()
