"""The base class of all layers: posteriors, priors and KL divergences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from ..._torch import is_transformed
from ...distributions._normal import trusted_normal
from ...kernels import MAX_SIZE
from ...posteriors import Posterior
from .._checks import check_broadcasts, check_finite, check_variances
from .._variational import REDUCTIONS, VariationalLayer


class BaseVariationalLayer_(VariationalLayer):
    """Base class of all layers; a base for layers of your own, too.

    Attributes:
        kl_reduction: "sum", in nats, or "mean" for the numbers of bayesian-torch: the mean over the
            weights plus the mean over the biases, far too small a KL divergence.
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
        r"""The KL divergence :math:`KL(q \Vert p)` of independent Normals, a scalar.

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
        """The KL divergence of all weights of the layer, without a forward pass."""
        return self._kl(self._distributions())

    def forward(self, input: Tensor, return_kl: bool = True) -> Any:
        if self._is_drawn:
            return self._run(input)
        posteriors = self._distributions()
        output = self._output(self._draws(posteriors), input)
        return (output, self._kl(posteriors)) if return_kl and not self.dnn_to_bnn_flag else output

    def init_parameters(self) -> None:
        """Starts afresh, in place: posteriors are drawn and priors set as the constructor does."""
        for key, q in self._posteriors.items():
            self._start(q)
            mu = self._get(self._name(key, self.PARTS["loc"]))
            for part, value in self._prior_values(key, mu).items():
                self._set_prior_part(key, part, value)

    def _set_up(
        self,
        prior_mean: float | Tensor,
        prior_variance: float | Tensor,
        posterior_mu_init: float,
        posterior_rho_init: float,
        kl_reduction: str = "sum",
    ) -> None:
        """Makes a layer of torch this one."""
        check_reduction(kl_reduction)
        check_variances(prior_variance=prior_variance)
        check_finite(prior_mean=prior_mean)
        check_finite(posterior_mu_init=posterior_mu_init, posterior_rho_init=posterior_rho_init)
        self.kl_reduction = kl_reduction
        self.prior_mean, self.prior_variance = prior_mean, prior_variance
        self.posterior_mu_init, self.posterior_rho_init = posterior_mu_init, posterior_rho_init
        self._make_random()

    def _make_random(self) -> None:
        absent = [key for key, parameter in self._parameters.items() if parameter is None]
        self._randomize(self._new_posterior, self._prior_values)
        for key in absent:  # which there are under bayesian-torch's names, too
            for part in self.PARTS.values():
                self.register_parameter(self._name(key, part), None)
            for part in self._prior_values(key, torch.zeros(())):
                self.register_buffer(self._prior_name(key, part), None, persistent=False)

    def _new_posterior(self, key: str, parameter: nn.Parameter) -> Posterior:
        q = type(self).posterior(torch.zeros_like(parameter), 1.0)
        self._start(q)
        return q

    @torch.no_grad()
    def _start(self, q: Any) -> None:
        """Draws the parameters that a posterior starts with."""
        q.loc_unconstrained.normal_(self.posterior_mu_init, 0.1)
        q.scale_unconstrained.normal_(self.posterior_rho_init, 0.1)

    def _prior_values(self, key: str, parameter: Tensor) -> dict[str, Tensor]:
        return prior_of(parameter, "", self.prior_mean, self.prior_variance)

    def _name(self, key: str, part: str) -> str:
        return f"{part}_{key}"

    def _prior_name(self, key: str, part: str) -> str:
        return f"prior_{key}_{part}"

    def _prior(self, key: str) -> Distribution:
        mu, sigma = (self._get(self._prior_name(key, part)) for part in ("mu", "sigma"))
        return trusted_normal(_cheapest(mu), _cheapest(sigma))

    def __getattr__(self, name: str) -> Any:
        if name == "bias" and "bias" in self._posteriors:
            return True  # whether there is one, as in bayesian-torch
        return super().__getattr__(name)

    def _returns_output(self) -> bool:
        return self.dnn_to_bnn_flag

    def __str__(self) -> str:
        # In bayesian-torch layers are told from each other by this.
        return f"{type(self).__name__}()"


def prior_of(
    weight: Tensor, suffix: str, mean: float | Tensor, variance: float | Tensor
) -> dict[str, Tensor]:
    """Mean and standard deviation of the prior of each entry of a weight."""
    if weight.dim():
        check_broadcasts(f"prior_mean{suffix}", mean, weight.shape)
        check_broadcasts(f"prior_variance{suffix}", variance, weight.shape)
    return {
        f"mu{suffix}": torch.as_tensor(mean).to(weight).expand(weight.shape),
        f"sigma{suffix}": torch.as_tensor(variance).to(weight).sqrt().expand(weight.shape),
    }


def check_reduction(kl_reduction: str) -> None:
    if kl_reduction not in REDUCTIONS:
        raise ValueError(f'`kl_reduction` (={kl_reduction!r}) must be "sum" or "mean"')


def _cheapest(x: Tensor) -> Tensor:
    """A tensor of the same numbers, expanded from a scalar where they are all the same.

    Priors are, unless someone has written into them. Then a KL divergence takes less than half
    of the time, of which the comparison is a tenth. Small tensors take longer to compare.
    """
    is_plain = type(x) is Tensor and x.is_cpu and not x.requires_grad
    if not is_plain or x.numel() <= MAX_SIZE or torch.compiler.is_compiling() or is_transformed():
        return x
    least, most = torch.aminmax(x)
    return least.expand(x.shape) if least.item() == most.item() else x
