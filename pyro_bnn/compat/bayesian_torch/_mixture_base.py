"""The base class of the layers with mixtures of two Normals."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from ...distributions import NormalMixture
from ...posteriors import MixturePosterior
from .._checks import check_finite, check_variances
from ._base import BaseVariationalLayer_, check_reduction, prior_of


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
        r"""One sample of the KL divergence of two mixtures, :math:`\log q(w) - \log p(w)`.

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

    def _set_up(self, kl_reduction: str = "sum", **values: Any) -> None:
        """Makes a layer of torch this one; a number without ``_1`` or ``_2`` is for both."""
        check_reduction(kl_reduction)
        pairs = {
            name: tuple(values[name if name in values else f"{name}_{k}"] for k in (1, 2))
            for name in ("prior_mean", "prior_variance", "posterior_mu_init", "posterior_rho_init")
        }
        for name, pair in pairs.items():
            check = check_variances if name == "prior_variance" else check_finite
            check(**{f"{name}_{k}": value for k, value in zip((1, 2), pair, strict=True)})
        self.kl_reduction = kl_reduction
        self.prior_means, self.prior_variances = pairs["prior_mean"], pairs["prior_variance"]
        self.posterior_mu_inits = pairs["posterior_mu_init"]
        self.posterior_rho_inits = pairs["posterior_rho_init"]
        self._make_random()

    @torch.no_grad()
    def _start(self, q: Any) -> None:
        loc = q.loc_unconstrained
        draw = lambda mean: torch.empty_like(loc).normal_(mean, 0.1)
        means = torch.stack([draw(mu) for mu in self.posterior_mu_inits], -1)
        rho = torch.stack([draw(rho) for rho in self.posterior_rho_inits], -1)
        q.logits_unconstrained.zero_()
        loc.copy_(means.mean(-1))
        q.scale_unconstrained.copy_(rho)
        q.offset_unconstrained.copy_((means - loc.unsqueeze(-1)) / F.softplus(rho))

    def _prior_values(self, key: str, parameter: Tensor) -> dict[str, Tensor]:
        first, second = (
            prior_of(parameter, f"_{k + 1}", self.prior_means[k], self.prior_variances[k])
            for k in (0, 1)
        )
        return first | second

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
