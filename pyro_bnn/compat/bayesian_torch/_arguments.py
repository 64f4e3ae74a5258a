"""What linear and convolutional layers take, and how all layers draw."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, ClassVar

from torch import Tensor

from ...estimators import Flipout, linear
from ...posteriors import NormalPosterior, Posterior, RadialPosterior
from .._checks import check_convolution, check_sizes
from ._base import BaseVariationalLayer_
from ._mixture_base import BaseMixtureLayer_

_FEATURES = {"in_features": Parameter.empty, "out_features": Parameter.empty}
_CHANNELS = dict.fromkeys(("in_channels", "out_channels", "kernel_size"), Parameter.empty) | {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
}
_NORMAL = {
    "prior_mean": 0,
    "prior_variance": 1,
    "posterior_mu_init": 0,
    "posterior_rho_init": -3.0,
}
# By its place each number of the first component comes before those of the second.
_MIXTURE = {
    f"{name}_{k}": _NORMAL[name]
    for names in (("prior_mean", "prior_variance"), ("posterior_mu_init", "posterior_rho_init"))
    for k in (1, 2)
    for name in names
}


def constructor(sizes: dict[str, Any], values: dict[str, Any]) -> Callable[..., None]:
    """An ``__init__`` with torch's sizes, then numbers for prior and posterior, then ``bias``."""
    shown = {"self": Parameter.empty, **sizes, **values, "bias": True}
    signature = Signature(
        [
            *(Parameter(n, Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d in shown.items()),
            Parameter("kl_reduction", Parameter.KEYWORD_ONLY, default="sum"),
            Parameter("options", Parameter.VAR_KEYWORD),
        ]
    )

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        self, options = given.pop("self"), given.pop("options")
        of_torch = {name: given.pop(name) for name in (*sizes, "bias")}
        self._set_up_torch(**of_torch, **options)
        self._set_up(**given)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


class ByReparameterization:
    posterior = NormalPosterior


class ByFlipout:
    @staticmethod
    def posterior(loc: Tensor, scale: float) -> Posterior:
        return NormalPosterior(loc, scale, estimator=Flipout())


class ByRadial:
    posterior = RadialPosterior


class FeatureArguments(BaseVariationalLayer_):
    OPTIONS: ClassVar[dict[str, Any]] = {}  # of torch's layer, always the same

    __init__ = constructor(_FEATURES, _NORMAL)

    def _set_up_torch(self, in_features: int, out_features: int, **options: Any) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, **self.OPTIONS, **options)


class LinearArguments(FeatureArguments):
    def _run(self: Any, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)  # by the faster library


class LinearMixtureArguments(LinearArguments, BaseMixtureLayer_):
    __init__ = constructor(_FEATURES, _MIXTURE)


class ConvolutionArguments(BaseVariationalLayer_):
    __init__ = constructor(_CHANNELS, _NORMAL)

    def _set_up_torch(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        **options: Any,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size)
        check_convolution(*sizes, *(options[name] for name in ("stride", "dilation", "groups")))
        super().__init__(*sizes, **options)

    def _name(self, key: str, part: str) -> str:
        return f"{part}_{key.replace('weight', 'kernel')}"  # what convolutions call their weights


class ConvolutionMixtureArguments(ConvolutionArguments, BaseMixtureLayer_):
    __init__ = constructor(_CHANNELS, _MIXTURE)
