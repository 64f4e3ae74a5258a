"""What training needs of a module that returns ``(output, kl)``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._gradients import check_gradients
from .._kl_weight import HasKLWeight
from ..posteriors import Posterior
from ..posteriors._groups import parameter_groups


class ReturnsKL(HasKLWeight, nn.Module):
    """Base class of modules that return ``(output, kl)``: the weight of the KL, and groups.

    Args:
        kl_weight: factor of the KL divergence that is returned.
    """

    _kl_factor: Tensor

    def __init__(self, kl_weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("_kl_factor", torch.ones(()), persistent=False)
        self.kl_weight = kl_weight

    def _set_kl_weight(self, value: float) -> None:
        super()._set_kl_weight(value)
        self._kl_factor.fill_(value)

    def parameter_groups(self, lr: float, scale_lr: float) -> list[dict[str, Any]]:
        """The parameters in groups for a torch optimizer, the scales of posteriors apart.

        Args:
            lr: learning rate of the means and of all other parameters.
            scale_lr: learning rate of the scales of posteriors.

        Returns:
            Groups with ``params`` and ``lr``, which have every trainable parameter once; frozen
            ones (``requires_grad=False``) are left out.

        Raises:
            ValueError: if a rate is not positive and finite.
        """
        return parameter_groups(self.parameters(), self._trained_posteriors(), lr, scale_lr)

    def _trained_posteriors(self) -> Iterable[Posterior]:
        raise NotImplementedError

    def _weighted(self, kl: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a number would be compiled in, again at each change
            return kl * self._kl_factor
        kl = kl if self._kl_weight == 1 else kl * self._kl_weight
        if kl.requires_grad:
            check_gradients(kl, self._leaves())
        return kl

    def _leaves(self) -> dict[str, Tensor]:
        known = self.__dict__.get("_watched")
        if known is None:
            known = dict(self.named_parameters())
            # To list them takes long; those of a `functional_call` are there for a while only.
            if all(isinstance(p, nn.Parameter) for p in known.values()):
                self.__dict__["_watched"] = known
            else:
                known = {name: p for name, p in known.items() if p.is_leaf}
        return known
