"""What is predicted for a set of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from pyro.ops.stats import quantile
from torch import Tensor

from .._tensors import as_tensor

CLASSES = ("classes", "ranks", "labels")  # whose predictions are probabilities


@dataclass(frozen=True, eq=False)
class Prediction:
    r"""The posterior predictive distribution of the targets of each row.

    .. math:: p(y_n \mid x_n, D) \approx \frac1S \sum_s p(y_n \mid x_n, w_s), \quad w_s \sim q

    Each draw :math:`w_s` of the weights is one network for all rows, so that the first dimension of
    ``samples`` is one of coherent functions (with the noise of the observations).

    Attributes:
        mean: of classes, their probabilities, in the last dimension; of two classes or labels, the
            probability of 1; of other targets, the mean.
        stddev: standard deviation of the target (of classes, of being each of them).
        samples: a target for each draw and row, with the noise of the observations. Classes are
            indices.
        total: of classes, the entropy :math:`H` of the prediction in nats,
            :math:`H(\frac1S \sum_s p_s)`; of other targets, its variance.
        aleatoric: what would remain if the weights were known: the expected entropy
            :math:`\frac1S \sum_s H(p_s)`, or the mean of the variances.
        epistemic: what is due to not knowing them: the mutual information of target and weights, or
            the variance of the means. ``total = aleatoric + epistemic``.
        kind: what the targets are: ``"classes"``, ``"ranks"``, ``"labels"`` (of 0 and 1),
            ``"counts"`` or ``"numbers"``.

    Means and variances are exact for these draws where the distribution of the targets has them,
    and estimated from 100 samples of each elsewhere.
    """

    mean: Tensor
    stddev: Tensor
    samples: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    kind: str = "numbers"

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def probs(self) -> Tensor:
        """The probabilities of all classes, in the last dimension; of labels, those of 0 and 1.

        Raises:
            ValueError: if the targets are no classes.
        """
        if self.kind not in CLASSES:
            raise ValueError(
                f"the targets are {self.kind}, which have no `probs`: see `mean` and `quantiles`"
            )
        return torch.stack([1 - self.mean, self.mean], -1) if self.kind == "labels" else self.mean

    def quantiles(self, probs: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of the targets, those of ``samples``: with the noise of the observations.

        Args:
            probs: one probability or several.

        Returns:
            The quantiles of each row, with those of several probabilities in the first dimension.

        Raises:
            TypeError: if ``probs`` are no numbers.
            ValueError: if ``probs`` are not between 0 and 1, or the targets are classes without an
                order.

        Example:
            >>> from pyro_bnn import BNN, fit, likelihoods, predict
            >>> model = BNN(torch.nn.Linear(2, 1), likelihoods.Normal(0.1))
            >>> x, guide = torch.ones(7, 2), AutoLRT(model)
            >>> history = fit(model, guide, (x, torch.ones(7)), epochs=10)
            >>> predict(model, guide, x).quantiles([0.05, 0.95]).shape
            torch.Size([2, 7])
        """
        try:
            given = as_tensor(probs, dtype=torch.double)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"`probs` (={probs!r}) must be numbers") from None
        if given.dim() > 1 or not bool(((given >= 0) & (given <= 1)).all()):
            raise ValueError(f"`probs` (={probs}) must be probabilities, between 0 and 1")
        if self.kind == "classes":
            raise ValueError(
                "`quantiles` need targets with an order, but these are classes: `mean` has their "
                "probabilities"
            )
        given = given.to(self.samples.device)
        if self.kind == "numbers":
            return quantile(self.samples, given.to(self.samples.dtype))
        place = given * (len(self.samples) - 1)
        return self.samples.sort(0).values[place.round().long()]


def joined(parts: list[Prediction]) -> Prediction:
    """The prediction for the rows of all parts."""
    first = parts[0]
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(first) if f.name != "kind"):
        values[name] = torch.cat([getattr(part, name) for part in parts], int(name == "samples"))
    return replace(first, **values)


def targets_of(prediction: Prediction, y: Any) -> Tensor:
    """Targets in the shape of the samples of a prediction, checked."""
    shape = prediction.samples.shape[1:]
    y = as_tensor(y).to(prediction.samples.device)
    if y.numel() != shape.numel() or y.shape[:1] != shape[:1]:
        raise ValueError(
            f"`y` has the shape {tuple(y.shape)}, but the prediction is of targets of shape "
            f"{tuple(shape)}"
        )
    num_classes = prediction.probs.shape[-1] if prediction.kind in CLASSES else None
    is_finite = bool(y.isfinite().all())
    if not is_finite or (num_classes and not 0 <= y.min() <= y.max() < num_classes):
        valid = f"classes from 0 to {num_classes - 1}" if num_classes else "finite"
        raise ValueError(f"`y` must be {valid}, but its values are from {y.min()} to {y.max()}")
    return y.reshape(shape)


def of_classes(probs: Tensor, samples: Tensor, kind: str) -> Prediction:
    """From the probabilities of classes under each draw."""
    mean = probs.mean(0)
    total = torch.special.entr(mean).sum(-1)
    return _of_entropies(mean, samples, total, torch.special.entr(probs).sum(-1), kind)


def of_labels(probs: Tensor, samples: Tensor) -> Prediction:
    """From the probability of 1 under each draw."""
    mean = probs.mean(0)
    entropy = lambda p: torch.special.entr(p) + torch.special.entr(1 - p)
    return _of_entropies(mean, samples, entropy(mean), entropy(probs), "labels")


def of_numbers(
    means: Tensor, variances: Tensor, samples: Tensor, kind: str, *, error: float = 0.0
) -> Prediction:
    """From the mean and variance under each draw.

    Args:
        error: squared standard error of the means, in units of the variances.
    """
    aleatoric = variances.mean(0)
    epistemic = (means.var(0, correction=0) - error * aleatoric).clamp(min=0)
    total = aleatoric + epistemic
    mean = means.mean(0)
    return Prediction(mean, total.sqrt(), samples, total, aleatoric, epistemic, kind)


def _of_entropies(
    mean: Tensor, samples: Tensor, total: Tensor, entropies: Tensor, kind: str
) -> Prediction:
    epistemic = (total - entropies.mean(0)).clamp(min=0)  # as it is, but for rounding
    stddev = (mean * (1 - mean)).sqrt()
    return Prediction(mean, stddev, samples, total, total - epistemic, epistemic, kind)
