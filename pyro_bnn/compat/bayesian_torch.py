"""The layers of bayesian-torch, as bindings over the core: change the import, keep the loop.

``forward`` returns ``(output, kl)``. Names and defaults of arguments, their order, and the names of
parameters in a ``state_dict`` are bayesian-torch's; the numbers are right where they are wrong
there (:doc:`/migration`). Layers are also torch's own: ``Conv2dFlipout`` is an ``nn.Conv2d``, takes
all of its arguments by keyword, and knows no Pyro.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from .._validation import check_positive
from ..conversion._weights import weights
from ..distributions import NormalMixture
from ..estimators import Flipout
from ..guides import init_to_fraction
from ..infer._kl import add_up
from ..nn._recurrent import _Recurrent
from ..posteriors import MixturePosterior, NormalPosterior, Posterior, RadialPosterior
from ._variational import REDUCTIONS, VariationalLayer


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
        _check(kl_reduction, prior_variance=prior_variance)
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
        return dist.Normal(mu, sigma, validate_args=False)


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
        _check(kl_reduction, prior_variance_1=first, prior_variance_2=second)
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


def _check(kl_reduction: str, **variances: float | Tensor) -> None:
    if kl_reduction not in REDUCTIONS:
        raise ValueError(f'`kl_reduction` (={kl_reduction!r}) must be "sum" or "mean"')
    for name, value in variances.items():
        check_positive(**{name: float(torch.as_tensor(value).min())})


class _Reparameterization:
    posterior = NormalPosterior


class _Flipout:
    @staticmethod
    def posterior(loc: Tensor, scale: float) -> Posterior:
        return NormalPosterior(loc, scale, estimator=Flipout())


class _Radial:
    posterior = RadialPosterior


class _Linear(BaseVariationalLayer_):
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
        super().__init__(in_features, out_features, bias=bias, **options)
        self._set_up(
            prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction
        )


class _LinearMixture(BaseMixtureLayer_):
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
        super().__init__(in_features, out_features, bias=bias, **options)
        self._set_up_mixture(
            (prior_mean_1, prior_mean_2),
            (prior_variance_1, prior_variance_2),
            (posterior_mu_init_1, posterior_mu_init_2),
            (posterior_rho_init_1, posterior_rho_init_2),
            kl_reduction,
        )


class _Kernels(VariationalLayer):
    """Convolutions call their weights kernels."""

    def _name(self, key: str, part: str) -> str:
        return f"{part}_{key.replace('weight', 'kernel')}"


class _Convolution(_Kernels, BaseVariationalLayer_):
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
        options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, **options)
        self._set_up(
            prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction
        )


class _ConvolutionMixture(_Kernels, BaseMixtureLayer_):
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
        options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, **options)
        self._set_up_mixture(
            (prior_mean_1, prior_mean_2),
            (prior_variance_1, prior_variance_2),
            (posterior_mu_init_1, posterior_mu_init_2),
            (posterior_rho_init_1, posterior_rho_init_2),
            kl_reduction,
        )


class _Sequences(VariationalLayer):
    """One layer of an LSTM, whose weights are drawn once for a sequence.

    Its parameters are in ``ih`` and ``hh``, as if these were two linear layers.
    """

    def _randomize(self, *args: Any) -> None:
        self.ih, self.hh = nn.Module(), nn.Module()
        super()._randomize(*args)

    def _name(self, key: str, part: str) -> str:
        kind, side, _ = key.split("_")
        return f"{side}.{part}_{kind}"

    def _prior_name(self, key: str, part: str) -> str:
        kind, side, _ = key.split("_")
        return f"{side}.prior_{kind}_{part}"

    def forward(
        self: Any,
        X: Tensor,  # noqa: N803
        hidden_states: tuple[Tensor, Tensor] | None = None,
        return_kl: bool = True,
    ) -> Any:
        """Runs the sequences.

        Args:
            X: shape ``(batch, steps, in_features)``.
            hidden_states: ``(h, c)``, each of shape ``(batch, out_features)``, or
                ``(batch, steps, out_features)`` as returned, of which the last step counts.

        Returns:
            ``h, (h, c), kl`` with ``h`` and ``c`` of shape ``(batch, steps, out_features)``, or
            ``h, (h, c)`` without ``return_kl``.
        """
        posteriors = self._distributions()
        draws = {key: q.rsample() for key, q in posteriors.items()}
        output = self._output(draws, X, hidden_states)
        return (*output, self._kl(posteriors)) if return_kl and not self.dnn_to_bnn_flag else output

    def _run(self: Any, X: Tensor, states: Any) -> Any:  # noqa: N803
        if states is None:
            h = c = X.new_zeros(len(X), self.hidden_size)
        else:
            h, c = (s[:, -1] if s.dim() == 3 else s for s in states)
        hidden, _ = super()._run(X, (h.unsqueeze(0), c.unsqueeze(0)))
        # Torch's kernels keep the cell states of the steps between to themselves, but the gates
        # follow from the hidden states.
        before = torch.cat([h.unsqueeze(1), hidden[:, :-1]], 1)
        bias = (self.bias_ih_l0, self.bias_hh_l0) if self.bias else (None, None)
        gates = F.linear(X, self.weight_ih_l0, bias[0]) + F.linear(
            before, self.weight_hh_l0, bias[1]
        )
        i, f, g, _ = gates.chunk(4, -1)
        update, keep = i.sigmoid() * g.tanh(), f.sigmoid()
        cells = []
        for step_update, step_keep in zip(update.unbind(1), keep.unbind(1), strict=True):
            c = torch.addcmul(step_update, step_keep, c)
            cells.append(c)
        return hidden, (hidden, torch.stack(cells, 1))


class _LSTM(_Sequences, BaseVariationalLayer_):
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
        super().__init__(in_features, out_features, bias=bias, batch_first=True, **options)
        self._set_up(
            prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction
        )


class _LSTMMixture(_Sequences, BaseMixtureLayer_):
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
        super().__init__(in_features, out_features, bias=bias, batch_first=True, **options)
        self._set_up_mixture(
            (prior_mean, prior_mean),
            (prior_variance, prior_variance),
            (posterior_mu_init, posterior_mu_init),
            (posterior_rho_init, posterior_rho_init),
            kl_reduction,
        )


class LinearReparameterization(_Reparameterization, _Linear, nn.Linear):
    """``nn.Linear`` with Normal posteriors, one draw for all examples.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        prior_mean, prior_variance: of the Normal prior of each weight; a variance, not a standard
            deviation. Numbers, or tensors that broadcast to the weights.
        posterior_mu_init, posterior_rho_init: the means ``mu`` start around the first and ``rho``
            around the second, with standard deviation 0.1; the standard deviation of a weight is
            ``log(1 + exp(rho))``.
        bias: whether there is a bias.
        kl_reduction: "sum", in nats, or "mean" for the numbers of bayesian-torch.
        options: further arguments of torch's layer: ``device``, ``dtype``.

    Returns:
        From a call with an input and ``return_kl=True``: the output and the divergence; the output
        alone without ``return_kl``.

    Raises:
        ValueError: if a variance is not positive, or ``kl_reduction`` unknown.

    Example:
        >>> out, kl = LinearReparameterization(3, 2)(torch.ones(5, 3))
        >>> out.shape, kl.shape
        (torch.Size([5, 2]), torch.Size([]))
    """


class Conv1dReparameterization(_Reparameterization, _Convolution, nn.Conv1d):
    """``nn.Conv1d`` with Normal posteriors; see :class:`Conv2dReparameterization`."""


class Conv2dReparameterization(_Reparameterization, _Convolution, nn.Conv2d):
    """``nn.Conv2d`` with Normal posteriors, one draw for all examples.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: of
            ``nn.Conv2d``.
        prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction: as for
            :class:`LinearReparameterization`, as are results and errors.
        options: further arguments of torch's layer: ``padding_mode``, ``device``, ``dtype``.
    """


class Conv3dReparameterization(_Reparameterization, _Convolution, nn.Conv3d):
    """``nn.Conv3d`` with Normal posteriors; see :class:`Conv2dReparameterization`."""


class ConvTranspose1dReparameterization(_Reparameterization, _Convolution, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class ConvTranspose2dReparameterization(_Reparameterization, _Convolution, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class ConvTranspose3dReparameterization(_Reparameterization, _Convolution, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class LSTMReparameterization(_Reparameterization, _LSTM, _Recurrent, nn.LSTM):
    """One layer of ``nn.LSTM`` with Normal posteriors, drawn once for a sequence.

    Args:
        in_features: size of an input at one step.
        out_features: size of the hidden state.
        prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, bias, kl_reduction: as
            for :class:`LinearReparameterization`, as are the errors.
        options: ``device``, ``dtype``.

    Returns:
        From a call with ``(batch, steps, in_features)`` and maybe ``hidden_states``: the hidden
        states of all steps, these again with the cell states, and the divergence, which counts once
        for the sequence.

    Example:
        >>> hidden, (h, c), kl = LSTMReparameterization(3, 4)(torch.ones(5, 7, 3))
        >>> hidden.shape, c.shape
        (torch.Size([5, 7, 4]), torch.Size([5, 7, 4]))
    """


class LinearFlipout(_Flipout, _Linear, nn.Linear):
    """``nn.Linear`` with Normal posteriors, one weight for each example by flipout.

    See :class:`LinearReparameterization`.
    """


class Conv1dFlipout(_Flipout, _Convolution, nn.Conv1d):
    """``nn.Conv1d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`Conv1dReparameterization`.
    """


class Conv2dFlipout(_Flipout, _Convolution, nn.Conv2d):
    """``nn.Conv2d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`Conv2dReparameterization`.
    """


class Conv3dFlipout(_Flipout, _Convolution, nn.Conv3d):
    """``nn.Conv3d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`Conv3dReparameterization`.
    """


class ConvTranspose1dFlipout(_Flipout, _Convolution, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`ConvTranspose1dReparameterization`.
    """


class ConvTranspose2dFlipout(_Flipout, _Convolution, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`ConvTranspose2dReparameterization`.
    """


class ConvTranspose3dFlipout(_Flipout, _Convolution, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with Normal posteriors, one weight for each example by flipout.

    See :class:`ConvTranspose3dReparameterization`.
    """


class LSTMFlipout(_Flipout, _LSTM, _Recurrent, nn.LSTM):
    """One layer of ``nn.LSTM`` with Normal posteriors, one weight for each example by flipout.

    See :class:`LSTMReparameterization`.
    """


class LinearRadial(_Radial, _Linear, nn.Linear):
    """``nn.Linear`` with radial posteriors; see :class:`LinearReparameterization`."""


class Conv1dRadial(_Radial, _Convolution, nn.Conv1d):
    """``nn.Conv1d`` with radial posteriors; see :class:`Conv1dReparameterization`."""


class Conv2dRadial(_Radial, _Convolution, nn.Conv2d):
    """``nn.Conv2d`` with radial posteriors; see :class:`Conv2dReparameterization`."""


class Conv3dRadial(_Radial, _Convolution, nn.Conv3d):
    """``nn.Conv3d`` with radial posteriors; see :class:`Conv3dReparameterization`."""


class ConvTranspose1dRadial(_Radial, _Convolution, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with radial posteriors.

    See :class:`ConvTranspose1dReparameterization`.
    """


class ConvTranspose2dRadial(_Radial, _Convolution, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with radial posteriors.

    See :class:`ConvTranspose2dReparameterization`.
    """


class ConvTranspose3dRadial(_Radial, _Convolution, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with radial posteriors.

    See :class:`ConvTranspose3dReparameterization`.
    """


class LSTMRadial(_Radial, _LSTM, _Recurrent, nn.LSTM):
    """One layer of ``nn.LSTM`` with radial posteriors; see :class:`LSTMReparameterization`."""


class LinearMixture(_LinearMixture, nn.Linear):
    """``nn.Linear`` with mixtures of two Normals as posteriors and priors.

    See :class:`LinearReparameterization`.
    """


class Conv1dMixture(_ConvolutionMixture, nn.Conv1d):
    """``nn.Conv1d`` with mixtures of two Normals as posteriors and priors.

    See :class:`Conv1dReparameterization`.
    """


class Conv2dMixture(_ConvolutionMixture, nn.Conv2d):
    """``nn.Conv2d`` with mixtures of two Normals as posteriors and priors.

    See :class:`Conv2dReparameterization`.
    """


class Conv3dMixture(_ConvolutionMixture, nn.Conv3d):
    """``nn.Conv3d`` with mixtures of two Normals as posteriors and priors.

    See :class:`Conv3dReparameterization`.
    """


class ConvTranspose1dMixture(_ConvolutionMixture, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose1dReparameterization`.
    """


class ConvTranspose2dMixture(_ConvolutionMixture, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose2dReparameterization`.
    """


class ConvTranspose3dMixture(_ConvolutionMixture, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose3dReparameterization`.
    """


class LSTMMixture(_LSTMMixture, _Recurrent, nn.LSTM):
    """One layer of ``nn.LSTM`` with mixtures of two Normals as posteriors and priors.

    See :class:`LSTMReparameterization`.
    """


_KINDS: dict[type[nn.Module], str] = {
    kind: kind.__name__
    for kind in (
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.LSTM,
    )
}


def dnn_to_bnn(m: nn.Module, bnn_prior_parameters: Mapping[str, Any]) -> None:
    """Makes the linear, convolutional and LSTM layers of a network Bayesian, in place.

    Modules keep their identity, so that shared ones stay shared and ``m`` itself may be a layer;
    all of their arguments stay, too. The layers then return outputs alone, so that the network runs
    as it did; :func:`get_kl_loss` gives the divergence.

    Args:
        m: the network.
        bnn_prior_parameters: ``prior_mu``, ``prior_sigma`` (a standard deviation),
            ``posterior_mu_init``, ``posterior_rho_init``, ``type`` ("Reparameterization",
            "Flipout", "Radial" or "Mixture"), and maybe ``kl_reduction``, ``moped_enable`` and
            ``moped_delta``: then posteriors and priors have the trained weights as means, and a
            posterior's standard deviation is ``moped_delta`` times the size of its weight, at least
            1e-4.

    Raises:
        TypeError: if a layer cannot be converted, naming its path and the reason.
        ValueError: if a parameter is missing or unknown, or there is nothing to convert.

    References:
        Krishnan, Subedar and Tickoo (2020), arXiv:1906.05323 (MOPED).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> parameters = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0}
        >>> parameters |= {"posterior_rho_init": -3.0, "type": "Flipout", "moped_enable": False}
        >>> dnn_to_bnn(net, parameters)
        >>> net(torch.ones(5, 3)).shape, get_kl_loss(net).shape
        (torch.Size([5, 2]), torch.Size([]))
    """
    parameters = _checked(bnn_prior_parameters)
    found = [(path or "m", layer) for path, layer in m.named_modules() if _is_meant(layer)]
    if not found:
        raise ValueError("`m` has no linear, convolutional or LSTM layers to convert")
    for path, layer in found:
        reason = _reason(layer, parameters)
        if reason:
            raise TypeError(f"`{path}`, a {type(layer).__name__}, {reason}")
    for weight in weights(m):
        if len({id(layer) for _, layer, _ in weight.places}) > 1:
            raise TypeError(
                f"`{weight.name}` is also `{weight.names[1]}`, but two layers would have two "
                "posteriors: convert by `pyro_bnn.bayesianize`, which keeps it one weight"
            )
    for _, layer in found:
        _convert(layer, parameters)


def get_kl_loss(m: nn.Module) -> Tensor:
    """The divergence of all Bayesian layers of a network, each once.

    Raises:
        ValueError: if there are none.
    """
    layers: list[Any] = [layer for layer in m.modules() if hasattr(layer, "kl_loss")]
    if not layers:
        raise ValueError("`m` has no Bayesian layers: convert it by `dnn_to_bnn`")
    return add_up(layer.kl_loss() for layer in layers)


_REQUIRED = ("prior_mu", "prior_sigma", "posterior_mu_init", "posterior_rho_init", "type")
_OPTIONAL = ("moped_enable", "moped_delta", "kl_reduction")
_TYPES = ("Reparameterization", "Flipout", "Radial", "Mixture")


def _checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in _REQUIRED if key not in parameters]
    unknown = [key for key in parameters if key not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        raise ValueError(
            f"`bnn_prior_parameters` lacks {missing} and has unknown {unknown}: it takes "
            f"{[*_REQUIRED, *_OPTIONAL]}"
        )
    if parameters["type"] not in _TYPES:
        raise ValueError(f"`type` (={parameters['type']!r}) must be one of {_TYPES}")
    if parameters.get("moped_enable"):
        if "moped_delta" not in parameters:
            raise ValueError("`moped_enable` needs `moped_delta`, a fraction of each weight's size")
        check_positive(moped_delta=parameters["moped_delta"])
    _check(parameters.get("kl_reduction", "sum"), prior_sigma=parameters["prior_sigma"])
    return dict(parameters)


def _is_meant(layer: nn.Module) -> bool:
    return isinstance(layer, tuple(_KINDS)) and not isinstance(layer, VariationalLayer)


def _reason(layer: nn.Module, parameters: Mapping[str, Any]) -> str | None:
    """Why a layer cannot be converted."""
    remedy = "convert by `pyro_bnn.bayesianize`, which takes any module"
    if type(layer) not in _KINDS:
        return f"is a subclass of torch's layer with a computation of its own: {remedy}"
    if isinstance(layer, nn.LSTM):
        plain = (layer.num_layers, layer.bidirectional, layer.proj_size, layer.dropout)
        if plain != (1, False, 0, 0.0) or not layer.batch_first:
            return (
                "is not one layer in one direction with `batch_first=True`, which is all that the "
                f"LSTMs of bayesian-torch are: {remedy}"
            )
        if parameters.get("moped_enable") and parameters["type"] == "Mixture":
            return _NO_MOPED
    if parameters.get("moped_enable") and parameters["type"] in ("Radial", "Mixture"):
        return _NO_MOPED
    return None


_NO_MOPED = (
    "cannot have a posterior of this `type` with `moped_enable`, which is for Normal posteriors: "
    "use `Reparameterization` or `Flipout`"
)


def _convert(layer: Any, parameters: Mapping[str, Any]) -> None:
    cls = globals()[_KINDS[type(layer)] + parameters["type"]]
    trained = {key: p.detach().clone() for key, p in layer.named_parameters(recurse=False)}
    layer.__class__ = cls
    if isinstance(layer, _Recurrent):
        vars(layer).pop("_flat_weights", None)
        layer._init_flat_weights()
    values = [
        parameters["prior_mu"],
        parameters["prior_sigma"] ** 2,
        parameters["posterior_mu_init"],
        parameters["posterior_rho_init"],
    ]
    kl_reduction = parameters.get("kl_reduction", "sum")
    if parameters["type"] == "Mixture":
        layer._set_up_mixture(*((x, x) for x in values), kl_reduction)
    else:
        layer._set_up(*values, kl_reduction)
    layer.dnn_to_bnn_flag = True
    if parameters.get("moped_enable"):
        for key, weight in trained.items():
            _set_to_trained(layer, key, weight, parameters["moped_delta"])


@torch.no_grad()
def _set_to_trained(layer: VariationalLayer, key: str, weight: Tensor, delta: float) -> None:
    """MOPED: the trained weight as the mean of posterior and prior."""
    scale = init_to_fraction(delta)({}, weight)
    layer._get(layer._name(key, "mu")).copy_(weight)
    layer._get(layer._name(key, "rho")).copy_(scale + torch.log(-torch.expm1(-scale)))
    holder, name = layer._holder(layer._prior_name(key, "mu"))
    holder.register_buffer(name, weight, persistent=False)


__all__ = [
    "BaseMixtureLayer_",
    "BaseVariationalLayer_",
    "Conv1dFlipout",
    "Conv1dMixture",
    "Conv1dRadial",
    "Conv1dReparameterization",
    "Conv2dFlipout",
    "Conv2dMixture",
    "Conv2dRadial",
    "Conv2dReparameterization",
    "Conv3dFlipout",
    "Conv3dMixture",
    "Conv3dRadial",
    "Conv3dReparameterization",
    "ConvTranspose1dFlipout",
    "ConvTranspose1dMixture",
    "ConvTranspose1dRadial",
    "ConvTranspose1dReparameterization",
    "ConvTranspose2dFlipout",
    "ConvTranspose2dMixture",
    "ConvTranspose2dRadial",
    "ConvTranspose2dReparameterization",
    "ConvTranspose3dFlipout",
    "ConvTranspose3dMixture",
    "ConvTranspose3dRadial",
    "ConvTranspose3dReparameterization",
    "LSTMFlipout",
    "LSTMMixture",
    "LSTMRadial",
    "LSTMReparameterization",
    "LinearFlipout",
    "LinearMixture",
    "LinearRadial",
    "LinearReparameterization",
    "dnn_to_bnn",
    "get_kl_loss",
]
