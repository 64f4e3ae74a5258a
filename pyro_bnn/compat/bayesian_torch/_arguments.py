"""What linear and convolutional layers take, and how all layers draw."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...estimators import Flipout, linear
from ...posteriors import NormalPosterior, Posterior, RadialPosterior
from .._checks import check_convolution, check_sizes
from .._variational import VariationalLayer
from ._base import BaseVariationalLayer_
from ._mixture_base import BaseMixtureLayer_


class ByReparameterization:
    posterior = NormalPosterior


class ByFlipout:
    @staticmethod
    def posterior(loc: Tensor, scale: float) -> Posterior:
        return NormalPosterior(loc, scale, estimator=Flipout())


class ByRadial:
    posterior = RadialPosterior


class _Linear:
    def _run(self: Any, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)  # by the faster library


class FeatureArguments(BaseVariationalLayer_):
    OPTIONS: ClassVar[dict[str, Any]] = {}  # of torch's layer, always the same

    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_mean: float = 0,
        prior_variance: float = 1,
        posterior_mu_init: float = 0,
        posterior_rho_init: float = -3.0,
        bias: bool = True,
        *,
        kl_reduction: str = "sum",
        **options: Any,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias=bias, **self.OPTIONS, **options)
        self._set_up(
            prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction
        )


class LinearArguments(_Linear, FeatureArguments):
    pass


class LinearMixtureArguments(_Linear, BaseMixtureLayer_):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_mean_1: float = 0,
        prior_variance_1: float = 1,
        prior_mean_2: float = 0,
        prior_variance_2: float = 1,
        posterior_mu_init_1: float = 0,
        posterior_rho_init_1: float = -3.0,
        posterior_mu_init_2: float = 0,
        posterior_rho_init_2: float = -3.0,
        bias: bool = True,
        *,
        kl_reduction: str = "sum",
        **options: Any,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias=bias, **options)
        self._set_up_mixture(
            (prior_mean_1, prior_mean_2),
            (prior_variance_1, prior_variance_2),
            (posterior_mu_init_1, posterior_mu_init_2),
            (posterior_rho_init_1, posterior_rho_init_2),
            kl_reduction,
        )


class Kernels(VariationalLayer):
    """Convolutions call their weights kernels."""

    def _name(self, key: str, part: str) -> str:
        return f"{part}_{key.replace('weight', 'kernel')}"


class ConvolutionArguments(Kernels, BaseVariationalLayer_):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        prior_mean: float = 0,
        prior_variance: float = 1,
        posterior_mu_init: float = 0,
        posterior_rho_init: float = -3.0,
        bias: bool = True,
        *,
        kl_reduction: str = "sum",
        **options: Any,
    ) -> None:
        check_convolution(in_channels, out_channels, kernel_size, stride, dilation, groups)
        options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, **options)
        self._set_up(
            prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction
        )


class ConvolutionMixtureArguments(Kernels, BaseMixtureLayer_):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        prior_mean_1: float = 0,
        prior_variance_1: float = 1,
        prior_mean_2: float = 0,
        prior_variance_2: float = 1,
        posterior_mu_init_1: float = 0,
        posterior_rho_init_1: float = -3.0,
        posterior_mu_init_2: float = 0,
        posterior_rho_init_2: float = -3.0,
        bias: bool = True,
        *,
        kl_reduction: str = "sum",
        **options: Any,
    ) -> None:
        check_convolution(in_channels, out_channels, kernel_size, stride, dilation, groups)
        options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, **options)
        self._set_up_mixture(
            (prior_mean_1, prior_mean_2),
            (prior_variance_1, prior_variance_2),
            (posterior_mu_init_1, posterior_mu_init_2),
            (posterior_rho_init_1, posterior_rho_init_2),
            kl_reduction,
        )
