"""Plots of predictions, posteriors and training runs, on matplotlib axes, which they return.

They need matplotlib, the extra ``plot``. An argument ``ax`` is the axes to draw on; by default, new
ones are made.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import scores
from ._validation import check_probability
from .conversion._pruning import THRESHOLD, weight_posteriors
from .guides import AutoPosterior
from .infer._samples import check_count
from .models import History, Prediction
from .models._prediction import CLASSES, targets_of

__all__ = [
    "accuracy_kept",
    "history",
    "novelty",
    "predictive_band",
    "reliability",
    "signal_to_noise",
]

_SMALLEST = 1e-3  # ratio that is drawn; smaller ones are shown as this


def predictive_band(
    x: Any,
    prediction: Prediction,
    data: tuple[Any, Any] | None = None,
    *,
    level: float = 0.9,
    ax: Any = None,
) -> Any:
    """The mean over a single input, with the bands that the targets and the mean lie in.

    Args:
        x: the inputs that were predicted, of shape ``(rows,)`` or ``(rows, 1)``.
        prediction: of one target, no class.
        data: inputs and targets to draw as points.
        level: the probability of both bands: the central interval of the targets, and that of a
            Normal with the epistemic variance.
        ax: see above.

    Raises:
        ValueError: if there is not one input and one target for each row, or ``level`` is no
            probability.
    """
    check_probability(level=level)
    place = _array(x).reshape(-1)
    is_of_rows = prediction.mean.shape[0] == prediction.mean.numel() == len(place)
    if prediction.kind in CLASSES or not is_of_rows:
        raise ValueError(
            f"`prediction` is of {prediction.kind}, with means of shape "
            f"{tuple(prediction.mean.shape)}, for `x` of shape {tuple(np.shape(x))}: a band takes "
            "one number of each for every row, and no classes or labels"
        )
    if isinstance(data, Tensor) or (data is not None and len(data) != 2):
        raise ValueError("`data` must be a tuple `(x, y)` of inputs and targets")
    ax = _axes(ax)
    order = place.argsort()
    place, mean = place[order], _array(prediction.mean).reshape(-1)[order]
    outer = _array(prediction.quantiles([(1 - level) / 2, (1 + level) / 2]))
    outer = outer.reshape(2, -1)[:, order]
    width = torch.special.ndtri(torch.tensor((1 + level) / 2)).item()
    width = width * _array(prediction.epistemic).reshape(-1)[order] ** 0.5
    bands = {"targets": (*outer, 0.2), "means": (mean - width, mean + width, 0.4)}
    for name, (low, high, alpha) in bands.items():
        label = f"{level:.0%} of {name}"
        ax.fill_between(place, low, high, color="C0", alpha=alpha, linewidth=0, label=label)
    ax.plot(place, mean, color="C0", label="mean")
    if data is not None:
        points = [_array(value).reshape(-1) for value in data]
        ax.plot(*points, ".", color="black", markersize=4, label="data")
    ax.set(xlabel="input", ylabel="target")
    ax.legend()
    return ax


def reliability(prediction: Prediction, y: Any, *, num_bins: int = 10, ax: Any = None) -> Any:
    """How often predictions hold, against how often they say so: the diagonal is calibrated.

    For classes, the accuracy in bins of the probability of the predicted class, with the fraction
    of the data in each bin below; for other targets, the frequency of targets below a quantile
    against its probability.

    Args:
        prediction: of some rows.
        y: their targets.
        num_bins: number of bins of equal width, for classes.
        ax: see above.

    Raises:
        ValueError: if the shapes do not fit, or ``num_bins`` is not positive.
    """
    check_count("num_bins", num_bins)
    y = targets_of(prediction, y)
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="calibrated")
    if prediction.kind not in CLASSES:
        place = _array(scores.pit(prediction.samples, y)).reshape(-1)
        ax.ecdf(place, color="C0", label="predictions")
        ax.set(xlabel="probability of a quantile", ylabel="frequency of targets below")
    else:
        confidence, predicted = prediction.probs.max(-1)
        _bars(ax, confidence, predicted == y, num_bins)
        error = scores.calibration_error(confidence, predicted == y)
        ax.set(xlabel="probability of the predicted class", ylabel="accuracy")
        ax.set_title(f"calibration error {error:.3f}", fontsize="medium")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(loc="upper left")
    return ax


def novelty(
    known: Prediction,
    unknown: Prediction,
    *,
    uncertainty: str = "total",
    bins: int = 30,
    ax: Any = None,
) -> Any:
    """The uncertainty of inputs like those of the training, and of others.

    Args:
        known: prediction for inputs like those of the training.
        unknown: prediction for others.
        uncertainty: ``"total"``, ``"aleatoric"`` or ``"epistemic"``.
        bins: number of bins of the histograms.
        ax: see above.

    Raises:
        ValueError: if ``uncertainty`` is none of these.
    """
    values = [_uncertainty(prediction, uncertainty) for prediction in (known, unknown)]
    area = scores.novelty_auroc(*values)
    ax = _axes(ax)
    edges = np.histogram_bin_edges(np.concatenate([_array(v).reshape(-1) for v in values]), bins)
    for value, label in zip(values, ("known", "unknown"), strict=True):
        ax.hist(_array(value).reshape(-1), edges, density=True, alpha=0.6, label=label)
    unit = "nats" if known.kind in CLASSES else "squared units of the target"
    ax.set(xlabel=f"{uncertainty} uncertainty ({unit})", ylabel="density")
    ax.set_title(f"AUROC {area:.3f}", fontsize="medium")
    ax.legend()
    return ax


def accuracy_kept(
    prediction: Prediction, y: Any, *, uncertainty: str = "total", ax: Any = None
) -> Any:
    """The accuracy of the predictions that remain when the most uncertain ones are rejected.

    Args:
        prediction: of classes; of other targets, the root of the mean squared error is drawn.
        y: their targets.
        uncertainty: by which to reject, as for :func:`novelty`.
        ax: see above.

    Raises:
        ValueError: if the shapes do not fit, or ``uncertainty`` is none of these.
    """
    y = targets_of(prediction, y)
    if prediction.kind in CLASSES:
        score = (prediction.probs.argmax(-1) == y).double()
    else:
        score = (prediction.mean - y).square()
    rejected, kept = scores.accuracy_kept(_uncertainty(prediction, uncertainty), score)
    ax = _axes(ax)
    ax.plot(_array(rejected), _array(kept if prediction.kind in CLASSES else kept.sqrt()))
    ax.set(xlabel="fraction rejected", ylabel="accuracy" if prediction.kind in CLASSES else "RMSE")
    return ax


def signal_to_noise(
    guide: AutoPosterior, *, sites: str | Collection[str] = "*", ax: Any = None
) -> Any:
    """The ratio of mean to standard deviation of the weights, by site.

    Each curve is the fraction of a site's weights below a ratio. The line is at 0.83, where
    :func:`~pyro_bnn.prune` removes them by default.

    Args:
        guide: one of :mod:`pyro_bnn.guides`.
        sites: names or patterns of the sites, as for :func:`~pyro_bnn.prune`.
        ax: see above.

    Raises:
        TypeError, ValueError: as for :func:`~pyro_bnn.prune`.
    """
    found = weight_posteriors(guide, sites)
    ax = _axes(ax)
    for name, posterior in found.items():
        ratio = _array(posterior.signal_to_noise()).reshape(-1)
        ax.ecdf(ratio.clip(_SMALLEST), label=name)
    ax.axvline(THRESHOLD, color="gray", linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="|mean| / standard deviation", ylabel="fraction below")
    ax.set(xlim=(_SMALLEST, None), ylim=(0, 1))
    ax.legend(fontsize="small")
    return ax


def history(history: History, *, ax: Any = None) -> Any:
    """The bound and its terms over the steps of :func:`~pyro_bnn.fit`, as ``history.plot()``."""
    return history.plot(_axes(ax))


def _bars(ax: Any, confidence: Tensor, correct: Tensor, num_bins: int) -> None:
    bins = scores.in_bins(confidence.cpu(), num_bins)
    counts = _array(bins.bincount(minlength=num_bins))
    right = _array(bins.bincount(correct.cpu().flatten().double(), num_bins))
    edges, used = np.arange(num_bins) / num_bins, counts > 0
    style = {"width": 1 / num_bins, "align": "edge", "linewidth": 1}
    accuracy = right[used] / counts[used]
    ax.bar(edges[used], accuracy, color="C0", edgecolor="white", label="accuracy", **style)
    share = counts / counts.sum()
    ax.bar(edges, share, color="C1", alpha=0.6, label="share of data", **style)


def _uncertainty(prediction: Prediction, name: str) -> Tensor:
    if name not in ("total", "aleatoric", "epistemic"):
        raise ValueError(f"`uncertainty` (={name!r}) must be 'total', 'aleatoric' or 'epistemic'")
    return getattr(prediction, name)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]
