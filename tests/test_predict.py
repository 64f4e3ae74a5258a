"""Predictions: their moments, uncertainty and quantiles, whatever the form of the inputs."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Regression, bayesian_mlp, within
from pyro.infer import MCMC, NUTS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, likelihoods, predict
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.models import _draws, _prediction

D = torch.double
N, S = 5, 7
X = torch.linspace(-1, 1, 2 * N, dtype=D).reshape(N, 2)


def entropy(p):
    return -(p * p.log()).sum(-1)


def softmax(f):
    return f.exp() / f.exp().sum(-1, keepdim=True)


def binary(f):
    p = 1 / (1 + (-f[..., 0]).exp())
    return torch.stack([1 - p, p], -1)


def ranks(f):
    cut = torch.tensor([-math.inf, math.log(1 / 2), math.log(2), math.inf], dtype=D)
    below = torch.sigmoid(cut - f)
    return below[..., 1:] - below[..., :-1]


def heteroscedastic(f):
    return f[..., 0], (0.1 + (1 + f[..., 1].exp()).log()).square()


# Likelihood, number of outputs, and probabilities or (mean, variance) of the outputs.
CLASSES = {
    "Categorical": (likelihoods.Categorical(), 3, softmax),
    "Bernoulli": (likelihoods.Bernoulli(), 1, binary),
    "Ordinal": (likelihoods.Ordinal(3), 1, ranks),
}
NUMBERS = {
    "Normal": (
        likelihoods.Normal(0.5),
        1,
        lambda f: (f[..., 0], torch.full_like(f[..., 0], 0.25)),
    ),
    "HeteroscedasticNormal": (
        likelihoods.HeteroscedasticNormal(min_scale=0.1),
        2,
        heteroscedastic,
    ),
    "StudentT": (
        likelihoods.StudentT(5.0, 0.5),
        1,
        lambda f: (f[..., 0], torch.full_like(f[..., 0], 0.25 * 5 / 3)),
    ),
    "Poisson": (likelihoods.Poisson(), 1, lambda f: (f[..., 0].exp(), f[..., 0].exp())),
    "NegativeBinomial": (
        likelihoods.NegativeBinomial(2.5),
        1,
        lambda f: (f[..., 0].exp(), f[..., 0].exp() + (2 * f[..., 0]).exp() / 2.5),
    ),
}


def linear(likelihood, num_out, num_samples=S, scale=1.0):
    """A model, samples of its weights, and its outputs under each."""
    model = BNN(nn.Linear(2, num_out, dtype=D), likelihood)
    weight = scale * torch.randn(num_samples, num_out, 2, dtype=D)
    bias = scale * torch.randn(num_samples, num_out, dtype=D)
    return model, {"net.weight": weight, "net.bias": bias}, X @ weight.mT + bias.unsqueeze(1)


def fitted(model, *data):
    guide = AutoLRT(model, init_scale=0.3)
    guide(*data)
    return guide


def test_every_likelihood_has_a_row():
    assert {*CLASSES, *NUMBERS} == set(likelihoods.__all__) - {"Likelihood"}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    likelihood, num_out, probs_of = CLASSES[name]
    model, samples, f = linear(likelihood, num_out)
    prediction = predict(model, samples, X)
    probs = probs_of(f)
    mean = probs.mean(0)
    torch.testing.assert_close(prediction.mean, mean[..., 1] if name == "Bernoulli" else mean)
    torch.testing.assert_close(prediction.probs, mean)
    torch.testing.assert_close(prediction.total, entropy(mean))
    torch.testing.assert_close(prediction.aleatoric, entropy(probs).mean(0))
    torch.testing.assert_close(prediction.epistemic, entropy(mean) - entropy(probs).mean(0))
    assert (prediction.epistemic > 1e-4).all()
    variance = prediction.mean * (1 - prediction.mean)
    torch.testing.assert_close(prediction.stddev, variance.sqrt())
    assert prediction.samples.shape == (S, N)
    many = {key: value[:1].expand(4000, *value.shape[1:]) for key, value in samples.items()}
    drawn = predict(model, many, X).samples
    for i in range(probs.shape[-1]):
        assert within((drawn == i).double(), probs[0, :, i])


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    likelihood, num_out, moments = NUMBERS[name]
    model, samples, f = linear(likelihood, num_out, scale=0.5)
    prediction = predict(model, samples, X)
    means, variances = moments(f)
    mean = means.mean(0)
    # The mean and variance of the mixture, by its first two moments.
    total = (variances + means.square()).mean(0) - mean.square()
    torch.testing.assert_close(prediction.mean, mean)
    torch.testing.assert_close(prediction.aleatoric, variances.mean(0))
    torch.testing.assert_close(prediction.epistemic, (means - mean).square().mean(0))
    torch.testing.assert_close(prediction.total, total)
    torch.testing.assert_close(prediction.stddev, total.sqrt())
    many = {key: value.repeat(1000, *[1] * (value.dim() - 1)) for key, value in samples.items()}
    drawn = predict(model, many, X).samples
    # Each of the draws comes 1000 times: the error is that of the noise alone.
    drawn = drawn.reshape(1000, S, N)
    assert within(drawn.mean(1), mean)
    assert within((drawn - mean).square().mean(1), total)


@pytest.mark.parametrize(
    ("likelihood", "num_out", "mean", "total"),
    [
        (likelihoods.Bernoulli(), 4, (N, 4), (N, 4)),
        (likelihoods.Normal(0.1), 3, (N, 3), (N, 3)),
        (likelihoods.HeteroscedasticNormal(), 6, (N, 3), (N, 3)),
        (likelihoods.Poisson(), 2, (N, 2), (N, 2)),
    ],
)
def test_several_targets(likelihood, num_out, mean, total):
    model, samples, _ = linear(likelihood, num_out)
    prediction = predict(model, samples, X)
    assert prediction.mean.shape == prediction.stddev.shape == mean
    assert prediction.total.shape == prediction.epistemic.shape == total
    assert prediction.samples.shape == (S, *mean)


def test_a_class_for_each_pixel():
    model = BNN(nn.Conv2d(2, 3, 1), likelihoods.Categorical(class_dim=-3))
    x, y = torch.randn(4, 2, 6, 5), torch.zeros(4, 6, 5)
    prediction = predict(model, fitted(model, x, y), x, num_samples=S)
    assert prediction.mean.shape == (4, 6, 5, 3)
    torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(4, 6, 5))
    assert prediction.total.shape == (4, 6, 5)
    assert prediction.samples.shape == (S, 4, 6, 5)


def test_the_posterior_predictive_of_linear_regression():
    noise, x = 0.5, torch.randn(30, 2, dtype=D)
    y = x @ torch.tensor([1.0, -1], dtype=D) + noise * torch.randn(30, dtype=D)
    precision = x.T @ x / noise**2 + torch.eye(2, dtype=D)
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)
    model = BNN(nn.Linear(2, 1, bias=False, dtype=D), likelihoods.Normal(noise))
    num = 4000
    draws = dist.MultivariateNormal(mean, precision_matrix=precision).sample((num,))
    prediction = predict(model, {"net.weight": draws.unsqueeze(1)}, X)
    variance = (X @ torch.linalg.inv(precision) * X).sum(-1)
    assert (abs(prediction.mean - X @ mean) < 5 * (variance / num).sqrt()).all()
    torch.testing.assert_close(prediction.aleatoric, torch.full((N,), noise**2, dtype=D))
    error = 5 * variance * (2 / num) ** 0.5
    assert (abs(prediction.epistemic - variance) < error).all()
    # A quantile of S samples has the standard error sqrt(p (1 - p) / S) / density.
    exact = dist.Normal(X @ mean, (variance + noise**2).sqrt())
    for p in (0.05, 0.5, 0.9):
        quantile = exact.icdf(torch.tensor(p, dtype=D))
        error = (p * (1 - p) / num) ** 0.5 / exact.log_prob(quantile).exp()
        assert (abs(prediction.quantiles(p) - quantile) < 5 * error).all()


def test_quantiles():
    model, samples, _ = linear(likelihoods.Normal(0.5), 2, 40)
    prediction = predict(model, samples, X)
    probs = [0.0, 0.03, 0.5, 1.0]
    quantiles = prediction.quantiles(probs)
    expected = np.quantile(prediction.samples.numpy(), probs, 0)
    np.testing.assert_allclose(quantiles, expected, rtol=1e-12)
    np.testing.assert_allclose(prediction.quantiles(torch.tensor(probs))[1], expected[1], rtol=1e-6)
    torch.testing.assert_close(prediction.quantiles(0.5), quantiles[2])
    model, samples, _ = linear(likelihoods.Poisson(), 1, 40)
    counts = predict(model, samples, X).quantiles([0.1, 0.5, 0.9])
    assert (counts == counts.round()).all()
    with pytest.raises(ValueError, match="the targets are counts, which have no `probs`"):
        predict(model, samples, X).probs  # noqa: B018
    assert (counts.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("probs", [-0.1, 1.1, [0.5, math.nan], [[0.5]]])
def test_bad_probabilities(probs):
    model, samples, _ = linear(likelihoods.Normal(0.5), 1)
    with pytest.raises(ValueError, match=r"`probs` \(=.* between 0 and 1"):
        predict(model, samples, X).quantiles(probs)


@pytest.mark.parametrize("probs", [None, "0.5", [0.5, None]])
def test_probabilities_of_a_wrong_type(probs):
    model, samples, _ = linear(likelihoods.Normal(0.5), 1)
    with pytest.raises(TypeError, match=r"`probs` \(=.* must be numbers"):
        predict(model, samples, X).quantiles(probs)


def test_classes_have_no_quantiles_but_ranks_have():
    model, samples, _ = linear(likelihoods.Categorical(), 3)
    with pytest.raises(ValueError, match="an order, but these are classes: `mean`"):
        predict(model, samples, X).quantiles(0.5)
    model, samples, _ = linear(likelihoods.Ordinal(3), 1)
    assert predict(model, samples, X).quantiles(0.5).shape == (N,)


# Users' functions.


def test_a_distribution_without_formulas_for_its_moments():
    def log_normal(f):
        inner = dist.Normal(f[..., 0], 0.3)
        return dist.TransformedDistribution(inner, [torch.distributions.ExpTransform()])

    model, samples, f = linear(log_normal, 1, 400, scale=0.2)
    prediction = predict(model, samples, X)
    means = (f[..., 0] + 0.3**2 / 2).exp()
    variances = means.square() * (math.exp(0.3**2) - 1)
    error = (variances.mean(0) / 400 / 100).sqrt()
    assert (abs(prediction.mean - means.mean(0)) < 5 * error).all()
    # The excess kurtosis of this log-normal distribution is 1.7.
    error = variances.mean(0) * (3.7 / 400 / 100) ** 0.5 * 2
    assert (abs(prediction.aleatoric - variances.mean(0)) < 5 * error).all()
    epistemic = means.var(0, correction=0)
    spread = (means - means.mean(0)).square() * variances
    error = 2 * (spread.mean(0) / 100 / 400).sqrt() + 2 * variances.mean(0) / 100 / 20
    assert (abs(prediction.epistemic - epistemic) < 5 * error).all()


def test_functions_that_return_other_distributions():
    model, samples, f = linear(lambda f: dist.Laplace(f[:, 0], f[:, 1].exp()), 2)
    prediction = predict(model, samples, X)
    torch.testing.assert_close(prediction.aleatoric, 2 * (2 * f[..., 1]).exp().mean(0))
    torch.testing.assert_close(prediction.mean, f[..., 0].mean(0))
    cholesky = torch.tensor([[1.0, 0], [0.5, 2]], dtype=D)
    model, samples, f = linear(lambda f: dist.MultivariateNormal(f, scale_tril=cholesky), 2)
    prediction = predict(model, samples, X)
    expected = torch.tensor([1.0, 4.25], dtype=D).expand(N, 2)
    torch.testing.assert_close(prediction.aleatoric, expected)
    torch.testing.assert_close(prediction.epistemic, f.var(0, correction=0))
    assert prediction.samples.shape == (S, N, 2)


def test_a_distribution_without_a_rule_in_vmap():
    model, samples, f = linear(lambda f: dist.Beta(f[:, 0].exp(), 2.0), 1)
    prediction = predict(model, samples, X, parallel=False)
    a = f[..., 0].exp()
    torch.testing.assert_close(prediction.mean, (a / (a + 2)).mean(0))
    with pytest.warns(UserWarning, match="torch.vmap"):
        predict(model, samples, X)


def test_a_random_noise():
    model = BNN(nn.Linear(2, 1, dtype=D), likelihoods.Normal(dist.HalfNormal(1.0)))
    noise = torch.rand(S, dtype=D) + 0.1
    weights = {"net.weight": torch.randn(S, 1, 2, dtype=D), "net.bias": torch.zeros(S, 1, dtype=D)}
    prediction = predict(model, {**weights, "likelihood.scale": noise}, X)
    expected = noise.square().mean().expand(N)
    torch.testing.assert_close(prediction.aleatoric, expected)


# Inputs.


def classifier():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    model = BNN(net, likelihoods.Categorical())
    x = torch.randn(50, 2)
    return model, fitted(model, x, torch.zeros(50)), x


def test_every_form_of_inputs_gets_the_same_functions():
    model, guide, x = classifier()
    loaders = [
        DataLoader(TensorDataset(x, torch.zeros(50)), batch_size=17),
        DataLoader(TensorDataset(x), batch_size=50),
        DataLoader(x, batch_size=8),
        DataLoader([{"y": 0, "x": row} for row in x], batch_size=9),
    ]
    results = []
    for given in (x, x.numpy(), x.double().numpy(), *loaders):
        pyro.set_rng_seed(0)
        results.append(predict(model, guide, given, num_samples=20))
    pyro.set_rng_seed(0)
    results.append(predict(model, guide, x, 20, batch_size=3))
    for result in results:
        assert len(result) == 50
        torch.testing.assert_close(result.mean, results[0].mean)
        torch.testing.assert_close(result.epistemic, results[0].epistemic, rtol=1e-3, atol=1e-6)


def test_draws_that_are_too_large_to_keep_are_drawn_again(monkeypatch):
    model, guide, x = classifier()
    predictions = []
    for kept, chunk, batch_size in [(2**26, 2**8, 50), (0, 2**8, 50), (0, 2**8, 7)]:
        monkeypatch.setattr(_draws, "_MAX_KEPT", kept)
        monkeypatch.setattr(_draws, "_MAX_CHUNK", chunk)
        pyro.set_rng_seed(0)
        predictions.append(predict(model, guide, x, 20, batch_size=batch_size))
    for prediction in predictions[1:]:
        torch.testing.assert_close(prediction.mean, predictions[0].mean)
    assert len({tuple(p.samples[:, 0].tolist()) for p in predictions}) > 1
    assert [len(p.samples) for p in predictions] == [20] * 3


def test_one_network_for_all_rows():
    """Rows that are equal have equal means, though each of them meets its own batch."""
    model = BNN(nn.Linear(2, 1), likelihoods.Normal(1e-6))
    x = torch.ones(9, 2)
    guide = fitted(model, x, torch.zeros(9))
    samples = predict(model, guide, x, 30, batch_size=2).samples
    assert (samples.std(1) < 1e-5).all()
    assert samples.std(0).min() > 0.1


def test_no_more_rows_than_a_batch_run_at_once():
    model, guide, x = classifier()
    seen = []
    model.net.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-2]))
    predict(model, guide, x, 4)
    assert max(seen) == 50
    seen.clear()
    predict(model, guide, x, 4, batch_size=16)
    predict(model, guide, DataLoader(x, batch_size=16), 4)
    assert max(seen) == 16


def test_seeds_and_modes():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    model = BNN(net, likelihoods.Normal(0.1))
    x = torch.randn(20, 2)
    guide = AutoReparameterization(model)
    guide(x, torch.zeros(20))
    model.net[2].eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    results = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        results.append(predict(model, guide, x, 5))
    torch.testing.assert_close(results[0].samples, results[1].samples, rtol=0, atol=0)
    assert not torch.equal(predict(model, guide, x, 5).mean, results[0].mean)
    one = predict(model, guide, x[:1], 5)  # with running statistics, no row depends on others
    assert one.mean.isfinite().all()
    assert model.training
    assert not model.net[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not results[0].mean.requires_grad


def test_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, one, two):
            return self.one(one) + self.two(two)

    model = BNN(Sum(), likelihoods.Normal(0.1))
    one, two = torch.randn(20, 2), torch.randn(20, 3)
    guide = fitted(model, (one, two), torch.zeros(20))
    means = []
    for x in ((one, two), {"one": one, "two": two}, (one.numpy(), two.numpy())):
        pyro.set_rng_seed(0)
        means.append(predict(model, guide, x, 5, batch_size=7).mean)
    torch.testing.assert_close(means[1], means[0])
    torch.testing.assert_close(means[2], means[0])


def test_models_and_posteriors_of_other_kinds():
    model = Regression(bayesian_mlp(3, 1), noise=None)
    x, y = torch.randn(20, 3), torch.randn(20)
    prediction = predict(model, fitted(model, x, y), x, 6)
    assert prediction.samples.shape == (6, 20)
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(x, y)
    samples = mcmc.get_samples()
    prediction = predict(model, samples, x)
    expected = samples["noise"].square().mean()
    torch.testing.assert_close(prediction.aleatoric, expected.expand(20))
    normal = pyro.infer.autoguide.AutoNormal(pyro.poutine.block(model, hide=["obs"]))
    normal(x, y)
    assert predict(model, normal, x, 6).mean.shape == (20,)


# Errors.


def test_bad_arguments():
    model, guide, x = classifier()
    with pytest.raises(ValueError, match=r"`num_samples` \(=0\) must be positive"):
        predict(model, guide, x, num_samples=0)
    with pytest.raises(TypeError, match=r"`num_samples` \(=2.5\) must be an integer"):
        predict(model, guide, x, num_samples=2.5)
    with pytest.raises(ValueError, match=r"`batch_size` \(=0\) must be a positive"):
        predict(model, guide, x, batch_size=0)
    with pytest.raises(ValueError, match=r"`batch_size` \(=3\) is that of the DataLoader"):
        predict(model, guide, DataLoader(x), batch_size=3)
    for bad in (None, [1.0, 2.0], "x", x.tolist()):
        with pytest.raises(TypeError, match=r"`x` \(=.*must be a tensor or an array"):
            predict(model, guide, bad)
    for bad in (x[:0], torch.tensor(1.0), (x, x[:3])):
        with pytest.raises(ValueError, match=r"`x` has tensors of .* rows"):
            predict(model, guide, bad)
    with pytest.raises(ValueError, match="`x` is a DataLoader without batches"):
        predict(model, guide, DataLoader(x[:3], batch_size=9, drop_last=True))
    with pytest.raises(TypeError, match=r"`guide` \(=NoneType\) must be a guide"):
        predict(model, None, x)
    with pytest.raises(ValueError, match=r"`num_samples` \(=5\) is that of the samples"):
        predict(model, {"net.0.weight": torch.zeros(5, 8, 2)}, x, 5)
    with pytest.raises(ValueError, match="no samples of the weights"):
        predict(model, {"net.0.weight": torch.zeros(5, 8, 2)}, x)
    with pytest.raises(ValueError, match=r"`site` \(='y'\) must be the site .*\['obs'\]"):
        predict(model, guide, x, site="y")


def test_a_model_of_several_targets():
    net = bayesian_mlp(3, 2)

    def model(x, one=None, two=None):
        f = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("one", dist.Normal(f[:, 0], 0.1), obs=one)
            pyro.sample("two", dist.Poisson(f[:, 1].exp()), obs=two)

    x = torch.randn(20, 3)
    guide = fitted(model, x, torch.zeros(20), torch.zeros(20))
    with pytest.raises(ValueError, match=r"`site` \(=None\).*\['one', 'two'\]"):
        predict(model, guide, x)
    assert (predict(model, guide, x, site="two").samples >= 0).all()
    torch.testing.assert_close(
        predict(model, guide, x, site="one").aleatoric, torch.full((20,), 0.01)
    )


def test_means_that_are_estimated_do_not_count_as_epistemic():
    """Means of known variance, with the error that means of 100 samples each have."""
    epistemic, aleatoric, num = 0.09, 4.0, 100
    variance = epistemic + aleatoric / num
    means = variance**0.5 * torch.randn(500, 200, dtype=D)
    variances = torch.full_like(means, aleatoric)
    found = _prediction.of_numbers(means, variances, means, "numbers", error=1 / num)
    assert within(found.epistemic, epistemic * 499 / 500 - aleatoric / num / 500)
    none = _prediction.of_numbers(0 * means, variances, means, "numbers", error=1 / num)
    assert (none.epistemic == 0).all()
    assert (none.total == aleatoric).all()


def test_moments_that_are_estimated_are_known_to_be():
    """Certain weights: all that is uncertain is the noise, whose distribution has no moments."""

    def likelihood(output):
        scaled = [torch.distributions.AffineTransform(0.0, 2.0)]
        return dist.TransformedDistribution(dist.Normal(output.squeeze(-1), 1.0), scaled)

    model = BNN(nn.Linear(2, 1), likelihood)
    guide = AutoReparameterization(model, init_scale=1e-6)
    x = torch.randn(200, 2)
    guide(x, torch.zeros(200))
    found = predict(model, guide, x, 400)
    # Not 4 / 100; what remains are the positive ones of errors of about 0.003.
    assert found.epistemic.mean() < 0.005
    assert within(found.aleatoric, 4.0)


def test_the_same_probabilities_leave_nothing_unknown():
    probs = torch.randn(1000, 7).softmax(-1).expand(3, -1, -1)
    found = _prediction.of_classes(probs, torch.zeros(3, 1000), "classes")
    assert (found.epistemic >= 0).all()  # by rounding, the difference of entropies is not
    assert found.epistemic.max() < 1e-5


def test_quantiles_of_counts_are_counts():
    samples = torch.arange(11.0).flip(0).unsqueeze(-1)
    one = torch.ones(1)
    prediction = _prediction.Prediction(one, one, samples, one, one, one, "counts")
    quantiles = prediction.quantiles([0.0, 0.26, 0.38, 1.0]).squeeze(-1)
    assert quantiles.tolist() == [0.0, 3.0, 4.0, 10.0]
