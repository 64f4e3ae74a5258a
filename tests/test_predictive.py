from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, torch_mlp, within
from pyro import poutine
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


def two(f):
    return torch.stack([f, -f], -1)


LIKELIHOODS = {
    "normal": lambda f: dist.Normal(f, 1.0),
    "student": lambda f: dist.StudentT(3.0, f, 1.0),
    "gamma": lambda f: dist.Gamma(2.0, f.exp()),
    "exponential": lambda f: dist.Exponential(f.exp()),
    "laplace": lambda f: dist.Laplace(f, 1.0),
    "bernoulli": lambda f: dist.Bernoulli(logits=f),
    "poisson": lambda f: dist.Poisson(f.exp()),
    "categorical": lambda f: dist.Categorical(logits=torch.stack([f, -f, f - f], -1)),
    "multivariate": lambda f: dist.MultivariateNormal(two(f), torch.eye(2)),
    "mixture": lambda f: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(two(f), 1.0)
    ),
    "binomial": lambda f: dist.Binomial(10, logits=f),
    "binomial of many": lambda f: dist.Binomial(torch.tensor([10.0, 20.0]), logits=f),
    "negative binomial": lambda f: dist.NegativeBinomial(5.0, logits=f),
    "gamma-Poisson": lambda f: dist.GammaPoisson(3.0, f.exp()),
    "zero-inflated Poisson": lambda f: dist.ZeroInflatedPoisson(f.exp(), gate=torch.tensor(0.3)),
    "multinomial": lambda f: dist.Multinomial(10, logits=two(f)),
    "one-hot": lambda f: dist.OneHotCategorical(logits=two(f)),
    "geometric": lambda f: dist.Geometric(logits=f),
    "log-normal": lambda f: dist.LogNormal(f, 0.3),
    "half-normal": lambda f: dist.HalfNormal(f.exp()),
    "inverse gamma": lambda f: dist.InverseGamma(8.0, f.exp()),
    "chi2": lambda f: dist.Chi2(f.exp()),
    "uniform": lambda f: dist.Uniform(f, f + 1),
    "gumbel": lambda f: dist.Gumbel(f, 1.0),
    "weibull": lambda f: dist.Weibull(f.exp(), 2.0 + 0 * f),
    "kumaraswamy": lambda f: dist.Kumaraswamy(f.exp(), 1.0 + 0 * f),
    "low rank": lambda f: dist.LowRankMultivariateNormal(two(f), torch.ones(2, 1), torch.ones(2)),
    "beta": lambda f: dist.Beta(f.exp(), 1.0 + 0 * f),
    "Dirichlet": lambda f: dist.Dirichlet(two(f).exp()),
    "Dirichlet-multinomial": lambda f: dist.DirichletMultinomial(two(f).exp(), 10),
    "beta-binomial": lambda f: dist.BetaBinomial(f.exp(), (-f).exp(), total_count=10),
    "ordered": lambda f: dist.OrderedLogistic(f, torch.tensor([-1.0, 0.0, 1.0])),
    "von Mises": lambda f: dist.VonMises(f, 20.0 + 0 * f),
    "stable": lambda f: dist.Stable(2.0, 0.0, 0.5 + 0 * f, f),
}
LOOPED = {
    "beta",
    "stable",
    "Dirichlet",
    "Dirichlet-multinomial",
    "beta-binomial",
    "von Mises",
}
INFINITE = {"student"}  # fourth moments


def moments(name, f):
    likelihood = LIKELIHOODS[name](f)
    if name in ("categorical", "ordered"):
        values = torch.arange(likelihood.probs.shape[-1])
        mean = (likelihood.probs * values).sum(-1)
        return mean, (likelihood.probs * values.square()).sum(-1) - mean.square()
    if name == "von Mises":  # whose variance is circular
        inner = torch.linspace(-torch.pi, torch.pi, 20_001)[:-1, None] + f
        weights = likelihood.log_prob(inner).exp().double()
        return f, ((inner - f).square() * weights).sum(0) / weights.sum(0)
    return likelihood.mean, likelihood.variance


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_new_data_differ_between_samples_and_have_their_moments(name):
    net = bayesian_mlp(2, 1)

    def model(x):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", LIKELIHOODS[name](mean))

    x = torch.tensor([[0.2, 0.3], [1.0, -1.0]])
    # One weight, given as often as there are samples.
    weights = {"0.weight": torch.tensor([[[0.5, -0.3]]]), "0.bias": torch.tensor([[0.1]])}
    f = (x @ weights["0.weight"][0].T + weights["0.bias"][0]).squeeze(-1)
    size = 1_000 if name in LOOPED else 8_000
    many = {name: w.expand(size, *w.shape[1:]) for name, w in weights.items()}
    if name in LOOPED:
        with pytest.warns(UserWarning, match=r"`torch.vmap` cannot run this model") as caught:
            samples = Predictive(model, many)(x)["obs"].double()
        assert len(caught) == 1
        assert caught[0].filename == __file__
    else:
        samples = Predictive(model, many, parallel=True)(x)["obs"].double()
    mean, variance = moments(name, f)
    assert samples.shape == (size, *mean.shape)
    assert within(samples, mean)
    if name not in INFINITE:
        assert within((samples - mean).square(), variance)
    assert within((samples - mean)[:-1] * (samples - mean)[1:], 0.0)


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
    with pytest.warns(UserWarning, match=r"data-dependent|\.item\(\)") as caught:
        draws = Predictive(net, guide=AutoLRT(net), num_samples=4, chunk_size=2)(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    draws = {name: value for name, value in draws.items() if name != "_RETURN"}
    kwargs = {"posterior_samples": draws, "return_sites": ["_RETURN"]}
    expected = pyro.infer.Predictive(net, **kwargs)(x)["_RETURN"]
    torch.testing.assert_close(Predictive(net, **kwargs, parallel=False)(x)["_RETURN"], expected)
    with pytest.raises(ValueError, match="`parallel`"):
        Predictive(net, **kwargs, parallel=True)(x)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, NotImplementedError])
@pytest.mark.parametrize("parallel", PARALLEL.args[1])
def test_an_error_of_the_model_is_raised_as_it_is(kind, parallel):
    """Not once for each sample, nor as one of vectorisation."""
    net, runs = bayesian_mlp(3, 1), []

    def model(x):
        out = net(x)
        runs.append(out)
        if len(runs) > 1:  # the first one is for the shapes
            raise kind("mine")
        return out

    with pytest.raises(kind, match="mine"):
        Predictive(model, guide=AutoLRT(net), num_samples=50, parallel=parallel)(torch.ones(2, 3))
    assert len(runs) <= 3


class Counting(PyroModule):
    """Changes its buffers in every way."""

    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Sequential](
            BayesianLinear(3, 4),
            nn.BatchNorm1d(4, momentum=None),
            nn.Unflatten(1, (2, 2)),
            nn.InstanceNorm1d(2, track_running_stats=True),
            nn.Flatten(),
            nn.Dropout(0.5),
        )
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("rows", torch.zeros(2))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.rows[0] += len(x)
        self.last = self.last + len(x)
        return self.net(x)


class Caller:
    """A model that is an object."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@pytest.mark.parametrize("parallel", PARALLEL.args[1])
@pytest.mark.parametrize("kind", ["module", "function", "object"])
def test_leaves_buffers_as_they_were(parallel, kind):
    net = Counting()
    model = {"module": net, "function": lambda x: net(x), "object": Caller(net)}[kind]
    guide = AutoLRT(net)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    objects = dict(net.named_buffers())
    kwargs = {"guide": guide, "num_samples": 7, "chunk_size": 3, "return_sites": ["_RETURN"]}
    with pytest.warns(UserWarning, match=r"model\.eval\(\)") as caught:
        out = Predictive(model, **kwargs, parallel=parallel)(torch.randn(5, 3))["_RETURN"]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert out.shape == (7, 5, 4)
    assert len(out.flatten(1).unique(dim=0)) == 7
    for name, x in net.state_dict().items():
        assert torch.equal(x, before[name])
    assert all(objects[name] is x for name, x in net.named_buffers())


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization(track, training):
    """In training by the statistics of these rows, in evaluation by those of the past."""
    norm = nn.BatchNorm1d(4, track_running_stats=track)
    if track:
        norm.running_mean.uniform_()
    net = PyroModule[nn.Sequential](BayesianLinear(3, 4), norm).train(training)
    x, weights = torch.randn(5, 3), {"0.weight": torch.randn(6, 4, 3), "0.bias": torch.zeros(6, 4)}
    h = x @ weights["0.weight"].mT
    mean, var = norm.running_mean, norm.running_var
    if training or not track:
        mean, var = h.mean(1, keepdim=True), h.var(1, correction=0, keepdim=True)
    expected = (h - mean) / (var + norm.eps).sqrt()
    for parallel in (None, True, False):
        predictive = Predictive(net, weights, return_sites=["_RETURN"], parallel=parallel)
        if track and training:
            with pytest.warns(UserWarning, match="training mode"):
                out = predictive(x)["_RETURN"]
        else:
            out = predictive(x)["_RETURN"]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match="num_samples"):
        Predictive(net)

    class Pair(PyroModule):
        def forward(self, x):
            return net(x), x

    with pytest.raises(TypeError, match="_RETURN"):
        Predictive(Pair(), num_samples=3, return_sites=["_RETURN"])(torch.ones(2, 3))


@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("3", TypeError), (True, TypeError)],
)
def test_rejects_numbers_that_are_no_counts(name, value, error):
    with pytest.raises(error, match=rf"`{name}` \(={value!r}\)"):
        Predictive(bayesian_mlp(3, 1), **{"num_samples": 3, name: value})


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ({"0.weight": np.ones((5, 1, 3))}, TypeError, "`0.weight` are of type ndarray"),
        ({"0.weight": [1.0]}, TypeError, "`0.weight` are of type list"),
        ({"0.weight": torch.ones(5, 1, 3), "0.bias": torch.ones(4, 1)}, ValueError, "'0.bias': 4"),
        ({"0.weight": torch.ones(0, 1, 3)}, ValueError, "'0.weight': 0"),
        ({"0.weight": torch.ones(())}, ValueError, "'0.weight': 0"),
        (bayesian_mlp(3, 1), TypeError, "`guide=`"),
    ],
)
def test_rejects_samples(samples, error, message):
    with pytest.raises(error, match=message):
        Predictive(bayesian_mlp(3, 1), samples)


@pytest.mark.parametrize("sites", [["ob"], ["obs", "_RETRUN"], {"0.weight"}])
def test_rejects_sites_to_return_that_are_none(sites):
    x, _ = data(6)
    model = Regression(bayesian_mlp(3, 4, 1))
    wrong = next(name for name in sites if name != "obs")
    with pytest.raises(
        ValueError, match=rf"`return_sites` has \['{wrong}'\].*'net.0.weight'.*'obs'"
    ):
        Predictive(model, guide=AutoLRT(model), num_samples=3, return_sites=sites)(x)
    with pytest.raises(TypeError, match="`return_sites` \\(='obs'\\)"):
        Predictive(model, num_samples=3, return_sites="obs")


def regression(x, y=None):
    """No weight of it is an attribute of a module."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(x @ weight, noise), obs=y)


@pytest.mark.parametrize("make", [AutoLRT, AutoNormal, AutoDiagonalNormal])
def test_rejects_a_guide_of_another_network(make):
    x, y = data(6)
    model, other = Regression(bayesian_mlp(3, 4, 1)), bayesian_mlp(3, 4, 1)
    guide = make(other)
    guide(x)
    with pytest.raises(ValueError, match=r"no samples of the weights \['net.0.*has \['0.weight'"):
        Predictive(model, guide=guide, num_samples=3)(x)
    pyro.clear_param_store()  # where guides of Pyro's would find one another's parameters
    guide = make(regression)
    guide(x, y)
    slope = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    renamed = lambda x: pyro.sample("obs", dist.Normal(x @ pyro.sample("slope", slope), 1.0))
    with pytest.raises(ValueError, match=r"samples of \['weight', 'noise'\].*none of.*\['slope'"):
        Predictive(renamed, guide=guide, num_samples=3)(x)


@pytest.mark.parametrize("wrong", ["weights", "noize", "w"])
def test_rejects_samples_of_no_site(wrong):
    x, _ = data(6)
    samples = {"weight": torch.ones(4, 3), "noise": torch.ones(4)}
    right = "noise" if wrong.startswith("n") else "weight"
    samples[wrong] = samples.pop(right)
    with pytest.raises(ValueError, match=rf"`posterior_samples`.*\['{wrong}'\].*'{right}', 'obs'"):
        Predictive(regression, samples)(x)


@pytest.mark.parametrize("given", [["0.weight"], ["0.weight", "2.bias"], ["2.bias", "noise"]])
def test_rejects_samples_of_some_weights(given):
    x, _ = data(6)
    net = bayesian_mlp(3, 4, 1)
    all_samples = Predictive(net, guide=AutoLRT(net), num_samples=4)(x)
    all_samples["noise"] = torch.ones(4)
    samples = {name: all_samples[name] for name in given}
    with pytest.raises(ValueError, match=r"`posterior_samples` has no samples of the weights"):
        Predictive(net, samples, return_sites=["_RETURN"])(x)
    del net[2].bias_prior, net[2].bias  # a parameter now: no weight is missing
    net[2].bias = nn.Parameter(torch.ones(1))
    samples = {name: all_samples[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    out = Predictive(net, samples, return_sites=["_RETURN"])(x)["_RETURN"]
    expected = (x @ samples["0.weight"].mT + samples["0.bias"].unsqueeze(1)).tanh()
    torch.testing.assert_close(out, expected @ samples["2.weight"].mT + 1.0)


def test_prior_predictive_where_it_is_asked_for():
    x, y = data(6)
    model = Regression(bayesian_mlp(3, 4, 1), None)
    for kwargs in ({}, {"posterior_samples": {}}):
        assert Predictive(model, num_samples=4, **kwargs)(x)["net.0.weight"].shape == (4, 1, 4, 3)
    # Latent variables of new data have no samples; those of the network alone are enough for it.
    guide = AutoLRT(poutine.block(Local(), hide=["shift"]))
    guide(x, y.expand(2, 6))
    assert Predictive(Local(), guide=guide, num_samples=4)(x[:3])["shift"].shape == (4, 1, 3)
    model = Local()
    guide = AutoLRT(model)
    guide(x, y.expand(2, 6))
    kwargs = {"guide": guide, "num_samples": 4, "return_sites": ["_RETURN"]}
    assert Predictive(model.net, **kwargs)(x)["_RETURN"].shape == (4, 6, 1)


def test_rejects_samples_of_another_shape():
    x, y = data(6)
    model = Local()
    guide = AutoLRT(model)
    guide(x, y.expand(2, 6))
    with pytest.raises(
        ValueError, match=r"`shift` have the shape \(6,\).*\(3,\).*hide=\[\"shift\"\]"
    ):
        Predictive(model, guide=guide, num_samples=4)(x[:3])
    net = bayesian_mlp(2, 3)
    samples = {"0.weight": torch.ones(4, 2, 3), "0.bias": torch.ones(4, 3)}
    with pytest.raises(ValueError, match=r"`0.weight` have the shape \(2, 3\) each.*\(3, 2\)"):
        Predictive(net, samples, return_sites=["_RETURN"])(torch.ones(5, 2))


def test_masks_the_guide():
    masks = []

    def model(x):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        masks.append(poutine.get_mask())

    def guide(x):
        pyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        model(x)

    assert set(Predictive(model, guide=guide, num_samples=2)(1)) == {"a"}
    assert all(mask is False for mask in masks)

    class Watched(AutoLRT):
        def forward(self, *args, **kwargs):
            masks.append(poutine.get_mask())
            return super().forward(*args, **kwargs)

    net = bayesian_mlp(3, 1)
    guide = Watched(net)
    guide(torch.ones(2, 3))
    masks.clear()
    Predictive(net, guide=guide, num_samples=2)(torch.ones(2, 3))
    assert len(masks) == 2
    assert all(mask is False for mask in masks)


def test_from_several_threads():
    """Pyro's handlers are one stack for all of them."""
    net = bayesian_mlp(3, 4, 1)
    weights = Predictive(net, guide=AutoLRT(net), num_samples=30)(torch.ones(1, 3))
    predictives = [
        Predictive(net, weights, return_sites=["_RETURN"], parallel=p, chunk_size=7)
        for p in (True, False)
    ]
    inputs = [torch.randn(i + 1, 3) for i in range(16)]
    expected = [predictives[0](x)["_RETURN"] for x in inputs]

    def predict(i):
        return predictives[i % 2](inputs[i % 16])["_RETURN"]

    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(predict, range(64))):
            torch.testing.assert_close(result, expected[i % 16])
    assert torch.distributions.Distribution._validate_args


def test_takes_plates_inside_of_which_the_network_is():
    """Samples of one network, in a model whose prior has one for each element of a plate."""
    net = bayesian_mlp(2, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(net(x).squeeze(-1), 1e-6))

    samples = {"0.weight": torch.randn(6, 1, 2), "0.bias": torch.randn(6, 1)}
    x = torch.randn(2, 2)
    expected = (x @ samples["0.weight"].mT).squeeze(-1) + samples["0.bias"]
    for parallel in (True, False):
        out = Predictive(model, samples, parallel=parallel)(x)["obs"]
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


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
