"""Likelihoods of real numbers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from .._validation import check_positive
from ._likelihood import Likelihood, outputs, squeezed
from ._quantity import quantity, set_quantity
from ._rows import num_batch_dims


class Normal(Likelihood):
    r"""Normal noise around the outputs, the same for all rows.

    .. math:: y_n \sim N(f_n, \sigma^2)

    Outputs of shape ``(rows, 1)`` count as ``(rows,)``; all other dimensions are those of one
    target, so that ``(rows, 3)`` is a regression with three targets for each row.

    Args:
        scale: the standard deviation of the noise :math:`\sigma`, in the unit of the targets: a
            positive number or tensor that is fixed; None for a parameter, learned with the rest;
            or a prior, such as ``HalfNormal(1.0)``, for a latent variable (the site
            ``likelihood.scale`` of a :class:`~pyro_bnn.BNN`). A tensor or prior of shape ``(3,)``
            has a noise for each of three targets.
        shape: that of a learned scale, ``(3,)`` for a noise for each of three targets.

    Raises:
        TypeError: if ``scale`` is none of these.
        ValueError: if it is not positive; in a call, if it does not fit the outputs.

    Example:
        >>> Normal(scale=0.5)(torch.zeros(4, 1)).stddev
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self, scale: float | Tensor | Distribution | None = None, *, shape: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        set_quantity(self, "scale", scale, 1.0, shape)

    def distribution(self, output: Any) -> Any:
        loc = squeezed(outputs(output, "Normal"))
        return dist.Normal(loc, quantity(self, "scale", loc))


class StudentT(Likelihood):
    r"""Student-t noise around the outputs, for targets with outliers.

    .. math:: y_n \sim t_\nu(f_n, \sigma)

    Args:
        df: degrees of freedom :math:`\nu`: fixed, learned or random, as ``scale`` is. The variance
            is infinite up to 2.
        scale: :math:`\sigma`, as for :class:`Normal`; the standard deviation is
            :math:`\sigma \sqrt{\nu / (\nu - 2)}`.
        shape: that of what is learned.

    Raises:
        TypeError, ValueError: as for :class:`Normal`.
    """

    def __init__(
        self,
        df: float | Tensor | Distribution | None = 4.0,
        scale: float | Tensor | Distribution | None = None,
        *,
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        set_quantity(self, "df", df, 4.0, shape)
        set_quantity(self, "scale", scale, 1.0, shape)

    def distribution(self, output: Any) -> Any:
        loc = squeezed(outputs(output, "StudentT"))
        return dist.StudentT(quantity(self, "df", loc), loc, quantity(self, "scale", loc))


class HeteroscedasticNormal(Likelihood):
    r"""Normal noise whose scale is an output, too: two outputs for each target.

    .. math:: y_n \sim N(f_n, \sigma_n^2), \quad \sigma_n = \sigma_{\min} + \log(1 + e^{g_n})

    Args:
        min_scale: :math:`\sigma_{\min}`, positive, in the unit of the targets. Without it, one row
            that is fitted exactly would have an infinite density.

    Raises:
        ValueError: if ``min_scale`` is not positive; in a call, if the last dimension of the
            outputs is odd. The means :math:`f_n` are its first half, the :math:`g_n` its second.

    Example:
        >>> HeteroscedasticNormal()(torch.zeros(5, 2)).shape()
        torch.Size([5])
        >>> HeteroscedasticNormal()(torch.zeros(5, 6)).shape()
        torch.Size([5, 3])
    """

    def __init__(self, *, min_scale: float = 1e-3) -> None:
        super().__init__()
        check_positive(min_scale=min_scale)
        self.min_scale = min_scale

    def distribution(self, output: Any) -> Any:
        output = outputs(output, "HeteroscedasticNormal")
        if output.dim() <= num_batch_dims() or output.shape[-1] % 2:
            raise ValueError(
                f"the outputs have the shape {tuple(output.shape)}, but `HeteroscedasticNormal` "
                "takes two for each target: end the network with "
                "`nn.Linear(features, 2 * targets)`"
            )
        loc, raw = output.chunk(2, -1)
        return dist.Normal(squeezed(loc), self.min_scale + F.softplus(squeezed(raw)))
