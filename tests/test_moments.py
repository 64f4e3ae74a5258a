"""Moments that are propagated: against closed forms, quadrature and draws."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pyro_bnn import BNN, bayesianize, fit, likelihoods, moments, predict, prune
from pyro_bnn.guides import AutoFlipout, AutoLRT
from pyro_bnn.infer import Predictive
from pyro_bnn.models._propagation import _RULES, Moments
from pyro_bnn.posteriors import FullNormalPosterior

D = torch.double


def bayesian(*layers: nn.Module, scale: float = 0.3) -> tuple[nn.Module, AutoLRT]:
    net = bayesianize(nn.Sequential(*layers)).double()
    return net, AutoLRT(net, init_scale=scale).double()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_exact(bias):
    net, guide = bayesian(nn.Linear(4, 3, bias=bias))
    x = torch.randn(5, 4, dtype=D)
    weight = guide["0.weight"].base()
    mean, variance = x @ weight.mean.T, x.square() @ weight.variance.T
    if bias:
        mean, variance = mean + guide["0.bias"].base().mean, variance + 0.09
    torch.testing.assert_close(moments(net, guide, x), (mean, variance))


def test_convolutions_are_exact_for_inputs_that_are_known():
    layers = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, padding_mode="circular")
    net, guide = bayesian(layers, nn.Flatten(), nn.Unflatten(1, (4, -1)))
    x = torch.randn(3, 2, 6, 6, dtype=D)
    mean, variance = moments(net, guide, x)
    weight = guide["0.weight"].base()
    windows = nn.functional.pad(x, (1, 1, 1, 1), mode="circular").unfold(2, 3, 2).unfold(3, 3, 2)
    by_group = windows.reshape(3, 2, 3, 3, 9).unsqueeze(2)  # rows, groups, 1, height, width, inputs
    for moment, power, entries in ((mean, 1, weight.mean), (variance, 2, weight.variance)):
        w = entries.reshape(1, 2, 2, 1, 1, 9)
        bias = guide["0.bias"].base()
        expected = (by_group**power * w).sum(-1).reshape(3, 4, 9)
        expected = expected + (bias.mean if power == 1 else bias.variance).reshape(1, 4, 1)
        torch.testing.assert_close(moment, expected)


ELEMENTWISE = [nn.ReLU(), nn.LeakyReLU(0.3), nn.ELU(), nn.GELU(), nn.Mish(), nn.Sigmoid()]
ELEMENTWISE += [nn.SiLU(), nn.Softplus(), nn.Tanh()]


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=lambda layer: type(layer).__name__)
def test_activations_of_a_normal(layer):
    mean = torch.tensor([-3.0, -0.5, 0.0, 0.2, 2.0, 50.0, -50.0], dtype=D)
    stddev = torch.tensor([1.0, 0.5, 1.0, 1e-3, 0.7, 1e-2, 1e-2], dtype=D)
    # By parts, since some have a kink at 0.
    nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(200))
    low, high = mean - 9 * stddev, mean + 9 * stddev
    kink = torch.minimum(torch.maximum(low, torch.zeros(())), high)
    parts = []
    for a, b in ((low, kink), (kink, high)):
        x = a + (b - a) * (nodes.unsqueeze(-1) + 1) / 2
        density = dist.Normal(mean, stddev).log_prob(x).exp() * weights.unsqueeze(-1) * (b - a) / 2
        parts.append((layer(x), density))
    first = sum((f * p).sum(0) for f, p in parts)
    variance = sum(((f - first).square() * p).sum(0) for f, p in parts)
    found = _RULES[type(layer)](layer, Moments(mean, stddev.square()))
    torch.testing.assert_close(found.mean, first, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.variance, variance, rtol=2e-3, atol=1e-6)
    single = _RULES[type(layer)](layer, Moments(mean.float(), stddev.square().float()))
    torch.testing.assert_close(single.variance.double(), variance, rtol=2e-3, atol=1e-6)
    certain = _RULES[type(layer)](layer, Moments(mean, torch.zeros_like(mean)))
    torch.testing.assert_close(certain.mean, layer(mean))
    assert not certain.variance.any()


def within_draws(net: nn.Module, guide: AutoLRT, x: torch.Tensor, num: int) -> None:
    """Both moments against those of functions, within 5 standard errors."""
    predictive = Predictive(net, guide=guide, num_samples=num, return_sites=["_RETURN"])
    net.eval()
    draws = predictive(x)["_RETURN"]
    mean, variance = moments(net, guide, x)
    for found, values in ((mean, draws), (variance, (draws - mean).square())):
        error = values.std(0) / math.sqrt(num)
        assert ((values.mean(0) - found).abs() < 5 * error).all()


def test_one_hidden_layer_of_relus_is_exact():
    pyro.set_rng_seed(0)
    net, guide = bayesian(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2), scale=0.5)
    prune(guide, 0.05)
    within_draws(net, guide, torch.randn(4, 3, dtype=D), 10_000)


def test_layers_that_stay_deterministic():
    plain = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    plain(torch.randn(50, 3))  # statistics
    net = bayesianize(plain, where="last_layer").double().eval()
    guide = AutoLRT(net, init_scale=0.2).double()
    x = torch.randn(4, 3, dtype=D)
    features = plain.double().eval()[:3](x)
    weight, bias = (guide[f"3.{name}"].base() for name in ("weight", "bias"))
    expected = features @ weight.mean.T + bias.mean, features.square() @ weight.variance.T + 0.04
    torch.testing.assert_close(moments(net, guide, x), expected)


def test_batch_normalisation_and_averages_of_what_is_uncertain():
    norm = nn.BatchNorm1d(2).double().eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]) - norm.eps)
    norm.weight.data.copy_(torch.tensor([3.0, 0.5]))
    x = Moments(torch.tensor([[2.0, 2.0]], dtype=D), torch.tensor([[1.0, 4.0]], dtype=D))
    found = _RULES[nn.BatchNorm1d](norm, x)
    torch.testing.assert_close(found.mean, torch.tensor([[1.5, 0.0]], dtype=D))
    torch.testing.assert_close(found.variance, torch.tensor([[2.25, 1 / 9]], dtype=D))
    # One value for the whole image, so that its average is as uncertain as it is.
    net, guide = bayesian(nn.Conv1d(1, 1, 1), nn.Identity(), nn.AvgPool1d(4))
    x = torch.full((1, 1, 8), 2.0, dtype=D)
    torch.testing.assert_close(moments(net, guide, x)[1], torch.full((1, 1, 2), 0.45, dtype=D))
    # One factor for the whole image, which is that of the average.
    net, guide = bayesian(nn.Conv1d(1, 1, 1, bias=False), nn.Identity(), nn.AvgPool1d(4))
    x = torch.arange(8, dtype=D).reshape(1, 1, 8)
    expected = 0.09 * torch.tensor([[[1.5, 5.5]]], dtype=D).square()
    torch.testing.assert_close(moments(net, guide, x)[1], expected)


# Predictions.


def test_regression_is_exact():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    model = BNN(net.double(), likelihoods.Normal(0.5))
    guide = AutoFlipout(model, init_scale=0.2).double()
    x = torch.randn(6, 3, dtype=D)
    mean, variance = (t.squeeze(-1) for t in moments(model, guide, x))
    prediction = predict(model, guide, x, moments=True)
    torch.testing.assert_close(prediction.mean, mean)
    torch.testing.assert_close(prediction.epistemic, variance)
    torch.testing.assert_close(prediction.aleatoric, torch.full_like(mean, 0.25))
    loader = DataLoader(torch.utils.data.TensorDataset(x), 4)
    in_batches = predict(model, guide, loader, 16, moments=True)
    torch.testing.assert_close(in_batches.total, variance + 0.25)
    assert in_batches.samples.shape == (16, 6)


def test_labels_agree_with_quadrature():
    model = BNN(nn.Sequential(nn.Linear(3, 1)).double(), likelihoods.Bernoulli())
    guide = AutoLRT(model, init_scale=0.7).double()
    x = torch.randn(6, 3, dtype=D)
    mean, variance = moments(model, guide, x)
    nodes, weights = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(64))
    probs = torch.sigmoid(mean + variance.sqrt() * nodes) @ (weights / weights.sum())
    prediction = predict(model, guide, x, 1024, moments=True)
    torch.testing.assert_close(prediction.mean, probs, rtol=0, atol=1e-3)


def test_classes_agree_with_draws():
    model = BNN(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), likelihoods.Categorical()
    )
    guide = AutoLRT(model, init_scale=0.4)
    x, y = torch.randn(40, 3), torch.randint(4, (40,))
    fit(model, guide, (x, y), 2)
    by_moments, by_draws = predict(model, guide, x, moments=True), predict(model, guide, x, 2000)
    for name, tolerance in (("mean", 0.03), ("total", 0.05), ("epistemic", 0.05)):
        found, expected = getattr(by_moments, name), getattr(by_draws, name)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_refuses():
    x = torch.ones(2, 3, dtype=D)
    net, guide = bayesian(nn.Linear(3, 3), nn.Softmax(-1))
    with pytest.raises(ValueError, match=r"`1`, a Softmax, has no rule. Draw samples, by"):
        moments(net, guide, x)
    layer = nn.Linear(3, 3)
    net, guide = bayesian(layer, nn.ReLU(), layer)
    with pytest.raises(ValueError, match="`2`, a Linear, shares weights with another layer"):
        moments(net, guide, x)
    net, guide = bayesian(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="`1`, a BatchNorm1d, normalises by the statistics"):
        moments(net, guide, x)
    net = bayesianize(nn.Sequential(nn.Linear(3, 3)))
    guide = AutoLRT(net, sites={"0.weight": FullNormalPosterior})
    with pytest.raises(ValueError, match=r"`0.weight` is a FullNormalPosterior: moments are prop"):
        moments(net, guide, x.float())
    model = BNN(nn.Linear(3, 1), likelihoods.Normal(dist.HalfNormal(1.0)))
    with pytest.raises(ValueError, match=r"\['likelihood.scale'\] are random: to predict by `mom"):
        predict(model, AutoLRT(model), x.float(), moments=True)
    model = BNN(nn.Linear(3, 1), likelihoods.Normal())
    for ignored in ({"site": "y"}, {"parallel": True}):
        with pytest.raises(ValueError, match="are for samples: leave them out"):
            predict(model, AutoLRT(model), x.float(), moments=True, **ignored)
    with pytest.raises(TypeError, match=r"`model` \(=function\) must be a BNN"):
        predict(lambda x: x, guide, x, moments=True)
    with pytest.raises(TypeError, match=r"`x` \(=tuple\) must be one tensor"):
        moments(model, AutoLRT(model), (x.float(), x.float()))


def test_averages_of_unequal_variances_are_those_of_what_is_wholly_correlated():
    x = Moments(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 9.0]]]))
    found = _RULES[nn.AvgPool1d](nn.AvgPool1d(2), x).variance
    assert found.item() == pytest.approx(((1 + 3) / 2) ** 2)
