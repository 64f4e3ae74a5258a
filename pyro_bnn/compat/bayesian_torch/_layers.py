"""The 32 layers: torch's computations, the arguments and the posteriors of bayesian-torch."""

from __future__ import annotations

from torch import nn

from .._like import like
from ._arguments import (
    ByFlipout,
    ByRadial,
    ByReparameterization,
    ConvolutionArguments,
    ConvolutionMixtureArguments,
    LinearArguments,
    LinearMixtureArguments,
)
from ._sequences import LSTMArguments, LSTMMixtureArguments


class LinearReparameterization(ByReparameterization, LinearArguments, like(nn.Linear)):
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
        From a call with an input and ``return_kl=True``: the output and the KL divergence; the
        output alone without ``return_kl``.

    Raises:
        ValueError: if a variance is not positive, or ``kl_reduction`` unknown.

    Example:
        >>> out, kl = LinearReparameterization(3, 2)(torch.ones(5, 3))
        >>> out.shape, kl.shape
        (torch.Size([5, 2]), torch.Size([]))
    """


class Conv1dReparameterization(ByReparameterization, ConvolutionArguments, like(nn.Conv1d)):
    """``nn.Conv1d`` with Normal posteriors; see :class:`Conv2dReparameterization`."""


class Conv2dReparameterization(ByReparameterization, ConvolutionArguments, like(nn.Conv2d)):
    """``nn.Conv2d`` with Normal posteriors, one draw for all examples.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: of
            ``nn.Conv2d``.
        prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, kl_reduction: as for
            :class:`LinearReparameterization`, as are results and errors.
        options: further arguments of torch's layer: ``padding_mode``, ``device``, ``dtype``.
    """


class Conv3dReparameterization(ByReparameterization, ConvolutionArguments, like(nn.Conv3d)):
    """``nn.Conv3d`` with Normal posteriors; see :class:`Conv2dReparameterization`."""


class ConvTranspose1dReparameterization(
    ByReparameterization, ConvolutionArguments, like(nn.ConvTranspose1d)
):
    """``nn.ConvTranspose1d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class ConvTranspose2dReparameterization(
    ByReparameterization, ConvolutionArguments, like(nn.ConvTranspose2d)
):
    """``nn.ConvTranspose2d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class ConvTranspose3dReparameterization(
    ByReparameterization, ConvolutionArguments, like(nn.ConvTranspose3d)
):
    """``nn.ConvTranspose3d`` with Normal posteriors; see :class:`Conv2dReparameterization`.

    Options are ``output_padding``, ``device`` and ``dtype``.
    """


class LSTMReparameterization(ByReparameterization, LSTMArguments, like(nn.LSTM)):
    """One layer of ``nn.LSTM`` with Normal posteriors, drawn once for a sequence.

    Args:
        in_features: size of an input at one step.
        out_features: size of the hidden state.
        prior_mean, prior_variance, posterior_mu_init, posterior_rho_init, bias, kl_reduction: as
            for :class:`LinearReparameterization`, as are the errors.
        options: ``device``, ``dtype``.

    Returns:
        From a call with ``(batch, steps, in_features)`` and maybe ``hidden_states``: the hidden
        states of all steps, these again with the cell states, and the KL divergence, which counts
        once for the sequence.

    Example:
        >>> hidden, (h, c), kl = LSTMReparameterization(3, 4)(torch.ones(5, 7, 3))
        >>> hidden.shape, c.shape
        (torch.Size([5, 7, 4]), torch.Size([5, 7, 4]))
    """


class LinearFlipout(ByFlipout, LinearArguments, like(nn.Linear)):
    """``nn.Linear`` with Normal posteriors, one weight for each example by flipout.

    See :class:`LinearReparameterization`.
    """


class Conv1dFlipout(ByFlipout, ConvolutionArguments, like(nn.Conv1d)):
    """``nn.Conv1d`` by flipout; see :class:`Conv1dReparameterization`."""


class Conv2dFlipout(ByFlipout, ConvolutionArguments, like(nn.Conv2d)):
    """``nn.Conv2d`` by flipout; see :class:`Conv2dReparameterization`."""


class Conv3dFlipout(ByFlipout, ConvolutionArguments, like(nn.Conv3d)):
    """``nn.Conv3d`` by flipout; see :class:`Conv3dReparameterization`."""


class ConvTranspose1dFlipout(ByFlipout, ConvolutionArguments, like(nn.ConvTranspose1d)):
    """``nn.ConvTranspose1d`` by flipout; see :class:`ConvTranspose1dReparameterization`."""


class ConvTranspose2dFlipout(ByFlipout, ConvolutionArguments, like(nn.ConvTranspose2d)):
    """``nn.ConvTranspose2d`` by flipout; see :class:`ConvTranspose2dReparameterization`."""


class ConvTranspose3dFlipout(ByFlipout, ConvolutionArguments, like(nn.ConvTranspose3d)):
    """``nn.ConvTranspose3d`` by flipout; see :class:`ConvTranspose3dReparameterization`."""


class LSTMFlipout(ByFlipout, LSTMArguments, like(nn.LSTM)):
    """One layer of ``nn.LSTM`` with Normal posteriors, one weight for each example by flipout.

    See :class:`LSTMReparameterization`.
    """


class LinearRadial(ByRadial, LinearArguments, like(nn.Linear)):
    """``nn.Linear`` with radial posteriors; see :class:`LinearReparameterization`."""


class Conv1dRadial(ByRadial, ConvolutionArguments, like(nn.Conv1d)):
    """``nn.Conv1d`` with radial posteriors; see :class:`Conv1dReparameterization`."""


class Conv2dRadial(ByRadial, ConvolutionArguments, like(nn.Conv2d)):
    """``nn.Conv2d`` with radial posteriors; see :class:`Conv2dReparameterization`."""


class Conv3dRadial(ByRadial, ConvolutionArguments, like(nn.Conv3d)):
    """``nn.Conv3d`` with radial posteriors; see :class:`Conv3dReparameterization`."""


class ConvTranspose1dRadial(ByRadial, ConvolutionArguments, like(nn.ConvTranspose1d)):
    """``nn.ConvTranspose1d`` with radial posteriors.

    See :class:`ConvTranspose1dReparameterization`.
    """


class ConvTranspose2dRadial(ByRadial, ConvolutionArguments, like(nn.ConvTranspose2d)):
    """``nn.ConvTranspose2d`` with radial posteriors.

    See :class:`ConvTranspose2dReparameterization`.
    """


class ConvTranspose3dRadial(ByRadial, ConvolutionArguments, like(nn.ConvTranspose3d)):
    """``nn.ConvTranspose3d`` with radial posteriors.

    See :class:`ConvTranspose3dReparameterization`.
    """


class LSTMRadial(ByRadial, LSTMArguments, like(nn.LSTM)):
    """One layer of ``nn.LSTM`` with radial posteriors; see :class:`LSTMReparameterization`."""


class LinearMixture(LinearMixtureArguments, like(nn.Linear)):
    """``nn.Linear`` with mixtures of two Normals as posteriors and priors.

    See :class:`LinearReparameterization`.
    """


class Conv1dMixture(ConvolutionMixtureArguments, like(nn.Conv1d)):
    """``nn.Conv1d`` with mixtures of two Normals; see :class:`Conv1dReparameterization`."""


class Conv2dMixture(ConvolutionMixtureArguments, like(nn.Conv2d)):
    """``nn.Conv2d`` with mixtures of two Normals; see :class:`Conv2dReparameterization`."""


class Conv3dMixture(ConvolutionMixtureArguments, like(nn.Conv3d)):
    """``nn.Conv3d`` with mixtures of two Normals; see :class:`Conv3dReparameterization`."""


class ConvTranspose1dMixture(ConvolutionMixtureArguments, like(nn.ConvTranspose1d)):
    """``nn.ConvTranspose1d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose1dReparameterization`.
    """


class ConvTranspose2dMixture(ConvolutionMixtureArguments, like(nn.ConvTranspose2d)):
    """``nn.ConvTranspose2d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose2dReparameterization`.
    """


class ConvTranspose3dMixture(ConvolutionMixtureArguments, like(nn.ConvTranspose3d)):
    """``nn.ConvTranspose3d`` with mixtures of two Normals as posteriors and priors.

    See :class:`ConvTranspose3dReparameterization`.
    """


class LSTMMixture(LSTMMixtureArguments, like(nn.LSTM)):
    """One layer of ``nn.LSTM`` with mixtures of two Normals as posteriors and priors.

    See :class:`LSTMReparameterization`.
    """
