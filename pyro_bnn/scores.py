"""Scores of predictions: those of :func:`~pyro_bnn.evaluate`, and others."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy_kept", "brier", "calibration_error", "crps", "novelty_auroc", "pit"]


def brier(probs: Tensor, y: Tensor) -> Tensor:
    r"""The Brier score of each prediction of classes: 0 is best, 2 is worst.

    .. math:: \sum_k (p_{nk} - [y_n = k])^2

    Args:
        probs: probabilities of the classes, in the last dimension.
        y: class indices.

    Returns:
        A tensor of the shape of ``y``.

    Example:
        >>> brier(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.5000, 2.0000])
    """
    true = torch.nn.functional.one_hot(y.long(), probs.shape[-1])
    return (probs - true).square().sum(-1)


def calibration_error(
    confidence: Tensor, correct: Tensor, num_bins: int = 15, *, weight: Tensor | None = None
) -> float:
    r"""The expected calibration error (ECE) of classes.

    .. math:: \sum_b \frac{n_b}{N} \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|

    Args:
        confidence: the probability of the predicted class.
        correct: whether it is the true one, in the same shape.
        num_bins: number of bins of equal width.
        weight: how often each prediction counts, in the same shape; once by default.

    Raises:
        ValueError: if the shapes differ, or there is nothing to average.

    References:
        Guo et al. (2017), "On calibration of modern neural networks", arXiv:1706.04599.

    Example:
        >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        0.25
    """
    check_alike(confidence=confidence, correct=correct)
    gap = correct.double().flatten() - confidence.double().flatten()
    times = torch.ones_like(gap) if weight is None else weight.double().flatten()
    check_alike(confidence=gap, weight=times)
    sums = in_bins(confidence, num_bins).bincount(gap * times)
    return float(sums.abs().sum() / times.sum())


def in_bins(confidence: Tensor, num_bins: int) -> Tensor:
    """The index of each probability's bin, of bins of equal width that are closed above."""
    return (confidence.flatten() * num_bins).ceil().long().clamp(1, num_bins) - 1


def crps(samples: Tensor, y: Tensor) -> Tensor:
    r"""The continuous ranked probability score of each prediction, in the unit of the target.

    .. math:: E|Y - y| - \tfrac12 E|Y - Y'|

    It is estimated without bias from samples, and is the absolute error for a prediction without
    uncertainty. 0 is best.

    Args:
        samples: of the prediction, in the first dimension, at least two.
        y: the targets.

    Returns:
        A tensor of the shape of ``y``.

    Raises:
        ValueError: if there are fewer than two samples, or the shapes do not fit.

    References:
        Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation".

    Example:
        >>> crps(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))
        tensor([0.])
    """
    num = _check_samples(samples, y)
    if num < 2:
        raise ValueError(f"`samples` has {num} sample: `crps` takes at least two")
    ordered = samples.sort(0).values
    # Of all pairs, the i-th is the larger one in i, and the smaller one in the others.
    weights = 2 * torch.arange(num, device=y.device, dtype=ordered.dtype) - (num - 1)
    spread = torch.tensordot(weights, ordered, 1) / (num * (num - 1))
    return (samples - y).abs().mean(0) - spread


def pit(samples: Tensor, y: Tensor) -> Tensor:
    """The place of each target in its prediction, uniform on [0, 1] if predictions are calibrated.

    This is the probability integral transform, by ranks among samples; ties and the width of a rank
    are spread at random, so that it is uniform for counts and few samples, too.

    Args:
        samples: of the prediction, in the first dimension.
        y: the targets.

    Returns:
        A tensor of the shape of ``y``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    num = _check_samples(samples, y)
    below, equal = (samples < y).sum(0), (samples == y).sum(0)
    return (below + torch.rand(y.shape, device=y.device) * (equal + 1)) / (num + 1)


def novelty_auroc(known: Tensor, unknown: Tensor) -> float:
    r"""How well uncertainty separates unknown inputs from known ones: the area under the ROC curve.

    .. math:: P(u_\mathrm{unknown} > u_\mathrm{known}) + \tfrac12 P(u_\mathrm{unknown} =
        u_\mathrm{known})

    1 is best, ½ is chance.

    Args:
        known: uncertainty of inputs like those of the training, such as ``prediction.total`` or
            ``prediction.epistemic``.
        unknown: uncertainty of others.

    Raises:
        ValueError: if one of them is empty.

    Example:
        >>> novelty_auroc(torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.3]))
        0.625
    """
    known, unknown = known.flatten().sort().values, unknown.flatten().to(known)
    if not known.numel() or not unknown.numel():
        raise ValueError(
            f"`known` has {known.numel()} and `unknown` {unknown.numel()} inputs: give some of both"
        )
    less = torch.searchsorted(known, unknown)
    at_most = torch.searchsorted(known, unknown, right=True)
    return float((less + at_most).double().mean() / (2 * len(known)))


def accuracy_kept(uncertainty: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """The accuracy of the remaining predictions when the most uncertain ones are rejected.

    Args:
        uncertainty: of each prediction.
        correct: whether it is right, or any score of it, such as a squared error.

    Returns:
        The fraction of the data that is rejected, from 0, and the mean score of the others.

    Raises:
        ValueError: if the shapes differ, or there are no data.

    Example:
        >>> accuracy_kept(torch.tensor([0.1, 0.9]), torch.tensor([True, False]))
        (tensor([0.0000, 0.5000]), tensor([0.5000, 1.0000]))
    """
    check_alike(uncertainty=uncertainty, correct=correct)
    order = uncertainty.flatten().argsort()
    counts = torch.arange(1, len(order) + 1, device=order.device)
    kept = correct.flatten()[order].double().cumsum(0) / counts
    return (1 - counts / len(order)).flip(0), kept.flip(0).float()


def check_alike(**given: Tensor) -> None:
    """Raises a ValueError unless two tensors have one shape, with entries."""
    (one, first), (other, second) = given.items()
    if first.shape != second.shape or not first.numel():
        raise ValueError(
            f"`{one}` has the shape {tuple(first.shape)} and `{other}` {tuple(second.shape)}: give "
            "one number for each prediction, at least one"
        )


def _check_samples(samples: Tensor, y: Tensor) -> int:
    if samples.shape[1:] != y.shape or samples.dim() == 0:
        raise ValueError(
            f"`samples` has the shape {tuple(samples.shape)}: give it the samples in the first "
            f"dimension, and then those of `y`, {tuple(y.shape)}"
        )
    return len(samples)
