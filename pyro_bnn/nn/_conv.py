"""The Bayesian convolutions."""

from __future__ import annotations

import math
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn

from ._layer import BayesianLayer


class BayesianConv1d(BayesianLayer, PyroModule[nn.Conv1d]):  # type: ignore[type-arg]
    """``torch.nn.Conv1d`` with random weights; see :class:`BayesianConv2d`.

    Example:
        >>> BayesianConv1d(3, 8, kernel_size=5, padding="same")(torch.ones(2, 3, 20)).shape
        torch.Size([2, 8, 20])
    """


class BayesianConv2d(BayesianLayer, PyroModule[nn.Conv2d]):  # type: ignore[type-arg]
    r"""``torch.nn.Conv2d`` with random weights.

    .. math:: y_{o} = b_o + \sum_i W_{oi} \star x_i

    In a Pyro model, weight and bias are sample sites; which posterior they get, and how outputs
    are computed from it, is up to the guide. Under flipout each image has one weight, with a sign
    for each input and each output channel; under local reparameterization the noise of pixels is
    independent. Weights may have sample dimensions in front (``(S, 1, out, in, height, width)``),
    as plates of particles make them; the output then has them too (``(S, N, out, ...)``), and what
    follows must take them or raises an error.

    Args:
        in_channels: number of channels of an input.
        out_channels: number of channels of an output.
        kernel_size: height and width of the kernel.
        stride, padding, dilation, groups, bias, padding_mode, device, dtype: of ``nn.Conv2d``.
        prior, bias_prior: as for :class:`BayesianLinear`; the weight has the shape
            ``(out, in / groups, height, width)``.

    Raises:
        TypeError, ValueError: as :class:`BayesianLinear`, and what ``nn.Conv2d`` raises.

    Example:
        >>> layer = BayesianConv2d(3, 8, kernel_size=3, prior=FanInNormal(2**0.5))
        >>> layer(torch.ones(2, 3, 10, 10)).shape
        torch.Size([2, 8, 8, 8])
    """


class BayesianConv3d(BayesianLayer, PyroModule[nn.Conv3d]):  # type: ignore[type-arg]
    """``torch.nn.Conv3d`` with random weights; see :class:`BayesianConv2d`.

    Example:
        >>> BayesianConv3d(1, 4, kernel_size=2, stride=2)(torch.ones(2, 1, 6, 6, 6)).shape
        torch.Size([2, 4, 3, 3, 3])
    """


class _Transposed:
    def _fan_in(self: Any, weight: Tensor) -> int:
        taps = weight[0, 0].numel() / math.prod(self.stride)  # those that one output is a sum over
        return max(1, round(self.in_channels // self.groups * taps))

    def _output_padding(self: Any, input: Tensor, *args: Any) -> Any:
        batch_dim = -len(self.kernel_size) - 2
        if input.dim() > -batch_dim:  # torch would take sample dimensions for channels
            input = input.flatten(0, batch_dim)
        return super()._output_padding(input, *args)  # type: ignore[misc]


class BayesianConvTranspose1d(
    _Transposed,
    BayesianLayer,
    PyroModule[nn.ConvTranspose1d],  # type: ignore[type-arg]
):
    """``torch.nn.ConvTranspose1d`` with random weights; see :class:`BayesianConvTranspose2d`.

    Example:
        >>> BayesianConvTranspose1d(3, 8, kernel_size=4, stride=2)(torch.ones(2, 3, 10)).shape
        torch.Size([2, 8, 22])
    """


class BayesianConvTranspose2d(
    _Transposed,
    BayesianLayer,
    PyroModule[nn.ConvTranspose2d],  # type: ignore[type-arg]
):
    """``torch.nn.ConvTranspose2d`` with random weights, the adjoint of a convolution.

    Everything that is said of :class:`BayesianConv2d` holds, for a weight of shape
    ``(in, out / groups, height, width)``. For rules of priors, the number of inputs of an output is
    ``in / groups * height * width / stride**2``, as many as it sums over on average.

    Args:
        in_channels: number of channels of an input.
        out_channels: number of channels of an output.
        kernel_size: height and width of the kernel.
        stride, padding, output_padding, groups, bias, dilation, padding_mode, device, dtype: of
            ``nn.ConvTranspose2d``, whose forward also takes ``output_size``.
        prior: prior of the weight: a distribution that broadcasts to its shape, or a rule from
            :mod:`pyro_bnn.priors`; see :doc:`/defaults` for the default.
        bias_prior: likewise for the bias, of shape ``(out,)``.

    Raises:
        TypeError: if a prior is neither a distribution nor a rule.
        ValueError: if a prior does not broadcast to its weight, if ``bias_prior`` is given with
            ``bias=False``, and what ``nn.ConvTranspose2d`` raises.

    Example:
        >>> layer = BayesianConvTranspose2d(8, 3, kernel_size=2, stride=2)
        >>> layer(torch.ones(5, 8, 7, 7)).shape
        torch.Size([5, 3, 14, 14])
    """


class BayesianConvTranspose3d(
    _Transposed,
    BayesianLayer,
    PyroModule[nn.ConvTranspose3d],  # type: ignore[type-arg]
):
    """``torch.nn.ConvTranspose3d`` with random weights; see :class:`BayesianConvTranspose2d`.

    Example:
        >>> BayesianConvTranspose3d(4, 1, kernel_size=2, stride=2)(torch.ones(2, 4, 3, 3, 3)).shape
        torch.Size([2, 1, 6, 6, 6])
    """
