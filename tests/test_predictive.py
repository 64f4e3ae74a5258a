from __future__ import annotations

import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, torch_mlp, within
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn import bayesianize
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import Predictive
from pyro_bnn.infer._predictive import _Work
from pyro_bnn.nn import BayesianLinear

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
PARALLEL = pytest.mark.parametrize("parallel", [None, True, False])


class Local(PyroModule):
    """A latent variable for each datum, in nested plates, and a learned noise."""

    def __init__(self):
        super().__init__()
        self.net = bayesian_mlp(3, 4, 1)

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x), dim=-1):
            shift = pyro.sample("shift", dist.Normal(mean, 0.1))
            with pyro.plate("repeats", 2, dim=-2):
                pyro.sample("obs", dist.Normal(shift, noise), obs=y)
        return mean


def shapes(samples):
    return {name: value.shape for name, value in samples.items()}


def models():
    x, y = data(6)
    yield Regression(bayesian_mlp(3, 4, 1), None), x, y
    yield Local(), x, y.expand(2, 6)


MODELS = pytest.mark.parametrize("index", range(2))


@EACH
@MODELS
@PARALLEL
@pytest.mark.parametrize("sites", [(), None, ["obs"], ["_RETURN"], ["obs", "_RETURN"], {"noise"}])
def test_keys_and_shapes_are_pyros(kind, index, parallel, sites):
    model, x, y = list(models())[index]
    guide = kind.make(model)
    guide(x, y)
    kwargs = {"guide": guide, "num_samples": 4, "return_sites": sites}
    expected = pyro.infer.Predictive(model, **kwargs)(x)
    result = Predictive(model, **kwargs, parallel=parallel, chunk_size=3)(x)
    assert shapes(result) == shapes(expected)
    assert {n: v.dtype for n, v in result.items()} == {n: v.dtype for n, v in expected.items()}


@MODELS
@PARALLEL
@pytest.mark.parametrize("given", [True, False])
def test_samples_and_priors(index, parallel, given):
    model, x, y = list(models())[index]
    samples = None
    if given:
        guide = AutoReparameterization(model)
        guide(x, y)
        samples = Predictive(model, guide=guide, num_samples=4)(x)
        samples = {name: samples[name] for name in guide if name != "shift"}
    kwargs = {"posterior_samples": samples, "num_samples": 4}
    expected = pyro.infer.Predictive(model, **kwargs)(x)
    result = Predictive(model, **kwargs, parallel=parallel)(x)
    assert shapes(result) == shapes(expected)
    values = next(iter(result.values()))
    assert not torch.equal(values[0], values[1])


@EACH
def test_torchs_own_layers(kind):
    """Pyro's loop gives them weights with further dimensions, which they cannot take."""
    x, y = data(6)
    model = Regression(torch_mlp(3, 4, 1), None)
    guide = kind.make(model)
    guide(x, y)
    draws = Predictive(model, guide=guide, num_samples=4)(x)
    assert draws["obs"].shape == (4, 6)
    draws = {name: draws[name] for name in guide}
    results = [
        Predictive(model.net, draws, return_sites=["_RETURN"], parallel=parallel)(x)["_RETURN"]
        for parallel in (True, False)
    ]
    assert results[0].shape == (4, 6, 1)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal])
def test_pyros_own_guides(make):
    model, x, y = next(models())
    guide = make(model)
    guide(x, y)
    kwargs = {"guide": guide, "num_samples": 4}
    assert shapes(Predictive(model, **kwargs)(x)) == shapes(
        pyro.infer.Predictive(model, **kwargs)(x)
    )


LIKELIHOODS = {
    "normal": lambda f: dist.Normal(f, 1.0),
    "student": lambda f: dist.StudentT(3.0, f, 1.0),
    "gamma": lambda f: dist.Gamma(2.0, f.exp()),
    "exponential": lambda f: dist.Exponential(f.exp()),
    "laplace": lambda f: dist.Laplace(f, 1.0),
    "bernoulli": lambda f: dist.Bernoulli(logits=f),
    "poisson": lambda f: dist.Poisson(f.exp()),
    "categorical": lambda f: dist.Categorical(logits=torch.stack([f, -f, f - f], -1)),
    "multivariate": lambda f: dist.MultivariateNormal(torch.stack([f, -f], -1), torch.eye(2)),
    "mixture": lambda f: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([f, -f], -1), 1.0)
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_new_data_differ_between_samples_and_have_their_moments(name):
    net = bayesian_mlp(2, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("obs", LIKELIHOODS[name](net(x).squeeze(-1)))

    x = torch.tensor([[0.2, 0.3], [1.0, -1.0]])
    # One weight, given as often as there are samples.
    weights = {"0.weight": torch.tensor([[[0.5, -0.3]]]), "0.bias": torch.tensor([[0.1]])}
    many = {name: w.expand(8_000, *w.shape[1:]) for name, w in weights.items()}
    samples = Predictive(model, many, parallel=True)(x)["obs"].double()
    f = (x @ weights["0.weight"][0].T + weights["0.bias"][0]).squeeze(-1)
    likelihood = LIKELIHOODS[name](f)
    if name == "categorical":
        classes = likelihood.probs.T
        for i in range(3):
            assert within((samples == i).double(), classes[i])
        return
    assert within(samples, likelihood.mean)
    if name != "student":  # whose fourth moment is infinite
        assert within((samples - likelihood.mean).square(), likelihood.variance)
    assert within((samples - likelihood.mean)[:-1] * (samples - likelihood.mean)[1:], 0.0)


class Branching(PyroModule):
    """Looks at a value of its output, which cannot be vectorised."""

    def __init__(self):
        super().__init__()
        self.layer = BayesianLinear(3, 1)

    def forward(self, x):
        output = self.layer(x)
        return output if output.sum().item() > 0 else -output


def test_a_model_that_cannot_be_vectorized():
    net, x = Branching(), torch.randn(5, 3)
    draws = Predictive(net, guide=AutoLRT(net), num_samples=4)(x)
    draws = {name: value for name, value in draws.items() if name != "_RETURN"}
    kwargs = {"posterior_samples": draws, "return_sites": ["_RETURN"]}
    expected = pyro.infer.Predictive(net, **kwargs)(x)["_RETURN"]
    torch.testing.assert_close(Predictive(net, **kwargs)(x)["_RETURN"], expected)
    with pytest.raises(ValueError, match="`parallel`"):
        Predictive(net, **kwargs, parallel=True)(x)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization(training):
    """In training it counts its batches, which only a loop can."""
    net = PyroModule[nn.Sequential](BayesianLinear(3, 4), nn.BatchNorm1d(4)).train(training)
    predictive = Predictive(net, guide=AutoLRT(net), num_samples=4, return_sites=["_RETURN"])
    assert predictive(torch.randn(5, 3))["_RETURN"].shape == (4, 5, 4)
    if not training:
        predictive.parallel = True
        assert predictive(torch.randn(5, 3))["_RETURN"].shape == (4, 5, 4)


def test_dropout_differs_between_samples():
    net = PyroModule[nn.Sequential](nn.Dropout(0.5), BayesianLinear(20, 1))
    weights = {"1.weight": torch.ones(6, 1, 20), "1.bias": torch.zeros(6, 1)}
    predictive = Predictive(net, weights, return_sites=["_RETURN"], parallel=True)
    out = predictive(torch.randn(3, 20))["_RETURN"]
    assert len(out.flatten(1).unique(dim=0)) == 6


def test_memory_is_bounded():
    """Weights that are not to be returned are drawn chunk by chunk, and forgotten."""
    net = bayesian_mlp(300, 300, 1)
    guide = AutoReparameterization(net)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        kwargs = {"guide": guide, "num_samples": 500, "return_sites": ["_RETURN"]}
        out = Predictive(net, **kwargs)(torch.randn(2, 300))["_RETURN"]
    gc.collect()
    assert out.shape == (500, 2, 1)
    assert max(sizes) <= 2**22


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_any_size_of_chunks(size):
    net = bayesian_mlp(3, 4, 1)
    draws = Predictive(net, guide=AutoLRT(net), num_samples=5)(x := torch.randn(2, 3))
    draws = {name: value for name, value in draws.items() if name != "_RETURN"}
    kwargs = {"posterior_samples": draws, "return_sites": ["_RETURN"]}
    expected = pyro.infer.Predictive(net, **kwargs)(x)["_RETURN"]
    torch.testing.assert_close(Predictive(net, **kwargs, chunk_size=size)(x)["_RETURN"], expected)


def test_leaves_no_gradient():
    net = bayesian_mlp(3, 4, 1)
    out = Predictive(net, guide=AutoLRT(net), num_samples=3)(torch.randn(2, 3))
    assert not any(value.requires_grad for value in out.values())


def test_rejects():
    net = bayesian_mlp(3, 1)
    with pytest.raises(ValueError, match="chunk_size"):
        Predictive(net, num_samples=3, chunk_size=0)
    with pytest.raises(ValueError, match="num_samples"):
        Predictive(net)

    class Pair(PyroModule):
        def forward(self, x):
            return net(x), x

    with pytest.raises(TypeError, match="_RETURN"):
        Predictive(Pair(), num_samples=3, return_sites=["_RETURN"])(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("layer", "small", "large"),
    [
        (nn.Conv2d(1, 8, 3, padding=1), (2, 1, 16, 16), (33, 1, 16, 16)),
        (nn.LSTM(2, 8), (5, 3, 2), (64, 17, 2)),
        (nn.Linear(30, 30), (5, 30), (3000, 30)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_loops_where_that_was_measured_to_be_faster(layer, small, large):
    net = bayesianize(layer)
    for shape, expected in ((small, False), (large, True)):
        with _Work() as work, torch.no_grad():
            net(torch.randn(shape))
        assert work.is_faster_in_a_loop == expected
