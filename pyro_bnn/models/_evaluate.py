"""What a model with a posterior is worth on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import scores
from ._batches import arguments, batches, map_tensors
from ._draws import Draws
from ._predict import Call, device_and_dtype, predictions
from ._prediction import CLASSES, Prediction

_LEVELS = torch.arange(0.05, 0.99, 0.05)  # of the probabilities whose frequencies are compared


def evaluate(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Mapping[str, Tensor],
    data: Any,
    num_samples: int | None = None,
    *,
    interval: float = 0.9,
    batch_size: int | None = None,
    site: str | None = None,
    parallel: bool | None = None,
) -> dict[str, float]:
    r"""Scores of predictions on data, means over the targets.

    Args:
        model: see :func:`~pyro_bnn.predict`.
        guide: likewise.
        data: inputs and targets: a tuple ``(x, y)`` or a dictionary of tensors or arrays, or a
            DataLoader of them, as for :func:`~pyro_bnn.fit`.
        num_samples: number of draws :math:`S` of the weights, 100 by default.
        interval: probability of the central interval that is scored.
        batch_size, site, parallel: see :func:`~pyro_bnn.predict`.

    Returns:
        For all targets:

        - ``log_density`` of a row in nats, :math:`\log \frac1S \sum_s p(y_n \mid x_n, w_s)`;
          higher is better.

        For classes and labels:

        - ``accuracy`` of the most probable class;
        - ``brier``: :func:`~pyro_bnn.scores.brier`;
        - ``calibration_error``: :func:`~pyro_bnn.scores.calibration_error`.

        For other targets:

        - ``rmse``, the root of the mean squared error of the mean;
        - ``crps``: :func:`~pyro_bnn.scores.crps`, with two draws at least;
        - ``coverage``: how often the interval has the target in it (``interval`` is best);
        - ``sharpness``: mean width of the interval (at equal coverage, narrower is better);
        - ``calibration_error``: the mean distance between the frequency of targets below a quantile
          and its probability, over 0.05, 0.1, ..., 0.95.

    Raises:
        TypeError: if ``data`` are none of these.
        ValueError: if an argument is out of range, there are no data, or they have masks or
            weights, which would change what is averaged, or no targets.

    Example:
        >>> from pyro_bnn import BNN, evaluate, fit, likelihoods
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(-1)
        >>> model = BNN(torch.nn.Linear(1, 1), likelihoods.Normal(0.1))
        >>> guide = AutoLRT(model)
        >>> history = fit(model, guide, (x, 2 * x), epochs=500)
        >>> list(evaluate(model, guide, (x, 2 * x)))
        ['log_density', 'rmse', 'crps', 'coverage', 'sharpness', 'calibration_error']
    """
    if not 0 < interval < 1:
        raise ValueError(f"`interval` (={interval}) must be a probability, between 0 and 1")
    draws = Draws(guide, num_samples)
    device, dtype = device_and_dtype(model, guide)
    given = batches(data, batch_size, shuffle=False, dtype=dtype).epoch()
    calls = (arguments(map_tensors(lambda t: t.to(device), batch)) for batch in given)
    rows: list[dict[str, Tensor]] = []
    for prediction, targets, values in predictions(
        model, draws, map(_checked, calls), site, parallel
    ):
        if targets.observed is None:
            raise ValueError(
                "the model observes nothing of `data`: give the targets, too, as a tuple `(x, y)`"
            )
        density = targets.log_prob(values).logsumexp(0) - math.log(draws.num_samples)
        found = {"log_density": density}
        if targets.kind in CLASSES:
            found |= _of_classes(prediction, targets.observed)
        else:
            found |= _of_numbers(prediction, targets.observed, interval)
        rows.append(found)
    if not rows:
        raise ValueError("`data` is a DataLoader without batches: give it data")
    return _summary({n: torch.cat([row[n].flatten() for row in rows]).double() for n in rows[0]})


def _checked(call: Call) -> Call:
    given = [name for name in ("mask", "weight") if call[1].get(name) is not None]
    if given:
        raise ValueError(f"`data` has {given}: choose the rows that are to be scored, without them")
    return call


def _of_classes(prediction: Prediction, y: Tensor) -> dict[str, Tensor]:
    probs = prediction.probs
    confidence, predicted = probs.max(-1)
    correct = predicted == y
    return {"accuracy": correct, "brier": scores.brier(probs, y), "confidence": confidence}


def _of_numbers(prediction: Prediction, y: Tensor, interval: float) -> dict[str, Tensor]:
    samples = prediction.samples
    low, high = prediction.quantiles([(1 - interval) / 2, (1 + interval) / 2])
    found = {"rmse": (prediction.mean - y).square()}
    if len(samples) > 1:
        found["crps"] = scores.crps(samples, y)
    found |= {"coverage": (y >= low) & (y <= high), "sharpness": high - low}
    return found | {"pit": scores.pit(samples, y)}


def _summary(rows: dict[str, Tensor]) -> dict[str, float]:
    found = {name: value.mean().item() for name, value in rows.items()}
    if "confidence" in rows:
        error = scores.calibration_error(rows["confidence"], rows["accuracy"])
        del found["confidence"]
        return found | {"calibration_error": error}
    levels = _LEVELS.to(rows["pit"])
    frequency = torch.stack([(rows["pit"] <= level).double().mean() for level in levels])
    del found["pit"]
    found["rmse"] = math.sqrt(found["rmse"])
    return found | {"calibration_error": (frequency - levels).abs().mean().item()}
