"""The weight of the KL divergence in a loss."""

from __future__ import annotations

from ._validation import check_kl_weight


class HasKLWeight:
    """Mixin for what has a factor of the KL divergence, which may be assigned between steps."""

    _kl_weight: float

    @property
    def kl_weight(self) -> float:
        """The factor of the KL divergence; 1 for the ELBO."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        check_kl_weight(value)
        self._set_kl_weight(value)

    def _set_kl_weight(self, value: float) -> None:
        self.__dict__["_kl_weight"] = value
