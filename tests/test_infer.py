from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, torch_mlp, within
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.infer.importance import psis_diagnostic
from pyro.nn import PyroModule, PyroSample

from pyro_bnn import priors
from pyro_bnn.distributions import Radial
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
ELBOS = [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO]


def losses(elbo, model, guide, *args, count=20, particles=25, **kwargs):
    """Estimates of the loss, each the mean over some vectorized particles."""
    if particles > 1:
        kwargs |= {"num_particles": particles, "vectorize_particles": True}
    estimator = elbo(**kwargs)
    with torch.no_grad():
        return torch.tensor([float(estimator.loss(model, guide, *args)) for _ in range(count)])


def same_mean(a, b, errors=5.0):
    error = math.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
    return abs(a.mean() - b.mean()) <= errors * error + 1e-4 * abs(b.mean())


@EACH
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(("noise", "trainer"), [(0.5, "pyro.optim"), (None, "torch")])
def test_training_lowers_the_loss(kind, elbo, noise, trainer):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise)
    guide = kind.make(model)
    loss = elbo(num_particles=4, vectorize_particles=True)
    before = losses(elbo, model, guide, x, y)
    if trainer == "pyro.optim":
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
        for _ in range(100):
            svi.step(x, y)
    else:
        module = loss(model, guide)
        module(x, y)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            module(x, y).backward()
            optimizer.step()
    after = losses(elbo, model, guide, x, y)
    assert after.median() < before.median() - 5


@EACH
@pytest.mark.parametrize(
    ("elbo", "net"),
    [(Trace_ELBO, bayesian_mlp), (TraceKL_ELBO, bayesian_mlp), (TraceKL_ELBO, torch_mlp)],
)
def test_looped_and_vectorized_particles_agree(kind, elbo, net):
    x, y = data(8)
    model = Regression(net(3, 2, 1), noise=None)
    guide = kind.make(model, init_scale=0.3)
    loop = losses(elbo, model, guide, x, y, count=400, particles=1)
    vectorized = losses(elbo, model, guide, x, y, count=100, particles=20)
    assert same_mean(loop, vectorized)
    # The mean of 20 independent particles has a twentieth of the variance.
    assert (vectorized.std() * 20**0.5).item() == pytest.approx(loop.std().item(), rel=0.4)


@EACH
@pytest.mark.parametrize("prior", [priors.Normal(0.0, 1.0), dist.StudentT(5.0)])
def test_agrees_with_trace_elbo_in_expectation(kind, prior):
    x, y = data(8)
    model = Regression(bayesian_mlp(3, 2, 1, prior=prior), noise=None)
    guide = kind.make(model, init_scale=0.3)
    plain = losses(Trace_ELBO, model, guide, x, y, count=200)
    analytic = losses(TraceKL_ELBO, model, guide, x, y, count=100)
    if kind.name == "AutoMixture":  # its formula is an upper bound
        assert analytic.mean() > plain.mean() - 5 * plain.std() / len(plain) ** 0.5
    else:
        assert same_mean(plain, analytic)


@EACH
@pytest.mark.parametrize("prior", [priors.Normal(0.0, 1.0), dist.StudentT(5.0)])
def test_kl_weight(kind, prior):
    """The loss is linear in it, also where the KL divergence has no formula."""
    x, y = data(8)
    model = Regression(bayesian_mlp(3, 2, 1, prior=prior), noise=None)
    guide = kind.make(model, init_scale=0.3)
    likelihood, half, full = (
        losses(TraceKL_ELBO, model, guide, x, y, count=100, particles=100, kl_weight=w)
        for w in (0, 0.5, 1)
    )
    assert same_mean(0.5 * (likelihood + full), half)
    assert not same_mean(likelihood, full)


def test_pyros_own_guides():
    """They sample an auxiliary site and a Delta with a Jacobian, which all have to be weighed."""
    x, y = data(8)
    model = Regression(bayesian_mlp(3, 1), noise=None)
    start = init_to_value(values={"noise": torch.tensor(8.0)})  # away from a Jacobian of 1
    guide = AutoNormal(model, init_loc_fn=start, init_scale=0.1)
    guide(x, y)
    plain = losses(Trace_ELBO, model, guide, x, y, count=100)
    assert same_mean(plain, losses(TraceKL_ELBO, model, guide, x, y, count=100))
    likelihood, half = (
        losses(TraceKL_ELBO, model, guide, x, y, count=100, kl_weight=w) for w in (0, 0.5)
    )
    assert same_mean(0.5 * (likelihood + plain), half)


def test_kl_weight_can_be_annealed():
    elbo = TraceKL_ELBO()
    elbo.kl_weight = 0.1
    assert elbo.kl_weight == 0.1
    for value in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="kl_weight"):
            elbo.kl_weight = value
        with pytest.raises(ValueError, match="kl_weight"):
            TraceKL_ELBO(kl_weight=value)
    assert elbo.kl_weight == 0.1


@pytest.mark.parametrize("which", ["model", "guide", "both"])
def test_scaled_by_the_user(which):
    """Different scales on the two sides, or the same, mean what they mean to Trace_ELBO."""
    x, y = data(8)
    model = Regression(bayesian_mlp(3, 2, 1))
    guide = AutoReparameterization(model, init_scale=0.3)
    scaled_model = poutine.scale(model, 0.5) if which != "guide" else model
    scaled_guide = poutine.scale(guide, 0.5) if which != "model" else guide
    plain = losses(Trace_ELBO, scaled_model, scaled_guide, x, y, count=200)
    analytic = losses(TraceKL_ELBO, scaled_model, scaled_guide, x, y, count=100)
    assert same_mean(plain, analytic)


@pytest.mark.parametrize("make", [AutoFlipout, AutoLRT, AutoRadial])
def test_no_density_that_a_kl_replaces(make, monkeypatch):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = make(model)
    observed = []
    log_prob = torch.distributions.Normal.log_prob

    def spy(self, value):
        observed.append(value.shape)
        return log_prob(self, value)

    monkeypatch.setattr(torch.distributions.Normal, "log_prob", spy)
    monkeypatch.setattr(Radial, "log_prob", spy)
    loss = TraceKL_ELBO().loss_and_grads(model, guide, x, y)
    assert math.isfinite(loss)
    assert set(observed) == {y.shape}


@pytest.mark.parametrize("vectorize", [False, True])
def test_kl_does_not_depend_on_the_number_of_particles(vectorize):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = AutoLRT(model)
    kl = sum(
        torch.distributions.kl_divergence(guide[name].distribution(), model_site["fn"])
        for name, model_site in poutine.trace(model).get_trace(x, y).nodes.items()
        if name in set(guide)
    )
    values = [
        TraceKL_ELBO(num_particles=n, vectorize_particles=vectorize, kl_weight=w).loss(
            model, guide, x, y
        )
        for n in (1, 4)
        for w in (0.0, 1e6)
    ]
    for without, heavy in (values[:2], values[2:]):
        assert (heavy - without) / 1e6 == pytest.approx(kl.item(), rel=1e-3)


@EACH
@pytest.mark.parametrize("elbo", ELBOS)
def test_mini_batches_average_to_the_full_data(kind, elbo):
    x, y = data(12)
    model = Regression(bayesian_mlp(3, 2, 1))
    guide = kind.make(model, init_scale=0.3)
    whole = losses(elbo, model, guide, x, y, count=40)
    model.size = 12
    parts = []
    for _ in range(200):
        index = torch.randperm(12)[:3]
        parts.append(losses(elbo, model, guide, x[index], y[index], count=1))
    assert same_mean(torch.cat(parts), whole)


class Subsampling(Regression):
    def forward(self, x, y=None):
        output = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x), subsample_size=5) as index:
            obs = None if y is None else y[index]
            return pyro.sample("obs", dist.Normal(output[index], 0.5), obs=obs)


@EACH
def test_plate_that_subsamples_itself(kind):
    x, y = data()
    model = Subsampling(bayesian_mlp(3, 4, 1))
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    assert all(math.isfinite(svi.step(x, y)) for _ in range(3))


@EACH
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(kind, parallel):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = kind.make(model, init_scale=0.2)
    guide(x, y)
    predictive = Predictive(model, guide=guide, num_samples=500, parallel=parallel)
    samples = predictive(x)
    assert samples["obs"].shape == (500, 20)
    weights = samples["net.0.weight"].reshape(500, 4, 3)
    assert type(weights) is torch.Tensor
    base = guide["net.0.weight"].base()
    assert within(weights, base.mean)
    assert within((weights - base.mean).square(), base.variance)
    # The functions are coherent: outputs of equal inputs agree in each sample.
    twice = Predictive(
        model.net, guide=guide, num_samples=5, parallel=parallel, return_sites=["_RETURN"]
    )(x[:1].expand(2, -1))["_RETURN"]
    torch.testing.assert_close(twice[..., 0, :], twice[..., 1, :])


@EACH
@pytest.mark.parametrize("noise", [0.5, None])
def test_predictive_of_a_saved_guide(kind, noise):
    """Without data in any call: what is to be predicted must not be taken for latent."""
    x, y = data()
    model = Regression(torch_mlp(3, 4, 1), noise)
    guide = kind.make(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    fresh = kind.make(model)
    if noise is None:
        with pytest.raises(ValueError, match="observes nothing"):
            fresh(x)
    fresh.load_state_dict(guide.state_dict())
    torch.manual_seed(0)
    expected = Predictive(model, guide=guide, num_samples=5)(x)
    torch.manual_seed(0)
    actual = Predictive(model, guide=fresh, num_samples=5)(x)
    assert actual.keys() == expected.keys()
    assert "obs" not in list(fresh)
    assert ("noise" in list(fresh)) == (noise is None)
    assert actual["obs"].shape == (5, 20)
    # Training goes on from there.
    SVI(model, fresh, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)


@pytest.mark.parametrize("likelihood", ["categorical", "one-hot", "matrix"])
def test_predictive_of_a_saved_guide_for_any_kind_of_data(likelihood):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = bayesian_mlp(3, 4)

        def forward(self, x, y=None):
            out = self.net(x)
            observed = {
                "categorical": lambda: dist.Categorical(logits=out),
                "one-hot": lambda: dist.OneHotCategorical(logits=out),
                "matrix": lambda: dist.Normal(out.view(-1, 2, 2), 1.0).to_event(2),
            }[likelihood]()
            with pyro.plate("data", len(x)):
                return pyro.sample("obs", observed, obs=y)

    x, _ = data()
    model = Model()
    guide = AutoLRT(model)
    fresh = AutoLRT(model)
    fresh.load_state_dict(guide.state_dict())
    samples = Predictive(model, guide=fresh, num_samples=5)(x)["obs"]
    assert samples.shape[:2] == (5, 20)
    assert samples.float().std() > 0
    assert set(fresh) == {"net.0.weight", "net.0.bias"}


@EACH
def test_predictive_of_posterior_samples(kind):
    """Samples of weights that came from elsewhere, say from a Markov chain."""
    x, _ = data()
    net = bayesian_mlp(3, 4, 1)
    guide = kind.make(net)
    samples = Predictive(guide, num_samples=6)(x)
    out = [
        Predictive(net, samples, return_sites=["_RETURN"], parallel=p)(x)["_RETURN"]
        for p in (False, True)
    ]
    assert out[0].shape == (6, 20, 1)
    torch.testing.assert_close(*out)


def conjugate(num_in=2):
    """Bayesian linear regression, with its exact posterior and evidence."""
    x = torch.randn(15, num_in, dtype=torch.float64)
    x = torch.linalg.qr(x).Q * 3  # orthogonal: the posterior is mean-field
    y = x.sum(-1) + 0.5 * torch.randn(15, dtype=torch.float64)
    model = Regression(bayesian_mlp(num_in, 1, bias=False, dtype=torch.float64), noise=0.5)
    precision = x.T @ x / 0.25 + torch.eye(num_in, dtype=torch.float64)
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)
    covariance = x @ x.T + 0.25 * torch.eye(15, dtype=torch.float64)
    evidence = dist.MultivariateNormal(torch.zeros(15, dtype=torch.float64), covariance)
    return model, x, y, mean, precision.diagonal().rsqrt(), evidence.log_prob(y).item()


@pytest.mark.parametrize("make", [AutoReparameterization, AutoFlipout, AutoLRT])
class TestImportance:
    def exact(self, make):
        model, x, y, mean, scale, evidence = conjugate()
        guide = make(model)
        guide["net.0.weight"].loc = mean.unsqueeze(0)
        guide["net.0.weight"].scale = scale.unsqueeze(0)
        return model, guide, x, y, evidence

    def test_weights_are_exact_at_the_posterior(self, make):
        model, guide, x, y, evidence = self.exact(make)
        with guide.shared_draws():
            weights = -losses(Trace_ELBO, model, guide, x, y, particles=1)
            renyi = -losses(RenyiELBO, model, guide, x, y, count=5, alpha=0.5)
            looped = RenyiELBO(alpha=0, num_particles=4).loss(model, guide, x, y)
            importance = Importance(model, guide, num_samples=5).run(x, y)
        for values in (weights, renyi, -torch.tensor(looped), torch.stack(importance.log_weights)):
            torch.testing.assert_close(
                values.double(), torch.full_like(values.double(), evidence), rtol=1e-4, atol=1e-4
            )

    def test_outside_the_context_they_are_not(self, make):
        model, guide, x, y, _evidence = self.exact(make)
        weights = -losses(Trace_ELBO, model, guide, x, y, particles=1)
        assert (weights.std() < 1e-3) == (make is AutoReparameterization)

    def test_psis(self, make):
        model, guide, x, y, _ = self.exact(make)
        guide["net.0.weight"].scale = 1.2 * guide["net.0.weight"].scale.detach()
        with guide.shared_draws():
            assert psis_diagnostic(model, guide, x, y, num_particles=1_000) < 0.5


def test_nuts():
    pyro.set_rng_seed(0)
    model, x, y, mean, scale, _ = conjugate()
    mcmc = MCMC(NUTS(model), num_samples=400, warmup_steps=200, disable_progbar=True)
    mcmc.run(x, y)
    samples = mcmc.get_samples()["net.0.weight"].reshape(400, 2)
    assert ((samples.mean(0) - mean).abs() < 6 * scale / 400**0.5 * 2).all()
    torch.testing.assert_close(samples.std(0), scale, rtol=0.2, atol=0)


def test_nan_from_the_model_is_named_before_a_step():
    class Diverging(Regression):
        def forward(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)
            pyro.factor("penalty", self.net(x).sum() * 0 / (y.sum() * 0))

    x, y = data()
    model = Diverging(bayesian_mlp(3, 4, 1))
    guide = AutoLRT(model)
    state = copy.deepcopy(guide.state_dict())
    pyro.enable_validation(False)
    with pytest.raises(ValueError, match="'penalty'"):
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    for name, value in guide.state_dict().items():
        assert (state[name] == value).all()


def test_score_function_sites_keep_their_gradient():
    """A guide with a site that is not reparameterized, beside one with a formula."""

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("obs", dist.Normal(self.w + z, 1.0), obs=torch.tensor(1.5))

    logit = torch.tensor(0.4, requires_grad=True)
    model = Model()

    def guide():
        pyro.sample("w", dist.Normal(0.2, 0.5))
        pyro.sample("z", dist.Bernoulli(logits=logit))

    def gradient(elbo):
        return torch.autograd.grad(elbo.differentiable_loss(model, guide), logit)[0]

    plain, analytic = (
        torch.stack([gradient(elbo) for _ in range(1_000)])
        for elbo in (Trace_ELBO(), TraceKL_ELBO())
    )
    assert same_mean(plain, analytic)


def test_radial_weights_under_trace_elbo_have_the_gradient_of_the_formula():
    """The value is noisy, the gradient of its noisy part is not."""
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = AutoRadial(model)
    parameters = list(guide.parameters())

    def gradients(elbo, count):
        losses = (elbo.differentiable_loss(model, guide, x, y) for _ in range(count))
        each = [torch.autograd.grad(loss, parameters) for loss in losses]
        return torch.stack([torch.cat([g.flatten() for g in gradient]) for gradient in each])

    plain, analytic = gradients(Trace_ELBO(), 300), gradients(TraceKL_ELBO(), 300)
    error = (plain.var(0) / 300 + analytic.var(0) / 300).sqrt()
    assert ((plain.mean(0) - analytic.mean(0)).abs() < 5 * error).all()
    assert plain.std(0).mean() < 1.5 * analytic.std(0).mean()
