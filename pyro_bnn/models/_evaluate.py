"""What a model with a posterior is worth on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import scores
from .._tensors import map_tensors
from .._validation import check_probability
from ..infer._data import arguments
from ._batches import batches
from ._bnn import BNN
from ._draws import Draws
from ._inputs import device_and_dtype
from ._predict import predictions
from ._prediction import CLASSES, Prediction
from ._rows import counts

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
            DataLoader of them, as for :func:`~pyro_bnn.fit`. The ``mask`` and ``weight`` of a
            :class:`~pyro_bnn.BNN` tell how often a target counts in the means.
        num_samples: number of sampled networks :math:`S`, 100 by default.
        interval: probability of the central interval that is scored.
        batch_size, site, parallel: see :func:`~pyro_bnn.predict`.

    Returns:
        The scores by name, for all targets

        - ``log_density`` of a row in nats, :math:`\log \frac1S \sum_s p(y_n \mid x_n, w_s)`;
          higher is better.

        for classes and labels

        - ``accuracy`` of the most probable class;
        - ``brier``: :func:`~pyro_bnn.scores.brier`;
        - ``calibration_error``: :func:`~pyro_bnn.scores.calibration_error`.

        and for other targets

        - ``rmse``, the root of the mean squared error of the mean;
        - ``crps``: :func:`~pyro_bnn.scores.crps`, with at least two samples;
        - ``coverage``: fraction of targets in the interval (``interval`` is best);
        - ``sharpness``: mean width of the interval (at equal coverage, narrower is better);
        - ``calibration_error``: the mean distance between the frequency of targets below a quantile
          and its probability, over 0.05, 0.1, ..., 0.95.

    Raises:
        TypeError: if ``data`` are none of these.
        ValueError: if an argument is out of range, there are no data, they have no targets, or
            none that count, or masks or weights of a model that is no BNN.

    Example:
        >>> from pyro_bnn import BNN, evaluate, fit, likelihoods
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(-1)
        >>> model = BNN(torch.nn.Linear(1, 1), likelihoods.Normal(0.1))
        >>> guide = AutoLRT(model)
        >>> history = fit(model, guide, (x, 2 * x), epochs=500)
        >>> list(evaluate(model, guide, (x, 2 * x)))
        ['log_density', 'rmse', 'crps', 'coverage', 'sharpness', 'calibration_error']
    """
    check_probability(interval=interval)
    draws = Draws(guide, num_samples)
    device, dtype = device_and_dtype(model, guide)
    given = batches(data, batch_size, shuffle=False, dtype=dtype).epoch()
    calls = (arguments(map_tensors(lambda t: t.to(device), batch)) for batch in given)
    rows: list[dict[str, Tensor]] = []
    for prediction, targets, values, call in predictions(model, draws, calls, site, parallel):
        y = targets.observed
        if y is None:
            raise ValueError(
                "the model observes nothing of `data`: give the targets, too, as a tuple `(x, y)`"
            )
        density = targets.log_prob(values).logsumexp(0) - math.log(draws.num_samples)
        found = {"log_density": density}
        if targets.kind in CLASSES:
            found |= _of_classes(prediction, y)
        else:
            found |= _of_numbers(prediction, y, interval)
        rows.append(found | _counts(model, y, call[1]))
    if not rows:
        raise ValueError("`data` is a DataLoader without batches: give it data")
    return _summary({n: torch.cat([row[n].flatten() for row in rows]).double() for n in rows[0]})


def _counts(model: Any, y: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """How often each target counts, and each row."""
    named = {key: given[key] for key in ("mask", "weight") if given.get(key) is not None}
    if named and not isinstance(model, BNN):
        raise ValueError(
            f"`data` has {list(named)}, of which only a `BNN` says what they mean: choose the rows "
            "that are to be scored, without them"
        )
    return dict(zip(("targets", "rows"), counts(y, **named), strict=True))


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


def _summary(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over the targets, and over the rows of the log density of each."""
    rows, times = values.pop("rows"), values.pop("targets")
    if not bool(times.any()):
        raise ValueError(
            "`data` has no target that counts: `mask` or `weight` rule out all of them"
        )
    mean = lambda x: ((x * times)[times > 0].sum() / times.sum()).item()
    density = values.pop("log_density")
    found = {"log_density": ((density * rows)[rows > 0].sum() / rows.sum()).item()}
    found |= {name: mean(x) for name, x in values.items() if name not in ("confidence", "pit")}
    if "confidence" in values:
        given = values["confidence"], values["accuracy"]
        return found | {"calibration_error": scores.calibration_error(*given, weight=times)}
    gaps = [abs(mean((values["pit"] <= level).double()) - level) for level in _LEVELS.tolist()]
    found["rmse"] = math.sqrt(found["rmse"])
    return found | {"calibration_error": sum(gaps) / len(gaps)}
