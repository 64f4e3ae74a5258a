"""The Bayesian embedding."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from ._layer import BayesianLayer


class BayesianEmbedding(
    BayesianLayer,
    PyroModule[nn.Embedding],  # type: ignore[type-arg]
    without=("bias_prior",),
):
    r"""``torch.nn.Embedding`` with random rows.

    A lookup is the linear map of a row that is one at the index and zero elsewhere. Flipout and
    local reparameterization draw the rows that are looked up and no others; under flipout the signs
    are those of the columns.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of a row.
        padding_idx: index whose output is the buffer ``padding_row``, zero, whatever the weight.
        max_norm, norm_type: rows with a larger norm are scaled down to it, in the output.
        scale_grad_by_freq, device, dtype: of ``nn.Embedding``.
        sparse: must be False, since the KL divergence from the prior reaches all rows.
        prior: prior of the weight: a distribution that broadcasts to its shape
            ``(num_embeddings, embedding_dim)``, or a rule from :mod:`pyro_bnn.priors`, to which a
            row has one input; see :doc:`/defaults` for the default.

    Raises:
        TypeError: if the prior is neither a distribution nor a rule.
        ValueError: if the prior does not broadcast to the weight, or ``sparse`` is true.

    Example:
        >>> BayesianEmbedding(10, 3, padding_idx=0)(torch.tensor([[4, 0]])).shape
        torch.Size([1, 2, 3])
    """

    def _sample_parameters(self, *priors: Any) -> None:
        if self.sparse:
            raise ValueError(
                f"`sparse` (={self.sparse}) must be False: the KL divergence from the prior has a "
                "gradient in all rows, looked up or not"
            )
        padding = None if self.padding_idx is None else torch.zeros_like(self.weight)
        super()._sample_parameters(*priors)
        self.keep_padding(padding)

    def keep_padding(self, weight: Tensor | None) -> None:
        """Gives the padding its row in a weight, whatever is drawn; without one, what is drawn."""
        row = None
        if weight is not None and self.padding_idx is not None:
            row = weight[self.padding_idx].clone()
        self.register_buffer("padding_row", row)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "a Bayesian embedding has no weights of its own: build it by its sizes, and give the "
            "guide the pretrained rows as initial means by `init_loc_fn`, or the layer a `prior` "
            "around them"
        )

    def forward(self, input: Tensor) -> Tensor:
        options = {"scale_grad_by_freq": self.scale_grad_by_freq}
        rows = F.embedding(input, self.weight, self.padding_idx, **options)
        if self.padding_row is not None:
            is_padding = (input == self.padding_idx).unsqueeze(-1)
            rows = torch.where(is_padding, self.padding_row, rows)
        if self.max_norm is not None:  # torch would change the weight
            norm = torch.linalg.vector_norm(rows, self.norm_type, -1, keepdim=True)
            rows = torch.where(norm > self.max_norm, rows * (self.max_norm / (norm + 1e-7)), rows)
        return rows

    def _fan_in(self, weight: Tensor) -> int:
        return 1
