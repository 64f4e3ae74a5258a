"""What an estimator makes of one weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ._maps import LinearMap


class Sample(ABC):
    """One sample of a weight (or bias), by some estimator.

    Attributes:
        loc: mean of the posterior, without sample dimensions that only repeat it.
        shape: shape of the sample, sample dimensions included.
    """

    loc: Tensor
    shape: torch.Size

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """An ordinary sample of the weight, the same one at each call."""

    @property
    @abstractmethod
    def mT(self) -> Sample:
        """The sample of the transposed weight."""

    @abstractmethod
    def apply(self, map: LinearMap, input: Tensor, bias: Tensor | None) -> Tensor:
        """What the map makes of the input and this weight, with the bias added."""

    @abstractmethod
    def bias_noise(self, map: LinearMap, input: Tensor, output: Tensor, samples: int) -> Tensor:
        """The noise of this bias, mean excluded, for an output with some sample dimensions."""
