"""What all Bayesian layers share."""

from __future__ import annotations

import copyreg
import inspect
from typing import Any

from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import Distribution

from .._axes import Axes
from .._recomputation import is_recomputing
from .._validation import plain_state
from ..estimators._draw import SharedSample, draw
from ..priors import Normal
from ._plates import check_plate
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

    def __init_subclass__(cls, without: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        show_arguments(cls, without)

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

    def _load_from_state_dict(self: Any, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        # Only with `strict=True`, which torch tells no module, are these keys errors.
        unexpected, random = args[3], {prefix + name for name in self._pyro_samples}
        unexpected[:] = [_RandomKey(key) if key in random else key for key in unexpected]

    def __getattr__(self, name: str) -> Any:
        ties = self.__dict__.get("_ties")
        if ties and name in ties:  # another module's weight is this one's, too
            return getattr(*ties[name])
        value = super().__getattr__(name)  # type: ignore[misc]
        if type(value) is Tensor and name in self.__dict__.get("_pyro_samples", ()):
            prior = self.__dict__["_modules"].get(name + "_prior")
            # Torch's functions take sample dimensions of a draw only.
            if prior is not None and value.dim() > len(prior.shape):
                check_plate(name, value.shape[: value.dim() - len(prior.shape)])
                return draw(SharedSample(value))
        return value

    def extra_repr(self) -> str:
        # Torch's asks whether there is a bias, which would draw it.
        view: Any = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.__dict__.update(dict.fromkeys(self.__dict__.get("_pyro_samples", ()), True))
        return super(BayesianLayer, view).extra_repr()  # type: ignore[misc]

    def __reduce__(self: Any) -> tuple[Any, ...]:
        # Pyro's own would make a copy of torch's layer, without what is added here.
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def _fan_in(self, weight: Tensor) -> int:
        """The number of inputs that an output sums over."""
        return weight.shape[1:].numel()


def show_arguments(cls: Any, without: tuple[str, ...] = ()) -> None:
    """Shows what a class takes or passes on, torch's arguments and the priors, as its signature."""
    left_out = {"mode", "_weight", "_freeze", *without}
    shown: dict[str, inspect.Parameter] = {}
    by_keyword = False  # from here on, arguments have no place of their own
    for init in (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)):
        try:
            own = list(inspect.signature(init).parameters.values())[1:]
        except (TypeError, ValueError):  # a builtin
            break
        for p in own:
            if p.kind in _VARIABLE or p.name in left_out or p.name in shown:
                continue
            if p.kind is not p.KEYWORD_ONLY:
                placed = [q for q in shown.values() if q.kind is not q.KEYWORD_ONLY]
                follows = p.default is p.empty and any(q.default is not q.empty for q in placed)
                by_keyword = by_keyword or follows
            shown[p.name] = p.replace(kind=p.KEYWORD_ONLY) if by_keyword else p
        kinds = {p.kind for p in own}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
        by_keyword = by_keyword or inspect.Parameter.VAR_POSITIONAL not in kinds
    cls.__signature__ = inspect.Signature(sorted(shown.values(), key=lambda p: p.kind))


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class SitePrior:
    """The prior of a site: what the layer's module of that name returns.

    In a recomputation outside of a call of the network, the value that the site had.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, layer: PyroModule) -> Any:
        context = layer._pyro_context
        if is_recomputing() and context.used and not context.active:
            with context:  # of which a function that reads weights by itself is outside, by then
                return getattr(layer, self.name.removesuffix("_prior"))
        # A call would count as a run of the network, after which no model can contain it.
        return getattr(layer, self.name).forward()


class _RandomKey(str):
    """The key of a weight that is random here, which says in torch's error what to do about it."""

    def __format__(self, spec: str) -> str:
        return f"{super().__format__(spec)} ({plain_state([str(self)])})"
