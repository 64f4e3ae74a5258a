"""Plots draw the numbers that they say, on the axes that they are given."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods, plots, predict, scores
from pyro_bnn.guides import AutoLRT
from pyro_bnn.models import Prediction

mpl.use("agg")
import matplotlib.pyplot as plt

S = 200


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # warnings of matplotlib are errors, too
    plt.close("all")


def regression(rows: int = 30) -> tuple[torch.Tensor, Prediction]:
    model = BNN(nn.Linear(1, 1), likelihoods.Normal(0.5))
    samples = {"net.weight": torch.randn(S, 1, 1), "net.bias": torch.randn(S, 1)}
    x = torch.randn(rows, 1)
    return x, predict(model, samples, x)


def classes(rows: int = 30, scale: float = 1.0) -> Prediction:
    model = BNN(nn.Linear(2, 3), likelihoods.Categorical())
    samples = {"net.weight": torch.randn(S, 3, 2), "net.bias": torch.randn(S, 3)}
    return predict(model, samples, scale * torch.randn(rows, 2))


def line(ax, label):
    return next(line for line in ax.lines if line.get_label() == label).get_xydata()


def test_predictive_band(ax):
    x, prediction = regression()
    y = torch.randn(30, 1)
    assert plots.predictive_band(x, prediction, (x, y), level=0.8, ax=ax) is ax
    order = x[:, 0].argsort()
    expected = torch.stack([x[order, 0], prediction.mean[order]], -1)
    np.testing.assert_allclose(line(ax, "mean"), expected)
    np.testing.assert_allclose(line(ax, "data"), torch.cat([x, y], -1))
    targets, means = (band.get_paths()[0].vertices for band in ax.collections)
    low, high = prediction.quantiles([0.1, 0.9])
    first = order[0]
    assert {low[first].item(), high[first].item()} <= set(targets[:, 1].astype(np.float32))
    half = (means[:, 1].max() - means[:, 1].min()) / 2
    assert half > 1.2815 * prediction.epistemic.max().sqrt().item()
    edges = means[means[:, 0] == x[first, 0].item(), 1]
    width = 2 * 1.2815516 * prediction.epistemic[first].sqrt().item()
    assert edges.max() - edges.min() == pytest.approx(width, rel=1e-5)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["80% of targets", "80% of means", "mean", "data"]


def test_reliability_of_numbers(ax):
    _, prediction = regression(300)
    y = prediction.mean + 100  # above all samples
    plots.reliability(prediction, y, ax=ax)
    assert line(ax, "predictions")[1:, 0].min() > 0.99


def test_reliability_of_classes(ax):
    prediction = classes(200)
    y = torch.randint(3, (200,))
    plots.reliability(prediction, y.numpy(), num_bins=5, ax=ax)
    confidence, predicted = prediction.probs.max(-1)
    bars = {c.get_label(): c for c in ax.containers}
    used = [(bar.get_x(), bar.get_height()) for bar in bars["accuracy"]]
    for left, height in used:
        inside = (confidence > left) & (confidence <= left + 0.2)
        assert height == pytest.approx((predicted == y)[inside].double().mean().item())
    assert sum(bar.get_height() for bar in bars["share of data"]) == pytest.approx(1)
    error = scores.calibration_error(confidence, predicted == y)
    assert ax.get_title() == f"calibration error {error:.3f}"


@pytest.mark.parametrize("uncertainty", ["total", "aleatoric", "epistemic"])
def test_novelty(ax, uncertainty):
    known, unknown = classes(50), classes(40, 3.0)
    plots.novelty(known, unknown, uncertainty=uncertainty, bins=12, ax=ax)
    values = getattr(known, uncertainty), getattr(unknown, uncertainty)
    assert ax.get_title() == f"AUROC {scores.novelty_auroc(*values):.3f}"
    for container in ax.containers:
        area = sum(bar.get_height() * bar.get_width() for bar in container)
        assert area == pytest.approx(1)
    assert uncertainty in ax.get_xlabel()


def test_a_band_of_one_target_in_a_dimension_of_its_own(ax):
    x, prediction = regression()
    values = {name: getattr(prediction, name).unsqueeze(-1) for name in ("mean", "samples")}
    values["epistemic"] = prediction.epistemic.unsqueeze(-1)
    plots.predictive_band(x, prediction, ax=ax)
    plots.predictive_band(x, replace(prediction, **values), ax=ax)
    one, other = (line.get_ydata() for line in ax.lines)
    np.testing.assert_array_equal(one, other)
    paths = [band.get_paths()[0].vertices for band in ax.collections]
    np.testing.assert_array_equal(paths[:2], paths[2:])


def test_targets_may_be_a_series(ax):
    prediction, y = classes(30), torch.randint(3, (30,))
    plots.accuracy_kept(prediction, y, ax=ax)
    plots.accuracy_kept(prediction, pd.Series(y.numpy(), index=range(50, 80)), ax=ax)
    np.testing.assert_array_equal(*(line.get_ydata() for line in ax.lines))


def test_accuracy_kept(ax):
    prediction, y = classes(50), torch.randint(3, (50,))
    plots.accuracy_kept(prediction, y, ax=ax)
    accuracy = (prediction.probs.argmax(-1) == y).double().mean()
    assert ax.lines[0].get_ydata()[0] == pytest.approx(accuracy.item())
    x, prediction = regression()
    plots.accuracy_kept(prediction, x, ax=ax)
    rmse = (prediction.mean - x[:, 0]).square().mean().sqrt()
    assert ax.lines[1].get_ydata()[0] == pytest.approx(rmse.item())


def test_signal_to_noise(ax):
    guide = AutoLRT(bayesianize(nn.Linear(3, 2)))
    plots.signal_to_noise(guide, sites="*weight", ax=ax)
    found = line(ax, "weight")
    ratio = guide["weight"].signal_to_noise().flatten().sort().values.clamp(1e-3)
    np.testing.assert_allclose(found[1:, 0], ratio.numpy())
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="`sites` has"):
        plots.signal_to_noise(guide, sites="no", ax=ax)


def test_history(ax):
    model = BNN(nn.Linear(1, 1), likelihoods.Normal(0.5))
    x = torch.randn(20, 1)
    history = fit(model, AutoLRT(model), (x, x), epochs=5)
    plots.history(history, ax=ax)
    np.testing.assert_allclose(line(ax, "bound (ELBO)")[:, 1], history["bound"])


def test_new_axes(ax):
    new = plots.novelty(classes(), classes())
    assert new is not ax
    assert new.figure is not ax.figure


def test_bad_arguments(ax):
    x, prediction = regression()
    several = classes()
    with pytest.raises(ValueError, match=r"`level` \(=1\) must be a probability"):
        plots.predictive_band(x, prediction, level=1, ax=ax)
    for bad in (several, regression(29)[1]):
        with pytest.raises(ValueError, match="with means of shape"):
            plots.predictive_band(x, bad, ax=ax)
    with pytest.raises(ValueError, match=r"`y` has the shape \(29,\)"):
        plots.reliability(prediction, torch.ones(29), ax=ax)
    with pytest.raises(ValueError, match=r"`num_bins` \(=0\) must be positive"):
        plots.reliability(several, torch.ones(30), num_bins=0, ax=ax)
    for plot in (plots.novelty, plots.accuracy_kept):
        with pytest.raises(ValueError, match=r"`uncertainty` \(='x'\) must be"):
            plot(several, several if plot is plots.novelty else torch.ones(30), uncertainty="x")
    for plot in (plots.reliability, plots.accuracy_kept):
        with pytest.raises(ValueError, match="classes from 0 to 2, but its values are from 1 to 3"):
            plot(several, 1 + torch.arange(30) % 3, ax=ax)
        with pytest.raises(ValueError, match="`y` must be finite"):
            plot(prediction, torch.full((30,), torch.nan), ax=ax)
    labels = replace(prediction, kind="labels", mean=prediction.mean.sigmoid())
    with pytest.raises(ValueError, match="no classes or labels"):
        plots.predictive_band(x, labels, ax=ax)
    with pytest.raises(ValueError, match=r"`data` must be a tuple `\(x, y\)`"):
        plots.predictive_band(x, prediction, data=x, ax=ax)
    with pytest.raises(TypeError, match=r"`guide` \(=int\) must be one of pyro_bnn.guides"):
        plots.signal_to_noise(3)


def test_the_library_does_without_extras():
    code = """
import sys, pyro_bnn
extras = [name for name in ("matplotlib", "pandas", "sklearn") if name in sys.modules]
assert not extras, extras
assert pyro_bnn.sklearn.BNNClassifier
assert not hasattr(pyro_bnn, "sk")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
