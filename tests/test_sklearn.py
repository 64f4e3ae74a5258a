"""The estimators for scikit-learn: its own checks, its tools, and what is ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine
from sklearn.base import clone
from sklearn.datasets import load_iris, make_blobs
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pyro_bnn import bayesianize, likelihoods, priors
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.sklearn import BNNClassifier, BNNRegressor

KINDS = [BNNClassifier, BNNRegressor]
each = pytest.mark.parametrize("kind", KINDS)


@parametrize_with_checks([kind(num_steps=60) for kind in KINDS])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def data(kind, rows: int = 80):
    random = np.random.default_rng(0)
    X = random.normal([5.0, -300.0], [0.1, 40.0], (rows, 2))
    signal = (X[:, 0] - 5) * 10 + (X[:, 1] + 300) / 40
    if kind is BNNClassifier:
        return X, np.where(signal > 0, "yes", "no")
    return X, 1000 + 50 * signal + random.normal(0, 20, rows)


@each
def test_learns_in_the_units_of_the_data(kind):
    X, y = data(kind, 400)
    estimator = kind(num_steps=800, random_state=0).fit(X[:300], y[:300])
    assert estimator.score(X[300:], y[300:]) > 0.85
    if kind is BNNRegressor:
        mean, stddev = estimator.predict(X, return_std=True)
        np.testing.assert_array_equal(mean, estimator.predict(X))
        assert 15 < stddev.min() < stddev[300:].mean() < 45  # the noise is 20, the targets' 75
        far = estimator.predict(X + np.array([1.0, 400]), return_std=True)[1]
        assert far.mean() > 1.5 * stddev.mean()
    else:
        np.testing.assert_array_equal(estimator.classes_, ["no", "yes"])
        proba = estimator.predict_proba(X)
        np.testing.assert_allclose(proba.sum(1), 1)
        np.testing.assert_array_equal(estimator.predict(X) == "yes", proba[:, 1] > 0.5)


@each
def test_tools_of_scikit_learn(kind):
    X, y = data(kind)
    short = kind(num_steps=40, prior=priors.Normal(0, 1))  # which learns in the first steps
    pipeline = make_pipeline(PolynomialFeatures(2), short)
    search = GridSearchCV(pipeline, {f"{kind.__name__.lower()}__lr": [1e-3, 3e-2]}, cv=2)
    search.fit(X, y)
    assert search.best_params_ == {f"{kind.__name__.lower()}__lr": 3e-2}
    search = GridSearchCV(
        kind(num_steps=20), {"guide": [AutoFlipout], "hidden_sizes": [(4,)]}, cv=2
    )
    assert type(search.fit(X, y).best_estimator_.guide_) is AutoFlipout


def test_processes():
    X, y = load_iris(return_X_y=True)
    estimator = BNNClassifier(num_steps=100, prior=priors.Normal(0, 1), random_state=0)
    scores = cross_val_score(estimator, X, y, cv=2, n_jobs=2)
    np.testing.assert_array_equal(scores, cross_val_score(estimator, X, y, cv=2))
    assert scores.min() > 0.8


@each
def test_seeds(kind):
    X, y = data(kind)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = (kind(num_steps=20, random_state=3).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(one.predict(X), two.predict(X))
    assert torch.equal(state, torch.get_rng_state())
    values = [kind(num_steps=20).fit(X, y)._predicted(X).mean for _ in range(2)]
    assert not torch.equal(*values)


@each
def test_default_network_by_size_of_data(kind):
    for rows, sizes in [(20, [2, 50]), (1000, [2, 100, 100])]:
        X, y = data(kind, rows)
        net = kind(num_steps=1).fit(X, y).model_.net
        assert [m.in_features for m in net if isinstance(m, BayesianLinear)] == sizes
        scale = net[0].weight_prior.scale  # learned, one for each weight
        assert scale.requires_grad
        assert scale.shape == (sizes[1], sizes[0])
    net = kind(num_steps=1, hidden_sizes=(7, 3)).fit(X, y).model_.net
    assert [m.in_features for m in net if isinstance(m, BayesianLinear)] == [2, 7, 3]


@each
def test_networks_of_the_user(kind):
    X, y = data(kind)
    num = 2 if kind is BNNClassifier else 1
    plain = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, num))
    before = [p.clone() for p in plain.parameters()]
    bayesian = bayesianize(plain, prior=priors.Normal(0, 3))
    made = []

    def make(num_features, num_outputs):
        made.append((num_features, num_outputs))
        return nn.Linear(num_features, num_outputs)

    for net in (plain, bayesian, make):
        estimator = clone(kind(net=net, num_steps=5)).fit(X, y)
        assert estimator.predict(X).shape == (len(X),)
        assert estimator.model_.net is not net
        if net is bayesian:
            site = poutine.trace(estimator.model_).get_trace(torch.ones(1, 2).double())
            assert site.nodes["net.0.weight"]["fn"].base_dist.scale.unique() == 3
    assert made == [(2, num)]
    assert all(torch.equal(*pair) for pair in zip(before, plain.parameters(), strict=True))
    assert bayesian[0].weight.dtype == torch.float


# Regression.


def test_several_targets():
    X, y = data(BNNRegressor)
    several = np.stack([y, -y / 1000, y**2], 1)
    mean, stddev = BNNRegressor(num_steps=300).fit(X, several).predict(X, return_std=True)
    assert mean.shape == stddev.shape == several.shape
    assert (np.corrcoef(mean.T, several.T).diagonal(3) > 0.8).all()
    ratio = stddev.mean(0) / several.std(0)
    assert ((ratio > 0.2) & (ratio < 1.5)).all()


@pytest.mark.parametrize(
    "likelihood",
    [likelihoods.HeteroscedasticNormal(), likelihoods.StudentT(), likelihoods.Poisson()],
)
def test_other_likelihoods(likelihood):
    X, y = data(BNNRegressor)
    if isinstance(likelihood, likelihoods.Poisson):
        y = np.random.default_rng(0).poisson(np.exp((X[:, 0] - 5) * 10))
    estimator = BNNRegressor(likelihood=likelihood, num_steps=400, random_state=0).fit(X, y)
    assert np.corrcoef(estimator.predict(X), y)[0, 1] > 0.6
    assert abs(estimator.predict(X).mean() - y.mean()) < 0.5 * y.std()


def test_standard_deviations_are_those_of_the_model():
    X, y = data(BNNRegressor)
    estimator = BNNRegressor(num_steps=50, random_state=0).fit(X, y)
    prediction = estimator._predicted(X)
    mean, stddev = estimator.predict(X, return_std=True)
    np.testing.assert_allclose(mean, y.mean() + y.std() * prediction.mean.numpy())
    np.testing.assert_allclose(stddev, y.std() * prediction.stddev.numpy())


# Continual learning.


def test_the_posterior_becomes_the_prior():
    """Against the closed forms of mean-field posteriors of linear regression, one after another."""
    random = np.random.default_rng(0)
    X, noise = random.normal(size=(60, 2)), 0.5
    y = X @ [0.5, -0.5] + noise * random.normal(size=60)
    estimator = BNNRegressor(
        net=nn.Linear(2, 1, bias=False),
        likelihood=likelihoods.Normal(noise),
        prior=priors.Normal(0, 1),
        num_steps=1500,
        random_state=0,
    )
    loc, scale = np.zeros(2), np.ones(2)
    for rows in (slice(40), slice(40, 60)):
        estimator.partial_fit(X[rows], y[rows])
        x = estimator.scaler_.transform(X[rows])
        target = estimator.target_scaler_.transform(y[rows, None])[:, 0]
        precision = x.T @ x / noise**2 + np.diag(scale**-2)
        loc = np.linalg.solve(precision, x.T @ target / noise**2 + loc / scale**2)
        scale = precision.diagonal() ** -0.5
        posterior = estimator.guide_["net.weight"].distribution()
        np.testing.assert_allclose(posterior.mean.detach()[0], loc, atol=0.1 * scale.max())
        np.testing.assert_allclose(posterior.variance.detach()[0] ** 0.5, scale, rtol=0.1)


def test_later_data_leave_what_was_learned():
    X = np.linspace(-2, 2, 120)[:, None]
    y = np.sin(2 * X[:, 0]) + 0.1 * np.random.default_rng(0).normal(size=120)
    left, right = slice(60), slice(60, 120)
    error = lambda estimator, rows: np.square(estimator.predict(X[rows]) - y[rows]).mean()
    estimator = BNNRegressor(num_steps=500, random_state=0).fit(X[left], y[left])
    before = error(estimator, right)
    fresh = clone(estimator).fit(X[right], y[right])
    estimator.partial_fit(X[right], y[right])
    assert error(estimator, right) < 0.5 * before
    assert error(estimator, left) < 0.2 * error(fresh, left)


def test_partial_fit_of_classes():
    X, y = make_blobs(90, centers=3, random_state=0)
    few = y < 2
    estimator = BNNClassifier(num_steps=200, random_state=0)
    estimator.partial_fit(X[few][:10], y[few][:10], classes=[0, 1, 2])
    before = estimator.predict_proba(X)[~few, 2]
    assert before.shape == (30,)
    estimator.partial_fit(X, y)
    after = estimator.predict_proba(X)[~few, 2]
    assert after.mean() > before.mean() + 0.1
    with pytest.raises(ValueError, match="unseen"):
        estimator.partial_fit(X, y + 1)


# Errors.


@each
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, r"`num_steps` \(=0\) must be positive"),
        ({"batch_size": 2.5}, TypeError, r"`batch_size` \(=2.5\) must be an integer"),
        ({"num_samples": -1}, ValueError, r"`num_samples` \(=-1\) must be positive"),
        ({"net": "mlp"}, TypeError, r"`net` \(='mlp'\) must be a torch.nn.Module"),
        ({"guide": "lrt"}, TypeError, r"`guide` \(='lrt'\) must make a guide"),
        ({"lr": -1.0}, ValueError, r"`lr` .*must be positive"),
    ],
)
def test_bad_parameters(kind, parameters, error, message):
    with pytest.raises(error, match=message):
        kind(**parameters).fit(*data(kind))


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli(), likelihoods.Ordinal(2)])
def test_likelihoods_of_one_output_are_for_classes(likelihood):
    X, y = data(BNNClassifier, 200)
    classifier = BNNClassifier(likelihood=likelihood, num_steps=300, random_state=0).fit(X, y)
    proba = classifier.predict_proba(X)
    assert proba.shape == (200, 2)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert classifier.score(X, y) > 0.85


@pytest.mark.parametrize(
    ("kind", "likelihood", "message"),
    [
        (BNNClassifier, likelihoods.Bernoulli(), "is for 2 classes, but there are 3"),
        (BNNClassifier, likelihoods.Ordinal(4), "is for 4 classes, but there are 3"),
        (BNNClassifier, likelihoods.Normal(), "for numbers: use `BNNRegressor`"),
        (BNNRegressor, likelihoods.Categorical(), "for classes: use `BNNClassifier`"),
    ],
)
def test_likelihoods_of_the_other_estimator(kind, likelihood, message):
    with pytest.raises(ValueError, match=message):
        kind(likelihood=likelihood, num_steps=1).fit(np.eye(3), [0, 1, 2])


def test_a_refused_fit_leaves_what_was_fitted():
    X, y = data(BNNRegressor)
    estimator = BNNRegressor(num_steps=1, random_state=0).fit(X, y)
    expected = estimator.predict(X)
    estimator.set_params(likelihood=likelihoods.Poisson())
    with pytest.raises(ValueError, match="the counts 0, 1, 2"):
        estimator.fit(X[:, :1], y + 0.5)
    np.testing.assert_array_equal(estimator.predict(X), expected)


@pytest.mark.parametrize(("sizes", "error"), [(4, TypeError), ((0,), ValueError)])
def test_bad_hidden_sizes(sizes, error):
    with pytest.raises(error, match="`hidden_sizes`"):
        BNNRegressor(hidden_sizes=sizes).fit(*data(BNNRegressor))


def test_bad_targets():
    X, y = data(BNNRegressor)
    with pytest.raises(ValueError, match=r"one class only, \['a'\]"):
        BNNClassifier().fit(X, ["a"] * len(X))
    estimator = BNNRegressor(num_steps=1).fit(X, y)
    with pytest.raises(ValueError, match=r"`y` has the shape \(80, 1\), but targets of shape \(\)"):
        estimator.partial_fit(X, y[:, None])
