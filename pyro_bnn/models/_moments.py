"""Predictions without draws of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from .._threads import PYRO
from ..guides import AutoPosterior
from ..guides._sites import sample_attributes
from ..infer._samples import check_count
from ._bnn import BNN
from ._contexts import evaluating
from ._inputs import inputs
from ._prediction import Prediction
from ._propagation import Moments, propagation
from ._targets import Targets

_NUM_POINTS = 64  # of the outputs, for likelihoods without a closed form


def moments(
    model: nn.Module, guide: AutoPosterior, x: Any, *, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of the outputs of a network under the posterior, without sampling.

    They are propagated layer by layer: through linear layers and convolutions of independent
    weights and inputs by

    .. math:: V[wx] = V[w] (E[x]^2 + V[x]) + E[w]^2 V[x],

    through ReLU and LeakyReLU by the moments of a rectified Normal, and through smooth activations
    by quadrature. Values that are averaged by pooling are treated as fully correlated. With one
    hidden layer of ReLUs both are exact, and with two linear layers; deeper in, and in all but the
    first convolution, the covariances of a layer's inputs are neglected.

    Args:
        model: a :class:`~pyro_bnn.BNN` whose network is an ``nn.Sequential``, or such a network.
        guide: with mean-field Normal posteriors of the weights, such as ``AutoLRT``.
        x: the inputs, as for :func:`~pyro_bnn.predict`.
        batch_size: rows to process at once.

    Returns:
        Mean and variance of each output.

    Raises:
        TypeError: if ``guide`` is not of pyro_bnn, or there are several inputs.
        ValueError: if a layer or a posterior has no rule, naming it; if there are no rows.

    References:
        Hernandez-Lobato and Adams (2015), "Probabilistic backpropagation for scalable learning of
        Bayesian neural networks", arXiv:1502.05336.

    Example:
        >>> from pyro_bnn import moments
        >>> net = bayesianize(torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU()))
        >>> mean, variance = moments(net, AutoLRT(net), torch.ones(5, 3))
        >>> mean.shape, variance.shape
        (torch.Size([5, 9]), torch.Size([5, 9]))
    """
    net = model.net if isinstance(model, BNN) else model
    parts = list(_of_outputs(net, guide, inputs(model, guide, x, batch_size)))
    if not parts:
        raise ValueError("`x` is a DataLoader without batches: give it data")
    means, variances = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(variances)


@torch.no_grad()
def _of_outputs(net: nn.Module, guide: AutoPosterior, given: Iterable[Any]) -> Iterator[Any]:
    propagate = propagation(net, guide)
    for x in given:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"`x` (={type(x).__name__}) must be one tensor or array, to propagate moments: for "
                "several inputs draw samples, by `predict`"
            )
        mean, variance = propagate(Moments(x, None))
        yield mean, torch.zeros_like(mean) if variance is None else variance


@torch.no_grad()
def predictions_of_moments(
    model: Any, guide: Any, given: Iterable[Any], num_points: int | None
) -> Iterator[Prediction]:
    """The prediction for each batch, with outputs that are independent Normals.

    The outputs stand at points of low discrepancy, with the mean and variance that they have, so
    that all that is linear or quadratic in them is exact.
    """
    num = _NUM_POINTS if num_points is None else num_points
    check_count("num_samples", num)
    _check(model)
    with PYRO, evaluating(model):
        for mean, variance in _of_outputs(model.net, guide, given):
            points = _points(num, mean[:1].numel()).to(mean).reshape(num, *mean[:1].shape)
            outputs = mean + variance.sqrt() * points
            yield _of_targets(model, outputs)


def _of_targets(model: BNN, outputs: Tensor) -> Prediction:
    """From outputs with the points in the first dimension."""
    distribution = model.likelihood(outputs.flatten(0, 1))
    targets = Targets("obs", {"fn": distribution, "is_observed": False})
    run = poutine.trace(targets(lambda: pyro.sample("obs", distribution))).get_trace()
    nodes: dict[str, Any] = {name: run.nodes[name] for name in targets.names}
    shape = outputs.shape[:2]
    return targets.prediction({n: x["value"].unflatten(0, shape) for n, x in nodes.items()})


def _points(num: int, num_outputs: int) -> Tensor:
    """Points of independent standard Normals, with mean 0 and variance 1 of each exactly."""
    if num_outputs <= SobolEngine.MAXDIM:
        uniform = SobolEngine(num_outputs, scramble=True, seed=0).draw(num, dtype=torch.double)
    else:
        uniform = torch.rand(num, num_outputs, dtype=torch.double)
    points = torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7))
    points = points - points.mean(0)
    return points / points.var(0, correction=0).sqrt().clamp(min=1e-7)


def _check(model: Any) -> None:
    if not isinstance(model, BNN):
        raise TypeError(
            f"`model` (={type(model).__name__}) must be a BNN, to predict by `moments`: the "
            "function `moments` takes a network"
        )
    others = [name for name, *_ in sample_attributes(model.likelihood)]
    if others:
        raise ValueError(
            f"{others} are random: to predict by `moments`, let the noise be fixed or learned, or "
            "else draw samples, `moments=False`"
        )
