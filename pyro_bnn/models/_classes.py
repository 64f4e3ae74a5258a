"""Likelihoods of classes, labels and ranks."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from ._likelihood import Likelihood, as_classes, outputs, squeezed
from ._rows import innermost, num_batch_dims


class _Classes(Likelihood):
    def check_values(self, y: Tensor, distribution: Any) -> None:
        num_classes = innermost(distribution).param_shape[-1]
        if torch.jit.is_tracing() or not y.numel():
            return
        low, high = (int(bound) for bound in y.aminmax())
        if low < 0 or high >= num_classes:
            hint = "number the classes from 0, " if low == 1 and high == num_classes else ""
            raise ValueError(
                f"`y` has classes from {low} to {high}, but the network has {num_classes} outputs, "
                f"for the classes 0 to {num_classes - 1}: {hint}give it more outputs, or mask rows "
                "without a class by `mask=`"
            )


class Categorical(_Classes):
    r"""One of several classes, whose unnormalised logarithmic probabilities are the outputs.

    .. math:: P(y_n = k) = \frac{e^{f_{nk}}}{\sum_j e^{f_{nj}}}

    Targets are class indices from 0. Outputs of shape ``(rows, steps, classes)`` have a target for
    each step.

    Args:
        class_dim: the dimension of the classes, counted from the end: -1, or -3 for images of
            shape ``(rows, classes, height, width)``.

    Raises:
        ValueError: if ``class_dim`` is not negative; in a call, if the outputs have no such
            dimension, or one class only.
    """

    def __init__(self, *, class_dim: int = -1) -> None:
        super().__init__()
        if class_dim >= 0:
            raise ValueError(
                f"`class_dim` (={class_dim}) must be negative: it is counted from the end, so that "
                "for images of shape (rows, classes, height, width) it is -3"
            )
        self.class_dim = class_dim

    def distribution(self, output: Any) -> Any:
        logits = outputs(output, "Categorical")
        if logits.dim() - num_batch_dims() < -self.class_dim or logits.shape[self.class_dim] < 2:
            raise ValueError(
                f"the outputs have the shape {tuple(logits.shape)}, but `Categorical` takes one "
                "for each class: end the network with `nn.Linear(features, classes)`, or use "
                "`Bernoulli` for one output and two classes"
            )
        return dist.Categorical(logits=logits.movedim(self.class_dim, -1))


class Bernoulli(Likelihood):
    r"""Two classes, or labels that may hold together, whose log odds are the outputs.

    .. math:: P(y_n = 1) = \frac{1}{1 + e^{-f_n}}

    Targets are 0 or 1, of any dtype. Outputs of shape ``(rows, 1)`` count as ``(rows,)``;
    ``(rows, labels)`` is a multi-label classification.
    """

    def distribution(self, output: Any) -> Any:
        return dist.Bernoulli(logits=squeezed(outputs(output, "Bernoulli")))

    def _support(self, distribution: Any) -> str:
        return "0 and 1"

    def _remedy(self, distribution: Any) -> str:
        return "use `Categorical` for more classes, and `y > 0` for labels of -1 and 1"


class Ordinal(_Classes):
    r"""Ranks: classes in order, from one output (``pyro.distributions.OrderedLogistic``).

    .. math:: P(y_n \le k) = \frac{1}{1 + e^{f_n - c_k}}

    with learned cutpoints :math:`c_0 < c_1 < \dots`. Targets are ranks from 0.

    Args:
        num_classes: number of ranks, at least 2.

    Raises:
        ValueError: if ``num_classes`` is below 2.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` (={num_classes}) must be at least 2")
        # Ranks are equally probable where the output is 0.
        start = torch.logit(torch.arange(1, num_classes, dtype=torch.double) / num_classes)
        self.cutpoints = PyroParam(start, constraints.ordered_vector, 1)

    def distribution(self, output: Any) -> Any:
        predictor = squeezed(outputs(output, "Ordinal"))
        cutpoints: Any = self.cutpoints
        return dist.OrderedLogistic(predictor, cutpoints.to(predictor.dtype))

    def _converted(self, y: Tensor, distribution: Any) -> Tensor:
        return as_classes(y)
