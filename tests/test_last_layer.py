"""A full covariance for the last layer, and its closed form."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from models import within
from torch import nn
from torch.distributions import kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, bayesianize, fit, likelihoods, predict, priors, refit_last_layer
from pyro_bnn.distributions import FullNormal, MatrixNormal
from pyro_bnn.estimators import Flipout
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import FullNormalPosterior, MatrixNormalPosterior

D = torch.double


def tril(size: int) -> torch.Tensor:
    return torch.randn(size, size, dtype=D).tril(-1) + torch.diag(torch.rand(size, dtype=D) + 0.3)


def same(loc: torch.Tensor, factor: torch.Tensor) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(loc.flatten(), scale_tril=factor)


# The distribution.


def full():
    loc, factor = torch.randn(2, 3, dtype=D), tril(6)
    return FullNormal(loc, factor, 2), same(loc, factor)


def matrix():
    loc, rows, columns = torch.randn(2, 3, dtype=D), tril(2), tril(3)
    return MatrixNormal(loc, rows, columns, 2), same(loc, torch.kron(rows, columns))


def mean_field():
    loc, scale = torch.randn(2, 3, dtype=D), torch.rand(2, 3, dtype=D) + 0.5
    return dist.Normal(loc, scale).to_event(2), same(loc, torch.diag(scale.flatten()))


@pytest.mark.parametrize("make", [full, matrix])
def test_they_are_multivariate_normals_of_the_entries(make):
    q, expected = make()
    value = torch.randn(4, 2, 3, dtype=D)
    torch.testing.assert_close(q.log_prob(value), expected.log_prob(value.flatten(1)))
    torch.testing.assert_close(q.entropy(), expected.entropy())
    torch.testing.assert_close(q.variance.flatten(), expected.variance)
    samples = (q.rsample((20_000,)) - q.mean).flatten(1)
    products = samples.unsqueeze(-1) * samples.unsqueeze(-2)
    assert within(products, expected.covariance_matrix)
    batch = q.expand((5,))
    assert batch.rsample((7,)).shape == (7, 5, 2, 3)
    torch.testing.assert_close(batch.log_prob(q.mean), q.log_prob(q.mean).expand(5))
    torch.testing.assert_close(batch.variance, q.variance.expand(5, 2, 3))


@pytest.mark.parametrize("first", [full, matrix, mean_field])
@pytest.mark.parametrize("second", [full, matrix, mean_field])
def test_kls(first, second):
    (q, exact_q), (p, exact_p) = first(), second()
    expected = kl_divergence(exact_q, exact_p)
    torch.testing.assert_close(kl_divergence(q, p), expected)
    torch.testing.assert_close(kl_divergence(q.expand((4,)), p.expand((4,))), expected.expand(4))
    assert kl_divergence(p, p).abs() < 1e-12


def test_events_of_other_shapes():
    kernel = MatrixNormal(torch.zeros(2, 3, 2, dtype=D), tril(2), tril(6), 3)
    assert kernel.rsample((5,)).shape == (5, 2, 3, 2)
    assert kernel.log_prob(kernel.sample()).shape == ()
    vector = MatrixNormal(torch.zeros(3, dtype=D), torch.ones(1, 1).double(), tril(3), 1)
    assert vector.rsample().shape == (3,)
    with pytest.raises(ValueError, match=r"`scale_tril` has the shape \(6, 6\), but an event"):
        FullNormal(torch.zeros(2, 3), torch.eye(6), 1)
    with pytest.raises(ValueError, match=r"`column_tril` has the shape \(2, 2\), but an event"):
        MatrixNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(2), 2)


def test_the_bound_from_a_hierarchical_prior():
    prior = priors.HierarchicalNormal("tensor", 1.5, 0.4)
    p = BayesianLinear(3, 2, prior=prior, dtype=D).weight_prior()
    q = FullNormal(torch.randn(2, 3, dtype=D), tril(6), 2)
    moment = (q.mean.square() + q.variance).sum()
    c = 1.5 + 3
    constant = math.lgamma(c) - math.lgamma(1.5) + 1.5 * math.log(0.4) - 3 * math.log(2 * math.pi)
    expected = -q.entropy() - constant + c * (0.4 + 0.5 * moment).log()
    torch.testing.assert_close(kl_divergence(q.to_event(0), p), expected)
    draws = q.sample((20_000,))
    estimate = q.log_prob(draws) - p.log_prob(draws)
    assert expected > estimate.mean() - 5 * estimate.std() / len(draws) ** 0.5


# The posterior.


def test_it_takes_over_a_normal():
    posterior = FullNormalPosterior(torch.zeros(2, 3, dtype=D), 0.1)
    loc, factor = torch.randn(2, 3, dtype=D), tril(6)
    posterior.set(loc, factor)
    torch.testing.assert_close(posterior.base().scale_tril, factor)
    torch.testing.assert_close(posterior.base().mean, loc)
    other = FullNormalPosterior(torch.zeros(2, 3, dtype=D), 0.1)
    other.load_state_dict(posterior.state_dict())
    torch.testing.assert_close(other.base().scale_tril, factor)


def test_scales_of_rows_and_columns_at_the_start():
    scale = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    q = MatrixNormalPosterior(torch.zeros(2, 3), scale).distribution()
    torch.testing.assert_close(q.stddev, scale)
    assert MatrixNormalPosterior(torch.zeros(2, 3, 4), 0.1).distribution().rsample().dim() == 3


def test_layers_and_errors():
    with pytest.raises(ValueError, match="a covariance of 10000 weights"):
        FullNormalPosterior(torch.zeros(100, 100), 0.1)
    posterior = FullNormalPosterior(torch.zeros(2, 3), 0.1)
    with pytest.raises(TypeError, match="FullNormal cannot be pruned"):
        posterior.prune(torch.ones(2, 3, dtype=torch.bool))
    assert posterior.kept is None
    with pytest.raises(ValueError, match=r"symmetric noise.*FullNormal is none: use `Shared\(\)`"):
        FullNormalPosterior(torch.zeros(2, 3), 0.1, estimator=Flipout())


def linear(size: int = 40, noise: float = 0.5):
    """A linear regression with correlated features, and its exact posterior and evidence."""
    x = (
        torch.randn(size, 3, dtype=D)
        @ torch.tensor([[1.0, 0.9, 0], [0, 0.5, 0.5], [0, 0, 1]]).double()
    )
    y = x @ torch.tensor([0.5, -1.0, 0.3], dtype=D) + noise * torch.randn(size, dtype=D)
    model = BNN(
        bayesianize(nn.Linear(3, 1, bias=False, dtype=D)), likelihoods.Normal(noise), num_data=size
    )
    precision = x.T @ x / noise**2 + torch.eye(3, dtype=D)
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)
    covariance = noise**2 * torch.eye(size, dtype=D) + x @ x.T
    evidence = dist.MultivariateNormal(torch.zeros(size, dtype=D), covariance).log_prob(y)
    return model, x, y, mean, torch.linalg.inv(precision), evidence


@pytest.mark.parametrize("kind", [FullNormalPosterior, MatrixNormalPosterior])
def test_training_reaches_the_exact_posterior(kind):
    model, x, y, mean, covariance, evidence = linear()
    guide = AutoReparameterization(model, sites={"net.*": kind})
    elbo = TraceKL_ELBO(num_particles=16, vectorize_particles=True)(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), 3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        elbo(x, y).backward()
        optimizer.step()
        schedule.step()
    q = guide["net.weight"].base()
    deviation = covariance.diagonal().sqrt()
    assert ((q.mean[0] - mean).abs() < 0.1 * deviation).all()
    samples = q.sample((20_000,)).squeeze(1)
    found = samples.T.cov()
    found = (found / deviation / deviation[:, None]).detach()
    correlation = covariance / deviation / deviation[:, None]
    torch.testing.assert_close(found, correlation, atol=0.1, rtol=0)
    assert correlation[0, 1] < -0.3
    losses = torch.stack([elbo(x, y).detach() for _ in range(50)])
    assert abs(losses.mean() + evidence) < 0.05 + 5 * losses.std() / 50**0.5


def test_the_bound_of_classes_and_its_gradient():
    """Two classes, whose bound takes integrals over one dimension for each row."""
    torch.manual_seed(0)
    model = BNN(bayesianize(nn.Linear(2, 2, bias=False, dtype=D)), likelihoods.Categorical())
    guide = AutoReparameterization(model, init_scale=0.8, sites={"net.*": FullNormalPosterior})
    q = guide["net.weight"].double()
    with torch.no_grad():
        q.lower_unconstrained.copy_(0.5 * torch.randn(6))
    x, y = torch.randn(12, 2, dtype=D), torch.randint(2, (12,))

    base = q.base()
    loc, factor = base.loc.flatten(), base.scale_tril
    design = torch.cat([-x, x], 1) * (2 * y - 1).unsqueeze(1)  # of the log odds of what is true
    nodes, weights = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(40))
    odds = (design @ loc).unsqueeze(1) + (design @ factor).norm(dim=1).unsqueeze(1) * nodes
    likelihood = (nn.functional.logsigmoid(odds) @ (weights / weights.sum())).sum()
    prior = model.net.weight_prior().base_dist
    prior = same(prior.mean, torch.diag(prior.stddev.flatten()))
    kl = kl_divergence(same(loc, factor), prior)
    expected = torch.autograd.grad(kl - likelihood, list(q.parameters()))

    elbo = TraceKL_ELBO()(model, guide)
    losses, gradients = [], []
    for _ in range(200):
        loss = elbo(x, y)
        losses.append(loss.detach())
        found = torch.autograd.grad(loss, list(q.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert within(torch.stack(losses), (kl - likelihood).item())
    assert within(torch.stack(gradients), torch.cat([g.flatten() for g in expected]))


# The closed form.


def test_the_exact_posterior_and_evidence():
    model, x, y, mean, covariance, evidence = linear()
    guide = AutoLRT(model, sites={"net.weight": FullNormalPosterior})
    for data in ((x, y), DataLoader(TensorDataset(x, y), batch_size=7)):
        assert refit_last_layer(model, guide, data) == pytest.approx(evidence.item())
        q = guide["net.weight"].base()
        torch.testing.assert_close(q.mean[0], mean)
        torch.testing.assert_close(q.scale_tril @ q.scale_tril.T, covariance)
    # At the exact posterior the ELBO is the evidence.
    elbo = torch.tensor([-TraceKL_ELBO().loss(model, guide, x, y) for _ in range(2000)])
    assert within(elbo, evidence.item())


def network(num_out: int = 1, *, bias: bool = False, noise=0.3):
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, num_out, bias=bias))
    prior = {"2.weight": priors.Normal(0.2, 1.5)}
    net = bayesianize(net.double(), where="2.weight", prior=prior)
    x = torch.randn(50, 2, dtype=D)
    y = torch.stack([x.sum(-1).sin(), x[:, 0]], -1)[:, :num_out] + 0.3 * torch.randn(50, num_out)
    model = BNN(net, likelihoods.Normal(noise))
    return model, AutoLRT(model, sites={"net.2.weight": FullNormalPosterior}), x, y.double()


@pytest.mark.parametrize("bias", [False, True])
def test_several_targets_with_their_own_noise_and_a_bias(bias):
    noise = torch.tensor([0.3, 0.6], dtype=D)
    model, guide, x, y = network(2, bias=bias, noise=noise)
    evidence = refit_last_layer(model, guide, (x, y))
    phi = torch.tanh(model.net[0](x))
    rest = y - model.net[2].bias if bias else y
    q = guide["net.2.weight"].base()
    expected = 0.0
    for k in range(2):
        covariance = noise[k] ** 2 * torch.eye(50, dtype=D) + 2.25 * phi @ phi.T
        marginal = dist.MultivariateNormal(0.2 * phi.sum(-1), covariance)
        expected += marginal.log_prob(rest[:, k]).item()
        precision = phi.T @ phi / noise[k] ** 2 + torch.eye(6, dtype=D) / 2.25
        shift = phi.T @ rest[:, k] / noise[k] ** 2 + 0.2 / 2.25
        torch.testing.assert_close(q.mean[k], torch.linalg.solve(precision, shift))
        rows = slice(6 * k, 6 * k + 6)
        found = (q.scale_tril @ q.scale_tril.T)[rows, rows]
        torch.testing.assert_close(found, torch.linalg.inv(precision))
    assert evidence == pytest.approx(expected)
    assert q.scale_tril[6:, :6].abs().max() == 0


def test_predictions_are_those_of_bayesian_linear_regression():
    model, guide, x, y = network()
    fit(model, guide, (x, y), epochs=100)
    refit_last_layer(model, guide, (x, y))
    new = 3 * torch.randn(20, 2, dtype=D)
    phi = torch.tanh(model.net[0](new)).detach()
    q = guide["net.2.weight"].base()
    covariance = (q.scale_tril @ q.scale_tril.T).detach()
    variance = (phi @ covariance * phi).sum(-1)
    prediction = predict(model, guide, new, 4000)
    assert (abs(prediction.mean - phi @ q.mean[0]) < 5 * (variance / 4000).sqrt()).all()
    assert (abs(prediction.epistemic - variance) < 5 * variance * (2 / 4000) ** 0.5).all()


def test_a_random_noise_and_other_random_layers_have_their_medians():
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1, bias=False)).double()
    model = BNN(bayesianize(net), likelihoods.Normal(dist.HalfNormal(1.0)))
    guide = AutoLRT(model, sites={"net.2.weight": FullNormalPosterior})
    x = torch.randn(50, 2, dtype=D)
    y = x.sum(-1)
    refit_last_layer(model, guide, (x, y))
    phi = torch.tanh(x @ guide["net.0.weight"].median().T + guide["net.0.bias"].median())
    noise = guide["likelihood.scale"].median()
    precision = phi.T @ phi / noise**2 + torch.eye(6, dtype=D)
    expected = torch.linalg.solve(precision, phi.T @ y / noise**2)
    torch.testing.assert_close(guide["net.2.weight"].base().mean[0], expected)


def test_the_posterior_is_a_prior_with_its_covariance():
    """Two halves of the data, one after another, give the posterior and evidence of all."""
    model, x, y, mean, covariance, _ = linear()
    guide = AutoLRT(model, sites={"net.weight": FullNormalPosterior})
    refit_last_layer(model, guide, (x[:20], y[:20]))
    net = bayesianize(model.net, prior=guide)
    after = BNN(net, likelihoods.Normal(0.5), num_data=20)
    again = AutoLRT(after, sites={"net.weight": FullNormalPosterior})
    q = again["net.weight"]
    q.set(mean.unsqueeze(0), torch.linalg.cholesky(covariance))
    first = same(guide["net.weight"].base().mean, guide["net.weight"].base().scale_tril)
    second = same(q.base().mean, q.base().scale_tril)
    likelihood = dist.MultivariateNormal(
        x[20:] @ first.mean, x[20:] @ first.covariance_matrix @ x[20:].T + 0.25 * torch.eye(20)
    )
    evidence = likelihood.log_prob(y[20:]).item()
    elbo = [-TraceKL_ELBO().loss(after, again, x[20:], y[20:]) for _ in range(2000)]
    assert within(torch.tensor(elbo), evidence)
    assert kl_divergence(second, first) > 0.1


# Errors.


def test_bad_arguments():
    model, guide, x, y = network()
    before = copy.deepcopy(guide.state_dict())
    with pytest.raises(TypeError, match=r"`model` \(=PyroSequential"):
        refit_last_layer(model.net, guide, (x, y))
    with pytest.raises(TypeError, match=r"`guide` \(=int\)"):
        refit_last_layer(model, 3, (x, y))
    with pytest.raises(ValueError, match=r"FullNormalPosterior for \[\]"):
        refit_last_layer(model, AutoLRT(model), (x, y))
    with pytest.raises(ValueError, match="inputs and targets alone"):
        refit_last_layer(model, guide, (x,))
    with pytest.raises(ValueError, match="inputs and targets alone"):
        refit_last_layer(model, guide, {"x": x, "y": y, "weight": torch.ones(50).double()})
    with pytest.raises(ValueError, match="not positive definite"):
        refit_last_layer(*network(noise=1e-12)[:2], (x[:1], y[:1]))
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name])


def test_models_without_a_closed_form():
    _, _, x, y = network()
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def refit(net, likelihood, site, **kwargs):
        model = BNN(bayesianize(net, **kwargs), likelihood)
        guide = AutoLRT(model, sites={site: FullNormalPosterior})
        refit_last_layer(model, guide, (x, y))

    with pytest.raises(ValueError, match=r"the bias beside `net.2.weight` is random"):
        refit(net, likelihoods.Normal(0.1), "net.2.weight")
    with pytest.raises(ValueError, match="the closed form is for Normals with one noise"):
        refit(net, likelihoods.StudentT(), "net.2.weight", where="2.weight")
    with pytest.raises(ValueError, match="is not the last one"):
        refit(net, likelihoods.Normal(0.1), "net.0.weight", where="0.weight")
    prior = priors.Laplace(0, 1)
    with pytest.raises(ValueError, match=r"the prior of `net.2.weight` is"):
        refit(net, likelihoods.Normal(0.1), "net.2.weight", where="2.weight", prior=prior)
