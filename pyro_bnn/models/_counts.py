"""Likelihoods of counts."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from ._likelihood import Likelihood, outputs, squeezed
from ._quantity import quantity, set_quantity


class _Counts(Likelihood):
    def _support(self, distribution: Any) -> str:
        return "the counts 0, 1, 2, ..."

    def _remedy(self, distribution: Any) -> str:
        return "correct these rows, mask them by `mask=`, or use a likelihood of real numbers"


class Poisson(_Counts):
    r"""Counts whose logarithmic rates are the outputs.

    .. math:: y_n \sim \mathrm{Poisson}(e^{f_n})

    Outputs of shape ``(rows, 1)`` count as ``(rows,)``.
    """

    def distribution(self, output: Any) -> Any:
        return dist.Poisson(squeezed(outputs(output, "Poisson")).exp())


class NegativeBinomial(_Counts):
    r"""Counts that spread more than those of a Poisson distribution.

    With mean :math:`m_n = e^{f_n}` and variance :math:`m_n + m_n^2 / r`. Outputs of shape
    ``(rows, 1)`` count as ``(rows,)``.

    Args:
        total_count: :math:`r`, positive: fixed, learned (None) or a prior, as the scale of
            :class:`Normal`; towards infinity, the distribution becomes Poisson's.
        shape: that of a learned one.

    Raises:
        TypeError, ValueError: as for :class:`Normal`.

    Example:
        >>> counts = NegativeBinomial(total_count=2.0)(torch.zeros(1))
        >>> counts.mean, counts.variance
        (tensor([1.]), tensor([1.5000]))
    """

    def __init__(
        self,
        total_count: float | Tensor | Distribution | None = None,
        *,
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        set_quantity(self, "total_count", total_count, 1.0, shape)

    def distribution(self, output: Any) -> Any:
        log_mean = squeezed(outputs(output, "NegativeBinomial"))
        total_count = quantity(self, "total_count", log_mean)
        return dist.NegativeBinomial(total_count, logits=log_mean - total_count.log())
