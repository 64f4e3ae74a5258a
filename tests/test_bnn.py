"""The model of a network and a likelihood, in all of Pyro's uses."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import bayesian_mlp, torch_mlp
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.inspect import get_model_relations
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_bnn import BNN, bayesianize, evaluate, fit, predict
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.likelihoods import Bernoulli, Categorical, Normal, Poisson
from pyro_bnn.nn import BayesianLinear

N = 12


def net(num_out: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, num_out))


def rows(num: int = N, num_out: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(num, 3), torch.randn(num, num_out)


def log_likelihood(model, *args, **kwargs) -> torch.Tensor:
    """Of the data as Pyro adds it up: scaled, masked and weighted."""
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob(lambda name, _: name == "obs")
    return trace.nodes["obs"]["log_prob_sum"]


# The network.


def test_a_torch_network_is_converted_as_a_copy():
    given = net()
    model = BNN(given, Normal(0.1))
    assert not isinstance(given, PyroModule)
    assert len(list(given.parameters())) == 4
    assert list(AutoLRT(model)) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    for prior in (model.net[0].weight_prior(), model.net[0].bias_prior()):
        assert isinstance(prior.base_dist, dist.Normal)
    # A scale for each weight and bias.
    assert [p.shape for p in model.net.parameters()] == [p.shape for p in given.parameters()]


def test_models_without_guides_keep_their_scales_apart():
    models = [BNN(nn.Linear(n, 1), Normal(0.1)) for n in (3, 2, 3)]
    for model, scale in zip(models, (0.1, 0.2, 0.3), strict=True):
        model.net.weight_prior.scale = torch.full_like(model.net.weight_prior.scale, scale)
    for _ in range(2):
        for model, scale in zip(models, (0.1, 0.2, 0.3), strict=True):
            trace = poutine.trace(model).get_trace(torch.ones(4, model.net.in_features))
            variance = trace.nodes["net.weight"]["fn"].variance
            torch.testing.assert_close(variance, torch.full_like(variance, scale**2))


def test_a_bayesian_network_is_used_as_it_is():
    for given in (bayesian_mlp(3, 1), torch_mlp(3, 1), bayesianize(net(), where="last_layer")):
        assert BNN(given, Normal(0.1)).net is given


def test_layers_inside_a_torch_module_are_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.last = BayesianLinear(4, 1)

        def forward(self, x):
            return self.last(self.first(x).relu())

    given = Mixed()
    model = BNN(given, Normal(0.1))
    guide = AutoLRT(model)
    assert list(guide) == ["net.last.weight", "net.last.bias"]
    assert {n for n, _ in model.named_parameters()} == {"net.first.weight", "net.first.bias"}
    assert type(given) is Mixed
    assert TraceKL_ELBO().loss(model, guide, *rows()) > 0


def test_a_likelihood_may_serve_several_models():
    likelihood = Normal(dist.HalfNormal(1.0))
    models = [BNN(net(), likelihood) for _ in range(2)]
    for model in models:
        guide = AutoLRT(model)
        assert "likelihood.scale" in guide
        assert TraceKL_ELBO().loss(model, guide, *rows()) > 0


def test_strange_arguments_are_refused():
    with pytest.raises(TypeError, match="`net`"):
        BNN(lambda x: x, Normal())
    with pytest.raises(TypeError, match=r"`Normal\(\)`"):
        BNN(net(), Normal)
    with pytest.raises(TypeError, match="`likelihood`"):
        BNN(net(), dist.Normal(0.0, 1.0))
    for num_data in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_data"):
            BNN(net(), Normal(), num_data=num_data)


def test_likelihoods_take_the_dtype_of_the_network():
    model = BNN(net().double(), Normal(0.1))
    assert model.likelihood.scale.item() == 0.1
    for scale in (None, dist.HalfNormal(1.0)):
        model = BNN(net().double(), Normal(scale))
        x, y = (value.double() for value in rows())
        guide = AutoLRT(model)
        assert TraceKL_ELBO()(model, guide)(x, y).dtype is torch.double
        assert all(p.dtype is torch.double for p in [*model.parameters(), *guide.parameters()])


# Rows, mini-batches, masks and weights.


def test_a_batch_counts_as_all_data():
    x, y = rows()
    whole = BNN(bayesian_mlp(3, 1), Normal(0.5))
    whole = poutine.condition(whole, {n: s["value"] for n, s in latent(whole, x).items()})
    part = BNN(bayesian_mlp(3, 1), Normal(0.5), num_data=N)
    values = {n: s["value"] for n, s in latent(part, x).items()}
    part = poutine.condition(part, values)
    total = log_likelihood(part, x, y)
    torch.testing.assert_close(
        sum(log_likelihood(part, x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)) / 3, total
    )
    assert log_likelihood(whole, x[:4], y[:4]).shape == ()


def latent(model, *args):
    trace = poutine.trace(model).get_trace(*args)
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and n not in SITES}


SITES = ("obs", "data")


def fixed(likelihood, num_out: int = 1, num_data: int | None = None, dtype=torch.float):
    """A model whose weights are known, and its outputs."""
    model = BNN(net(num_out).to(dtype), likelihood, num_data)
    x = torch.randn(N, 3, dtype=dtype)
    values = {n: s["value"] for n, s in latent(model, x).items()}
    conditioned = poutine.condition(model, values)
    return conditioned, x, conditioned(x)


@pytest.mark.parametrize("num_data", [None, N, 100])
def test_masks_and_weights_count_targets(num_data):
    model, x, f = fixed(Normal(0.5), 2, num_data, torch.double)
    y = f + torch.randn_like(f)
    density = dist.Normal(f, 0.5).log_prob(y)
    factor = (num_data or N) / N

    mask = torch.rand(N) < 0.5
    expected = factor * density[mask].sum()
    assert torch.allclose(log_likelihood(model, x, y, mask=mask), expected)
    elements = torch.rand(N, 2) < 0.5
    expected = factor * density[elements].sum()
    assert torch.allclose(log_likelihood(model, x, y, mask=elements), expected)

    weight = torch.rand(N) * (torch.rand(N) < 0.7)
    expected = factor * (weight * density.sum(-1)).sum()
    assert torch.allclose(log_likelihood(model, x, y, weight=weight), expected)
    assert torch.allclose(log_likelihood(model, x, y, weight=weight.tolist()), expected)
    expected = factor * (weight * (density * elements).sum(-1)).sum()
    assert torch.allclose(log_likelihood(model, x, y, mask=elements, weight=weight), expected)
    assert log_likelihood(model, x, y, mask=torch.zeros(N, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("likelihood", "num_out", "missing"),
    [(Normal(), 1, math.nan), (Categorical(), 3, -100), (Poisson(), 1, -1.0), (Bernoulli(), 2, 9)],
)
def test_masked_targets_may_have_any_value(likelihood, num_out, missing):
    model = BNN(net(num_out), likelihood)
    guide = AutoReparameterization(model, allow_nan=True)
    y = torch.zeros(N, 2) if num_out == 2 else torch.zeros(N)
    mask = torch.rand(y.shape) < 0.5
    given = torch.where(mask, y, torch.tensor(float(missing)))
    losses, gradients = [], []
    for values in (y, given):
        torch.manual_seed(1)
        elbo = TraceKL_ELBO()(model, guide)
        loss = elbo(torch.ones(N, 3), values, mask=mask)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, list(guide.parameters())))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_wrong_masks_and_weights_are_refused():
    model, x, _ = fixed(Normal(0.5), 2)
    y = torch.zeros(N, 2)
    for mask in (torch.ones(N + 1) > 0, torch.ones(N, 3) > 0):
        with pytest.raises(ValueError, match="`mask` has the shape"):
            model(x, y, mask=mask)
    with pytest.raises(TypeError, match="boolean"):
        model(x, y, mask=torch.ones(N))
    for weight in (torch.ones(N + 1), torch.ones(N, 2)):
        with pytest.raises(ValueError, match="`weight` has the shape"):
            model(x, y, weight=weight)
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="not negative"):
            model(x, y, weight=torch.full((N,), value))
    joint, x, _ = fixed(lambda f: dist.MultivariateNormal(f, torch.eye(2)), 2)
    with pytest.raises(ValueError, match="whole rows"):
        joint(x, y, mask=y == 0)


@pytest.mark.parametrize("num_data", [None, N])
@pytest.mark.parametrize("num", [1, 3, N, 5 * N])
def test_any_number_of_rows_is_predicted(num, num_data):
    model = BNN(net(2), Normal(dist.HalfNormal(1.0)), num_data)
    guide = AutoLRT(model)
    guide(*rows(N, 2))
    samples = Predictive(model, guide=guide, num_samples=5)(torch.randn(num, 3))
    assert samples["obs"].shape == (5, num, 2)


def test_more_rows_than_data_are_refused_in_training():
    model = BNN(net(), Normal(0.1), num_data=5)
    with pytest.raises(ValueError, match="a batch has 12 rows"):
        model(*rows())
    with torch.no_grad():  # held-out data may be as many as they like
        assert model(*rows()).shape == (N, 1)
    with pytest.raises(ValueError, match="no rows"):
        model(torch.zeros(0, 3))


# Inputs.


def test_arrays_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 1), nn.Embedding(5, 1)

        def forward(self, numbers, index):
            return self.left(numbers) + self.right(index)

    model = BNN(Two(), Normal(0.1))
    guide = AutoLRT(model)
    numbers, index = rows()[0].numpy(), np.arange(N) % 5
    y = rows()[1].numpy()
    elbo = TraceKL_ELBO()(model, guide)
    elbo((numbers, index), y).backward()
    assert all(p.grad is not None for p in guide.parameters())
    inputs = {"numbers": torch.tensor(numbers).float(), "index": torch.tensor(index)}
    assert Predictive(model, guide=guide, num_samples=3)(inputs)["obs"].shape == (3, N)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(N, 3, dtype=torch.long), r"`x.to\(torch.float32\)`"),
        (torch.ones(N, 3, dtype=torch.double), r"`x.to\(torch.float32\)`"),
        (np.ones((N, 3), dtype=int), r"`x.to\(torch.float32\)`"),
    ],
)
def test_inputs_of_another_kind_are_refused(x, message):
    model = BNN(net(), Normal(0.1))
    guide = AutoLRT(model)
    before = copy.deepcopy(guide.state_dict())
    with pytest.raises(ValueError, match=message):
        TraceKL_ELBO().loss(model, guide, x, torch.zeros(N))
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_inputs_on_another_device_are_refused():
    with pytest.raises(ValueError, match=r"`x.to\('cpu'\)`"):
        BNN(net(), Normal(0.1))(torch.ones(N, 3, device="meta"))


@pytest.mark.parametrize("likelihood", [Normal(0.1), Categorical()])
def test_nan_in_inputs_or_weights_is_named(likelihood):
    model = BNN(nn.Linear(3, 2), likelihood)
    guide = AutoLRT(model)
    x = torch.ones(N, 3)
    x[-1, 0] = math.nan
    y = torch.zeros(N, 2) if isinstance(likelihood, Normal) else torch.zeros(N).long()
    samples = {name: value.unsqueeze(0) for name, value in guide.median().items()}
    calls = (
        lambda: model(x, y),
        lambda: fit(model, guide, (x[-2:], y[-2:]), 1),
        lambda: predict(model, samples, x, batch_size=2),  # in a batch after the first
        lambda: evaluate(model, samples, (x, y), batch_size=2),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"NaN in `x` \(1 of \d+ values\): drop or impute"):
            call()
    bad = {name: value[0] * math.nan for name, value in samples.items()}
    with pytest.raises(ValueError, match="the network returns NaN: look for infinite inputs"):
        poutine.condition(model, bad)(torch.ones(N, 3))


def test_other_errors_of_the_network_are_its_own():
    model = BNN(net(), Normal(0.1))
    with pytest.raises(ValueError, match="3 features"):
        model(torch.zeros(N, 7))
    model = BNN(nn.Sequential(net(), nn.Unflatten(-1, (5, 5))), Normal(0.1))
    with pytest.raises(RuntimeError, match="unflatten"):
        model(torch.zeros(N, 3))


# Pyro's uses.

SCALES = [0.5, None, dist.HalfNormal(1.0)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO])
def test_trains_by_svi(scale, elbo):
    model = BNN(net(), Normal(scale), num_data=2 * N)
    guide = AutoLRT(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    before = copy.deepcopy(dict(guide.named_parameters()))
    for _ in range(2):
        svi.step(*rows())
    after = dict(guide.named_parameters())
    assert all(not torch.equal(before[key], after[key]) for key in before)
    if scale is None:
        assert model.likelihood.scale != 1.0


@pytest.mark.parametrize("scale", SCALES)
def test_vectorised_particles_agree_with_a_loop(scale):
    model = BNN(bayesian_mlp(3, 2), Normal(scale), num_data=2 * N)
    guide = AutoReparameterization(model)
    x, y = rows(N, 2)
    guide(x, y)
    losses = []
    for vectorize in (False, True):
        elbo = TraceKL_ELBO(num_particles=400, vectorize_particles=vectorize)
        losses.append(torch.tensor([elbo.loss(model, guide, x, y) for _ in range(3)]))
    looped, vectorised = losses
    error = max(looped.std(), vectorised.std(), looped.mean() * 1e-4)
    assert (looped.mean() - vectorised.mean()).abs() < 5 * error


def test_samples_by_nuts():
    model = BNN(bayesian_mlp(3, 1), Normal(dist.HalfNormal(1.0)))
    x, y = rows()
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(x, y)
    samples = mcmc.get_samples()
    assert set(samples) == {"net.0.weight", "net.0.bias", "likelihood.scale"}
    assert Predictive(model, samples)(x)["obs"].shape == (5, N)


def test_a_list_of_guides():
    model = BNN(net(), Normal(dist.HalfNormal(1.0)))
    guide = AutoGuideList(model)
    guide.append(AutoLRT(poutine.block(model, hide=["likelihood.scale"])))
    guide.append(AutoNormal(poutine.block(model, expose=["likelihood.scale"])))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    assert svi.step(*rows()) > 0


def test_conditioning_on_targets_is_giving_them():
    model, x, f = fixed(Normal(0.5), num_data=3 * N)
    y = f.squeeze(-1) + 1
    conditioned = poutine.condition(model, {"obs": y})
    torch.testing.assert_close(log_likelihood(conditioned, x), log_likelihood(model, x, y))


def test_relations_of_the_model():
    model = BNN(net(), Normal(dist.HalfNormal(1.0)))
    x, y = rows()
    found = get_model_relations(model, (x, y))
    assert found["observed"] == ["obs"]
    assert found["plate_sample"] == {"data": ["obs"]}
    assert "likelihood.scale" in found["sample_sample"]["obs"]


def test_returns_the_outputs():
    model = BNN(net(2), Normal(0.1))
    guide = AutoLRT(model)
    x, y = rows(N, 2)
    guide(x, y)
    predictive = Predictive(model, guide=guide, num_samples=4, return_sites=["_RETURN"])
    assert predictive(x)["_RETURN"].shape == (4, N, 2)


def test_the_network_stands_alone():
    model = BNN(net(3), Categorical())
    guide = AutoLRT(model)
    output, kl = Standalone(model.net, guide)(torch.ones(N, 3))
    assert output.shape == (N, 3)
    assert kl > 0


def test_noise_of_a_function():
    def likelihood(output):
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        return dist.Laplace(output, noise)

    model = BNN(net(), likelihood)
    guide = AutoLRT(model)
    x, y = rows()
    assert TraceKL_ELBO().loss(model, guide, x, y) > 0
    assert "noise" in guide

    class WithNoise(PyroModule):
        def __init__(self):
            super().__init__()
            self.noise = PyroSample(dist.HalfNormal(1.0))

        def forward(self, output):
            return dist.Laplace(output, self.noise)

    assert "likelihood.function.noise" in AutoLRT(BNN(net(), WithNoise()))


@pytest.mark.parametrize("scale", SCALES)
def test_copies_and_pickles(scale):
    model = BNN(net(), Normal(scale), num_data=50)
    x, y = rows()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.num_data == 50
        guide = AutoLRT(other)
        assert TraceKL_ELBO().loss(other, guide, x, y) > 0
        other.load_state_dict(model.state_dict())
