"""Scores against their formulas, other libraries and cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import within
from pyro import poutine
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from pyro_bnn import BNN, evaluate, likelihoods, scores
from pyro_bnn.guides import AutoLRT

D = torch.double
N, S = 60, 8


def linear(likelihood, num_out, num_samples=S):
    """A model, samples of its weights, inputs, and outputs under each sample."""
    model = BNN(nn.Linear(2, num_out, dtype=D), likelihood)
    weight, bias = torch.randn(num_samples, num_out, 2, dtype=D), torch.randn(num_samples, num_out)
    x = torch.randn(N, 2, dtype=D)
    f = x @ weight.mT + bias.double().unsqueeze(1)
    return model, {"net.weight": weight, "net.bias": bias.double()}, x, f


# Scores.


def test_brier():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    expected = torch.tensor([0.04 + 0.25 + 0.09, 0.81 + 0.81])
    torch.testing.assert_close(scores.brier(probs, torch.tensor([1, 1])), expected)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(num_bins):
    probs = torch.softmax(2 * torch.randn(500, 4), -1)
    y = torch.randint(4, (500,))
    confidence, predicted = probs.max(-1)
    error = scores.calibration_error(confidence, predicted == y, num_bins)
    expected = multiclass_calibration_error(probs, y, num_classes=4, n_bins=num_bins, norm="l1")
    assert error == pytest.approx(expected.item(), rel=1e-5)
    assert scores.calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0
    # A probability between two bins is in the lower one: 0.5 - 0.4 in one bin, not in two.
    edge = scores.calibration_error(torch.tensor([0.4, 0.5]), torch.tensor([False, True]), 2)
    assert edge == pytest.approx(0.05)


def test_crps_of_normal_predictions():
    """Gneiting and Raftery (2007), equation (21)."""
    loc, scale, y = torch.tensor([0.0, 1, -2]), torch.tensor([1.0, 0.5, 2]), torch.tensor(0.7)
    z = (y - loc) / scale
    normal = dist.Normal(0.0, 1.0)
    density = normal.log_prob(z).exp()
    exact = scale * (z * (2 * normal.cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    # Unbiased, even from two samples.
    for num in (2, 5):
        samples = loc + scale * torch.randn(num, 20_000, 3)
        assert within(scores.crps(samples, y.expand(20_000, 3)), exact)


def test_crps_by_its_definition():
    samples, y = torch.randn(6, 4, dtype=D), torch.randn(4, dtype=D)
    pairs = (samples.unsqueeze(0) - samples.unsqueeze(1)).abs().sum((0, 1)) / (6 * 5)
    expected = (samples - y).abs().mean(0) - pairs / 2
    torch.testing.assert_close(scores.crps(samples, y), expected)


@pytest.mark.parametrize("num_samples", [1, 3, 50])
@pytest.mark.parametrize("kind", ["normal", "counts"])
def test_the_place_of_a_target_is_uniform(num_samples, kind):
    num = 20_000
    draw = {"normal": torch.randn, "counts": lambda *s: torch.poisson(torch.full(s, 1.5))}[kind]
    places = scores.pit(draw(num_samples, num), draw(num))
    for level in (0.1, 0.5, 0.8):
        assert within((places <= level).double(), level)
    assert within(places, 0.5)


def test_novelty_auroc_is_that_of_scikit_learn():
    known, unknown = torch.randn(40).round(decimals=1), (torch.randn(30) + 0.5).round(decimals=1)
    truth = np.r_[np.zeros(40), np.ones(30)]
    expected = roc_auc_score(truth, torch.cat([known, unknown]).numpy())
    assert scores.novelty_auroc(known, unknown) == pytest.approx(expected)
    assert scores.novelty_auroc(known, known.max() + unknown.exp()) == 1.0
    assert scores.novelty_auroc(known, known) == pytest.approx(0.5)


def test_accuracy_kept():
    uncertainty = torch.tensor([0.3, 0.1, 0.9, 0.5])
    correct = torch.tensor([True, True, False, False])
    rejected, kept = scores.accuracy_kept(uncertainty, correct)
    torch.testing.assert_close(rejected, torch.tensor([0.0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(kept, torch.tensor([0.5, 2 / 3, 1.0, 1.0]))


def test_bad_scores():
    with pytest.raises(ValueError, match=r"`confidence` has the shape \(3,\) and `correct` \(2,\)"):
        scores.calibration_error(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"`uncertainty` has the shape \(0,\)"):
        scores.accuracy_kept(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match="`known` has 0 and `unknown` 2 inputs"):
        scores.novelty_auroc(torch.ones(0), torch.ones(2))
    with pytest.raises(ValueError, match="`samples` has 1 sample: `crps` takes at least two"):
        scores.crps(torch.ones(1, 3), torch.ones(3))
    for score in (scores.crps, scores.pit):
        with pytest.raises(ValueError, match=r"`samples` has the shape \(5, 3\): .* \(4,\)"):
            score(torch.ones(5, 3), torch.ones(4))


# Models.


def test_regression():
    model, samples, x, f = linear(likelihoods.Normal(0.5), 1)
    y = torch.randn(N, dtype=D)
    found = evaluate(model, samples, (x, y))
    keys = ["log_density", "rmse", "crps", "coverage", "sharpness", "calibration_error"]
    assert list(found) == keys
    assert all(isinstance(value, float) for value in found.values())
    density = torch.exp(-2 * (y - f[..., 0]).square()) / (0.5 * math.sqrt(2 * math.pi))
    assert found["log_density"] == pytest.approx(density.mean(0).log().mean().item())
    error = (f[..., 0].mean(0) - y).square().mean().sqrt()
    assert found["rmse"] == pytest.approx(error.item())


def test_scores_of_the_true_distribution():
    """The exact values for the distribution that the targets are drawn from."""
    num, noise = 4000, 0.5
    model = BNN(nn.Linear(1, 1, dtype=D), likelihoods.Normal(noise))
    weight = torch.full((200, 1, 1), 2.0, dtype=D)
    samples = {"net.weight": weight, "net.bias": torch.zeros(200, 1, dtype=D)}
    x = torch.randn(num, 1, dtype=D)
    y = 2 * x[:, 0] + noise * torch.randn(num, dtype=D)
    found = evaluate(model, samples, (x, y), interval=0.8)
    entropy = 0.5 * math.log(2 * math.pi * math.e * noise**2)
    assert abs(found["log_density"] + entropy) < 5 * math.sqrt(0.5 / num)
    assert abs(found["rmse"] - noise) < 5 * noise / math.sqrt(2 * num)
    # The expected CRPS of a standard Normal is 1 / sqrt(pi), with a standard deviation below 1.
    assert abs(found["crps"] - noise / math.sqrt(math.pi)) < 5 * noise / math.sqrt(num)
    width = 2 * 1.2815516 * noise
    # Quantiles of 200 samples, whose error averages out, are narrower by less than 2%.
    assert found["sharpness"] == pytest.approx(width, rel=0.02)
    assert abs(found["coverage"] - 0.8) < 5 * math.sqrt(0.8 * 0.2 / num) + 0.01
    assert found["calibration_error"] < 5 * 0.5 / math.sqrt(num)
    wrong = evaluate(model, samples, (x, y + 1))
    assert wrong["calibration_error"] > 0.2
    assert wrong["coverage"] < 0.5


def test_classes():
    model, samples, x, f = linear(likelihoods.Categorical(), 3)
    y = torch.randint(3, (N,))
    found = evaluate(model, samples, (x, y))
    assert list(found) == ["log_density", "accuracy", "brier", "calibration_error"]
    probs = torch.softmax(f, -1).mean(0)
    mine = probs[torch.arange(N), y]
    assert found["log_density"] == pytest.approx(mine.log().mean().item())
    assert found["accuracy"] == pytest.approx((probs.argmax(-1) == y).double().mean().item())
    assert found["brier"] == pytest.approx(scores.brier(probs, y).mean().item())
    expected = multiclass_calibration_error(probs.float(), y, num_classes=3, norm="l1")
    assert found["calibration_error"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("num_out", [1, 4])
def test_labels(num_out):
    model, samples, x, f = linear(likelihoods.Bernoulli(), num_out)
    y = torch.randint(2, (N, num_out))
    found = evaluate(model, samples, (x, y))
    p = torch.sigmoid(f)
    right = torch.where(y == 1, p, 1 - p)
    joint = right.prod(-1).mean(0).log().mean()  # of the labels of a row under one draw
    assert found["log_density"] == pytest.approx(joint.item())
    assert found["accuracy"] == pytest.approx((right.mean(0) > 0.5).double().mean().item())
    assert found["brier"] == pytest.approx(2 * (1 - right.mean(0)).square().mean().item())


@pytest.mark.parametrize(
    ("likelihood", "num_out", "y", "key"),
    [
        (likelihoods.Ordinal(3), 1, torch.randint(3, (N,)), "accuracy"),
        (likelihoods.HeteroscedasticNormal(), 2, torch.randn(N, 1), "rmse"),
        (likelihoods.StudentT(5.0, 0.5), 2, torch.randn(N, 2), "rmse"),
        (likelihoods.Poisson(), 1, torch.randint(5, (N,)), "rmse"),
        (likelihoods.NegativeBinomial(2.0), 1, torch.randint(5, (N,)), "rmse"),
        (lambda f: dist.Laplace(f[:, 0], f[:, 1].exp()), 2, torch.randn(N), "rmse"),
    ],
)
def test_other_likelihoods(likelihood, num_out, y, key):
    model, samples, x, f = linear(likelihood, num_out)
    found = evaluate(model, samples, (x, y))
    assert key in found
    rows = []
    for output in f:
        made = model.likelihood(output)
        rows.append(made.log_prob(model.likelihood.target(y, made)))
    expected = torch.stack(rows).exp().mean(0).log().mean().item()
    assert found["log_density"] == pytest.approx(expected)
    assert all(map(math.isfinite, found.values()))


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_weights_are_repetitions_and_masks_are_omissions(kind):
    lik, num_out = {
        "classes": (likelihoods.Categorical(), 3),
        "numbers": (likelihoods.Normal(1e-4), 1),  # whose samples are the functions
    }[kind]
    model, samples, x, f = linear(lik, num_out, 200)
    y = torch.randint(3, (N,)) if kind == "classes" else f[0, :, 0] + torch.randn(N, dtype=D)
    weight, mask = torch.randint(4, (N,)), torch.rand(N) < 0.7
    given = {"x": x, "y": torch.where(mask, y, -9), "mask": mask, "weight": weight}
    times = weight * mask
    expected = evaluate(model, samples, (x.repeat_interleave(times, 0), y.repeat_interleave(times)))
    for size in (None, 7):
        found = evaluate(model, samples, given, batch_size=size)
        assert list(found) == list(expected)
        for name, value in found.items():
            # Ranks among 200 are spread at random.
            tolerance = {"abs": 0.03} if kind == "numbers" and "cal" in name else {"rel": 1e-3}
            assert value == pytest.approx(expected[name], **tolerance), name


def test_masks_of_some_targets_of_a_row():
    model, samples, x, f = linear(likelihoods.Normal(0.5), 3)
    y, mask = torch.randn(N, 3, dtype=D), torch.rand(N, 3) < 0.6
    mask[:5] = False
    found = evaluate(model, samples, {"x": x, "y": y, "mask": mask})
    density = (dist.Normal(f, 0.5).log_prob(y) * mask).sum(-1).logsumexp(0) - math.log(S)
    assert found["log_density"] == pytest.approx(density[mask.any(1)].mean().item())
    error = (f.mean(0) - y)[mask].square().mean().sqrt()
    assert found["rmse"] == pytest.approx(error.item())


def test_every_form_of_data():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    model = BNN(net, likelihoods.Categorical())
    x, y = torch.randn(N, 2), torch.randint(3, (N,))
    guide = AutoLRT(model)
    guide(x, y)
    forms = [
        (x, y),
        (x.double().numpy(), y.numpy()),
        {"x": x, "y": y},
        DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
        DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=16),
    ]
    results = []
    for data in forms:
        pyro.set_rng_seed(0)
        results.append(evaluate(model, guide, data, 20))
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-4)
    assert evaluate(model, guide, (x, y), 1)["log_density"] < 0


def test_bad_data():
    model, samples, x, _ = linear(likelihoods.Normal(0.5), 1)
    y = torch.randn(N)
    for interval in (0.0, 1.0, -1, math.nan):
        with pytest.raises(ValueError, match=r"`interval` \(=.*\) must be a probability"):
            evaluate(model, samples, (x, y), interval=interval)
    with pytest.raises(TypeError, match=r"`data` \(=Tensor\) must be a tuple"):
        evaluate(model, samples, x)
    with pytest.raises(ValueError, match="observes nothing of `data`"):
        evaluate(model, samples, (x,))
    with pytest.raises(ValueError, match="`data` has no target that counts"):
        evaluate(model, samples, {"x": x, "y": y, "weight": torch.zeros(N)})
    with pytest.raises(ValueError, match=r"`data` has \['weight'\], of which only a `BNN` says"):
        evaluate(poutine.mask(model, mask=True), samples, {"x": x, "y": y, "weight": y.exp()})
    with pytest.raises(ValueError, match=r"`data` has tensors of \[60, 59\] rows"):
        evaluate(model, samples, (x, y[1:]))
    model, samples, x, _ = linear(likelihoods.Categorical(), 3)
    with pytest.raises(ValueError, match="`y` has classes from 0 to 3"):
        evaluate(model, samples, (x, torch.arange(N) % 4))
