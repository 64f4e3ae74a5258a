"""The base classes: posteriors, priors and divergences of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from ..._validation import check_positive
from ...distributions import NormalMixture
from ...distributions._divergence import trusted_normal
from ...posteriors import MixturePosterior, Posterior
from .._variational import REDUCTIONS, VariationalLayer


class BaseVariationalLayer_(VariationalLayer):
    """Base class of all layers; a base for layers of your own, too.

    Attributes:
        kl_reduction: "sum", in nats, or "mean" for the numbers of bayesian-torch: the mean over the
            weights plus the mean over the biases, far too small a divergence.
        dnn_to_bnn_flag: makes ``forward`` return the output alone; set by :func:`dnn_to_bnn`.
    """

    PARTS: ClassVar[dict[str, str]] = {"loc": "mu", "scale": "rho"}
    #: Makes the posterior of a weight.
    posterior: ClassVar[Callable[..., Posterior]]

    def kl_div(
        self,
        mu_q: Tensor,
        sigma_q: Tensor,
        mu_p: Tensor | float,
        sigma_p: Tensor | float,
    ) -> Tensor:
        r"""The divergence :math:`KL(q \Vert p)` of independent Normals, a scalar.

        Args:
            mu_q, sigma_q: means and standard deviations of :math:`q`.
            mu_p, sigma_p: those of :math:`p`.

        Returns:
            The sum over the entries, in nats; their mean with ``kl_reduction="mean"``.
        """
        q = dist.Normal(mu_q, sigma_q, validate_args=False)
        p = dist.Normal(torch.as_tensor(mu_p).to(mu_q), sigma_p, validate_args=False)
        kl = kl_divergence(q, p)
        return kl.mean() if self.kl_reduction == "mean" else kl.sum()

    def kl_loss(self) -> Tensor:
        """The divergence of all weights of the layer from their priors, without a forward pass."""
        return self._kl(self._distributions())

    def forward(self, input: Tensor, return_kl: bool = True) -> Any:
        posteriors = self._distributions()
        output = self._output({key: q.rsample() for key, q in posteriors.items()}, input)
        return (output, self._kl(posteriors)) if return_kl and not self.dnn_to_bnn_flag else output

    def _set_up(
        self,
        prior_mean: float | Tensor,
        prior_variance: float | Tensor,
        posterior_mu_init: float,
        posterior_rho_init: float,
        kl_reduction: str = "sum",
    ) -> None:
        """Makes a layer of torch this one."""
        check_numbers(kl_reduction, prior_variance=prior_variance)
        self.kl_reduction = kl_reduction
        self.prior_mean, self.prior_variance = prior_mean, prior_variance
        self.posterior_mu_init, self.posterior_rho_init = posterior_mu_init, posterior_rho_init

        def posterior(key: str, parameter: nn.Parameter) -> Posterior:
            q: Any = type(self).posterior(torch.zeros_like(parameter), 1.0)
            with torch.no_grad():
                q.loc_unconstrained.normal_(posterior_mu_init, 0.1)
                q.scale_unconstrained.normal_(posterior_rho_init, 0.1)
            return q

        def prior(key: str, parameter: nn.Parameter) -> dict[str, Tensor]:
            return {
                "mu": torch.as_tensor(prior_mean).to(parameter),
                "sigma": torch.as_tensor(prior_variance).to(parameter).sqrt(),
            }

        self._randomize(posterior, prior)

    def _name(self, key: str, part: str) -> str:
        return f"{part}_{key}"

    def _prior_name(self, key: str, part: str) -> str:
        return f"prior_{key}_{part}"

    def _prior(self, key: str) -> Distribution:
        mu, sigma = (self._get(self._prior_name(key, part)) for part in ("mu", "sigma"))
        return trusted_normal(mu, sigma)


class BaseMixtureLayer_(BaseVariationalLayer_):
    """Base class of the layers with mixtures of two Normals as posteriors and priors.

    The two components of a posterior share a location ``mu``, from which they are ``delta`` of
    their standard deviations away; ``eta`` are the logits of their weights.
    """

    PARTS: ClassVar[dict[str, str]] = {
        "logits": "eta",
        "loc": "mu",
        "offset": "delta",
        "scale": "rho",
    }
    posterior = MixturePosterior

    def mixture_kl_div(
        self,
        mu_m1_d1: Tensor,
        sigma_m1_d1: Tensor,
        mu_m1_d2: Tensor,
        sigma_m1_d2: Tensor,
        mu_m2_d1: Tensor | float,
        sigma_m2_d1: Tensor | float,
        mu_m2_d2: Tensor | float,
        sigma_m2_d2: Tensor | float,
        eta: Tensor,
        w: Tensor,
    ) -> Tensor:
        r"""One Monte Carlo sample of the divergence of two mixtures, :math:`\log q(w) - \log p(w)`.

        Args:
            mu_m1_d1, sigma_m1_d1, mu_m1_d2, sigma_m1_d2: means and standard deviations of the two
                components of :math:`q`.
            mu_m2_d1, sigma_m2_d1, mu_m2_d2, sigma_m2_d2: those of :math:`p`, equally likely.
            eta: weights of the components of :math:`q`, shape ``(2,)``.
            w: a draw from :math:`q`.

        Returns:
            The sum over the entries, in nats; their mean with ``kl_reduction="mean"``.
        """
        q = _mixture(eta, (mu_m1_d1, mu_m1_d2), (sigma_m1_d1, sigma_m1_d2), w)
        half = torch.full_like(torch.as_tensor(eta, dtype=w.dtype), 0.5)
        p = _mixture(half, (mu_m2_d1, mu_m2_d2), (sigma_m2_d1, sigma_m2_d2), w)
        sample = q.log_prob(w) - p.log_prob(w)
        return sample.mean() if self.kl_reduction == "mean" else sample.sum()

    def _set_up_mixture(
        self,
        prior_means: tuple[float, float],
        prior_variances: tuple[float, float],
        posterior_mu_inits: tuple[float, float],
        posterior_rho_inits: tuple[float, float],
        kl_reduction: str,
    ) -> None:
        first, second = prior_variances
        check_numbers(kl_reduction, prior_variance_1=first, prior_variance_2=second)
        self.kl_reduction = kl_reduction

        def posterior(key: str, parameter: nn.Parameter) -> Posterior:
            q: Any = type(self).posterior(torch.zeros_like(parameter), 1.0)
            with torch.no_grad():
                draw = lambda mean: torch.empty_like(parameter).normal_(mean, 0.1)
                means = torch.stack([draw(mu) for mu in posterior_mu_inits], -1)
                rho = torch.stack([draw(rho) for rho in posterior_rho_inits], -1)
                loc = means.mean(-1)
                q.loc_unconstrained.copy_(loc)
                q.scale_unconstrained.copy_(rho)
                q.offset_unconstrained.copy_((means - loc.unsqueeze(-1)) / F.softplus(rho))
            return q

        def prior(key: str, parameter: nn.Parameter) -> dict[str, Tensor]:
            values = {}
            for k in (0, 1):
                values[f"mu_{k + 1}"] = torch.as_tensor(prior_means[k]).to(parameter)
                values[f"sigma_{k + 1}"] = torch.as_tensor(prior_variances[k]).to(parameter).sqrt()
            return values

        self._randomize(posterior, prior)

    def _prior(self, key: str) -> Distribution:
        mu, sigma = (
            torch.stack([self._get(self._prior_name(key, f"{part}_{k}")) for k in (1, 2)], -1)
            for part in ("mu", "sigma")
        )
        return NormalMixture(torch.full_like(mu, 0.5), mu, sigma, validate_args=False)


def _mixture(probs: Any, means: Any, sigmas: Any, like: Tensor) -> NormalMixture:
    loc, scale = (
        torch.stack([torch.as_tensor(x).to(like).expand(like.shape) for x in pair], -1)
        for pair in (means, sigmas)
    )
    return NormalMixture(torch.as_tensor(probs).to(like), loc, scale, validate_args=False)


def check_numbers(kl_reduction: str, **variances: float | Tensor) -> None:
    if kl_reduction not in REDUCTIONS:
        raise ValueError(f'`kl_reduction` (={kl_reduction!r}) must be "sum" or "mean"')
    for name, value in variances.items():
        check_positive(**{name: float(torch.as_tensor(value).min())})
