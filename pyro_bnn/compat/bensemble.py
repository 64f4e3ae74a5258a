"""The layers of bensemble, as bindings over the core: change the import, keep the loop.

Local reparameterization in training, the means in evaluation; a call returns the output alone, and
``kl_divergence()`` the KL divergence. Checkpoints load both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from .._validation import check_positive
from ..distributions._normal import trusted_normal
from ..estimators import LocalReparameterization
from ..infer._kl import add_up
from ..posteriors import NormalPosterior
from ._checks import check_convolution, check_sizes
from ._like import like
from ._variational import VariationalLayer

_PRUNED = -1e8  # the rho of a pruned weight in bensemble's checkpoints, where its softplus is zero


class BaseBayesianLayer(VariationalLayer):
    r"""Base class of the layers; a base for layers of your own, too.

    Parameters ``w_mu`` and ``w_rho``, and so for any other letter, are those of a posterior
    :math:`N(\mu, \sigma^2)` with :math:`\sigma = \log(1 + e^\rho)`.

    Args:
        prior_sigma: standard deviation of the prior, whose mean is zero.

    Raises:
        ValueError: if ``prior_sigma`` is not positive.
    """

    PARTS: ClassVar[dict[str, str]] = {"loc": "mu", "scale": "rho"}

    def __init__(self, prior_sigma: float = 1.0) -> None:
        super().__init__()
        self._set_prior(prior_sigma)

    def _set_prior(self, prior_sigma: float) -> None:
        check_positive(prior_sigma=prior_sigma)
        self.prior_sigma = prior_sigma

    @property
    def _is_random(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        if self._is_drawn:
            return self._run(x)
        if self._is_random:
            values = self._draws(self._distributions())
        else:
            values = {key: q.center() for key, q in self._posteriors.items()}
        return self._output(values, x)

    def kl_divergence(self) -> Tensor:
        """The KL divergence of all weights, a sum in nats; pruned ones have none."""
        pairs = self._pairs()
        if len(pairs) == len(self._posteriors):
            return self._kl(self._distributions())
        return add_up(self._kl_of_pair(mu, rho) for mu, rho in pairs.values())

    @property
    def _computes_kl(self) -> bool:
        is_pruned = any(posterior.kept is not None for posterior in self._posteriors.values())
        return is_pruned or super()._computes_kl

    def _kl_of(self, key: str, q: Distribution) -> Tensor:
        if self._posteriors[key].kept is None:
            return super()._kl_of(key, q)
        return self._kl_of_pair(*(self._get(self._name(key, part)) for part in ("mu", "rho")))

    def _kl_of_pair(self, mu: Tensor, rho: Tensor) -> Tensor:
        kept = rho > _PRUNED
        sigma = F.softplus(torch.where(kept, rho, 0))
        kl = kl_divergence(dist.Normal(mu, sigma, validate_args=False), self._prior_of(mu))
        return torch.where(kept, kl, 0).sum()

    @torch.no_grad()
    def get_pruning_masks(self, threshold: float = 0.83) -> dict[str, Tensor]:
        r"""Masks of the weights with :math:`|\mu| / \sigma` above a threshold.

        Args:
            threshold: not negative.

        Returns:
            By names of parameters (``"w_mu"``): 1 for what stays, 0 for what may go.

        Raises:
            ValueError: if ``threshold`` is negative.

        References:
            Graves (2011), "Practical variational inference for neural networks".
        """
        if not 0 <= threshold < math.inf:
            raise ValueError(f"`threshold` (={threshold}) must be finite and not negative")
        return {
            name: (mu.abs() > threshold * F.softplus(rho)).to(mu)
            for name, (mu, rho) in self._pairs().items()
        }

    @torch.no_grad()
    def apply_pruning(self, threshold: float = 0.83) -> float:
        """Sets the weights below a threshold to zero for good.

        Args:
            threshold: as for :meth:`get_pruning_masks`, with the same error.

        Returns:
            The fraction of weights that is pruned now.
        """
        masks = self.get_pruning_masks(threshold)
        for name, (mu, rho) in self._pairs().items():
            mu.mul_(masks[name])
            rho.masked_fill_(masks[name] == 0, _PRUNED)
        self._find_pruned()
        size = sum(mask.numel() for mask in masks.values())
        return sum(float((mask == 0).sum()) for mask in masks.values()) / max(1, size)

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        own = dict(self.named_parameters(recurse=False))
        rho = lambda name: name.removesuffix("_mu") + "_rho"
        return {
            name: (mu, own[rho(name)])
            for name, mu in own.items()
            if name.endswith("_mu") and rho(name) in own
        }

    def _find_pruned(self) -> None:
        for key, q in self._posteriors.items():
            kept = self._get(self._name(key, "rho")) > _PRUNED
            q.kept = None if kept.all() else kept

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._find_pruned()

    def _set_up(self, init_sigma: float, init_weight: Callable[[Tensor], Any]) -> None:
        """Makes a layer of torch this one."""
        check_positive(init_sigma=init_sigma)
        self.init_sigma = init_sigma

        def posterior(key: str, parameter: nn.Parameter) -> NormalPosterior:
            loc = torch.zeros_like(parameter)
            if key == "weight":
                init_weight(loc)
            return NormalPosterior(loc, init_sigma, estimator=LocalReparameterization())

        self._randomize(posterior, lambda key, parameter: {})

    def _name(self, key: str, part: str) -> str:
        return f"{key[0]}_{part}"

    def _prior(self, key: str) -> Distribution:
        return self._prior_of(self._get(self._name(key, "mu")))

    def _prior_of(self, mu: Tensor) -> Distribution:
        loc, scale = mu.new_zeros(()), mu.new_full((), self.prior_sigma)
        return trusted_normal(loc.expand_as(mu), scale.expand_as(mu))


_INITS: dict[str, Callable[[Tensor], Any]] = {
    "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
    "normal": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
}


class BayesianLinear(BaseBayesianLayer, like(nn.Linear)):
    """``nn.Linear`` with Normal posteriors, by local reparameterization.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        prior_sigma: standard deviation of the prior.
        init_sigma: standard deviation that the posteriors start with.
        weight_init: where their means start: "kaiming" (He's Normal), "xavier" (Glorot's Normal) or
            "normal" (as ``nn.Linear``). Those of the biases start at zero.
        options: further arguments of torch's layer: ``bias``, ``device``, ``dtype``.

    Raises:
        ValueError: if a standard deviation is not positive, or ``weight_init`` unknown.

    Example:
        >>> layer = bensemble.BayesianLinear(3, 2)
        >>> layer(torch.ones(5, 3)).shape, layer.kl_divergence().shape
        (torch.Size([5, 2]), torch.Size([]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_sigma: float = 1.0,
        init_sigma: float = 0.1,
        weight_init: str = "kaiming",
        **options: Any,
    ) -> None:
        if weight_init not in _INITS:
            raise ValueError(f"`weight_init` (={weight_init!r}) must be one of {list(_INITS)}")
        check_sizes(in_features=in_features, out_features=out_features)
        like(nn.Linear).__init__(self, in_features, out_features, **options)
        self._set_prior(prior_sigma)
        self.weight_init = weight_init
        self._set_up(init_sigma, _INITS[weight_init])


class BayesianConv2d(BaseBayesianLayer, like(nn.Conv2d)):
    """``nn.Conv2d`` with Normal posteriors, by local reparameterization.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: of
            ``nn.Conv2d``.
        prior_sigma, init_sigma: as for :class:`BayesianLinear`, with the same errors.
        options: further arguments of torch's layer: ``bias``, ``padding_mode``, ``device``,
            ``dtype``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        prior_sigma: float = 1.0,
        init_sigma: float = 0.1,
        **options: Any,
    ) -> None:
        options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        check_convolution(in_channels, out_channels, kernel_size, stride, dilation, groups)
        like(nn.Conv2d).__init__(self, in_channels, out_channels, kernel_size, **options)
        self._set_prior(prior_sigma)
        self._set_up(init_sigma, _INITS["kaiming"])


__all__ = ["BaseBayesianLayer", "BayesianConv2d", "BayesianLinear"]
