"""What is said of a posterior is true of it."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Regression, bayesian_mlp, data
from pyro.infer.importance import psis_diagnostic
from pyro.nn import PyroModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, bayesianize, likelihoods
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoMixture, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO, diagnose
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.priors import Normal


def conjugate(noise=0.5, size=40):
    """A linear model of one weight, whose evidence and posterior are known; at the optimum."""
    x, _ = data(size, 1)
    y = x.squeeze(-1) + noise * torch.randn(size)
    model = Regression(BayesianLinear(1, 1, bias=False), noise)
    guide = AutoLRT(model)
    precision = (x.square().sum() / noise**2 + 1).item()
    mean = (x.squeeze(-1) @ y / noise**2 / precision).item()
    guide["net.weight"].loc = torch.full((1, 1), mean)
    guide["net.weight"].scale = torch.full((1, 1), precision**-0.5)
    xs = x.double().squeeze(-1)
    covariance = noise**2 * torch.eye(size).double() + xs.outer(xs)
    evidence = dist.MultivariateNormal(torch.zeros(size).double(), covariance).log_prob(y.double())
    return model, guide, (x, y), evidence.item(), mean, precision


def test_bounds_are_exact_at_the_exact_posterior():
    torch.manual_seed(0)
    model, guide, xy, evidence, mean, precision = conjugate()
    result = diagnose(model, guide, xy, num_samples=400)
    assert abs(result.elbo - evidence) < 5 * result.elbo_error
    assert abs(result.objective - evidence) < 5 * result.objective_error
    assert result.importance_bound == pytest.approx(evidence, abs=1e-3)
    kl = 0.5 * (mean**2 + 1 / precision - 1 + math.log(precision))
    assert result.kl == {"net.weight": pytest.approx(kl, rel=1e-5)}
    assert result.num_data == 40
    assert result.collapsed == {"net.weight": 0.0}
    ratio = abs(mean) * precision**0.5
    assert result.signal_to_noise["net.weight"] == pytest.approx([ratio] * 5, rel=1e-5)
    assert result.trivial < result.elbo
    assert result.khat < 0.7
    assert not result.findings()


def test_data_in_a_dictionary_are_keywords_as_those_of_fit():
    torch.manual_seed(0)
    model, guide, (x, y), *_ = conjugate()
    torch.manual_seed(1)
    expected = diagnose(model, guide, (x, y), num_samples=25)
    torch.manual_seed(1)
    assert diagnose(model, guide, {"y": y, "x": x}, num_samples=25) == expected


@pytest.mark.parametrize("kind", ["DataLoader", "Tensor"])
def test_data_that_are_no_arguments_are_refused(kind):
    torch.manual_seed(0)
    model, guide, xy, *_ = conjugate()
    loader = DataLoader(TensorDataset(*xy), 10)
    data = loader if kind == "DataLoader" else xy[0]
    with pytest.raises(TypeError, match=rf"`data` \(={kind}\) .*`next\(iter\(loader\)\)`"):
        diagnose(model, guide, data)
    assert diagnose(model, guide, next(iter(loader)), num_samples=25).num_data == 10


def test_tail_index_is_pyros():
    torch.manual_seed(0)
    model, guide, xy, *_ = conjugate()
    guide["net.weight"].scale = guide["net.weight"].scale.detach() / 3  # far too narrow
    result = diagnose(model, guide, xy, num_samples=1000)
    torch.manual_seed(0)
    with guide.shared_draws():
        other = psis_diagnostic(model, guide, *xy, num_particles=1000)
    assert result.khat > 0.7
    assert other > 0.7
    assert result.importance_bound > result.elbo
    assert any("tail index" in finding for finding in result.findings())


class Steps(PyroModule):
    """The sum of what a weight makes of several ones: as many weights, or as many samples of it."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.net = BayesianLinear(1, 1, bias=False)
        self.num_steps = num_steps

    def forward(self, x, y=None):
        mean = self.net(torch.ones(len(x), self.num_steps, 1)).sum((1, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("make", [AutoReparameterization, AutoFlipout, AutoLRT])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_an_objective_above_the_elbo_is_found(make, num_steps):
    """The variance of the sum of T samples is that of T times one sample, divided by T."""
    torch.manual_seed(0)
    size, scale = 200, 0.3
    model = Steps(num_steps)
    guide = make(model, init_scale=scale)
    result = diagnose(model, guide, (torch.zeros(size, 1), torch.zeros(size)), num_samples=400)
    excess = scale**2 * (num_steps**2 - num_steps) / 2 if make is AutoLRT else 0.0
    error = math.hypot(result.elbo_error, result.objective_error)
    assert abs(result.objective - result.elbo - size * excess) < 5 * error
    assert any("AutoFlipout" in text for text in result.findings()) == (excess > 0)
    assert any("trivial bound" in text for text in result.findings())  # targets do not vary
    assert "objective of training" in str(result)


@pytest.mark.filterwarnings("ignore:single values of the observed site:UserWarning")
@pytest.mark.parametrize("make", [AutoReparameterization, AutoFlipout, AutoLRT])
def test_an_objective_above_the_elbo_is_found_where_rows_interact(make):
    """The mean of N samples has an N-th of the variance of one."""
    torch.manual_seed(0)
    size, scale = 200, 0.3
    net = BayesianLinear(1, 1, bias=False)

    def model(x, y=None):
        mean = net(x).mean().expand(len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    guide = make(model, init_scale=scale)
    result = diagnose(model, guide, (torch.ones(size, 1), torch.zeros(size)), num_samples=400)
    excess = 0.0 if make is AutoReparameterization else scale**2 * (1 - 1 / size) / 2
    error = math.hypot(result.elbo_error, result.objective_error)
    assert abs(result.objective - result.elbo - size * excess) < 5 * error


@pytest.mark.parametrize("make", [AutoLRT, AutoRadial, AutoMixture])
def test_posteriors_that_have_learned_nothing(make):
    torch.manual_seed(0)
    x, y = data(50, 3)
    model = Regression(bayesian_mlp(3, 8, 1), None)
    guide = make(model)
    guide(x, y)
    result = diagnose(model, guide, (x, 100 * y), num_samples=50)
    assert result.elbo < result.trivial  # a start far from the data
    assert "below the trivial bound" in str(result)
    for name, likelihood in result.likelihood.items():
        assert name == "obs"
        assert result.elbo == pytest.approx(likelihood - sum(result.kl.values()))


def test_trivial_bound_of_classes_and_collapse():
    torch.manual_seed(0)
    x = torch.randn(90, 3)
    y = torch.arange(90) % 3
    net = bayesian_mlp(3, 5, 3)

    def model(x, y=None):
        logits = net(x)
        with pyro.plate("data", 900, subsample_size=len(x)):
            pyro.sample("obs", dist.Categorical(logits=logits), obs=y)

    guide = AutoLRT(model)
    for name in guide:
        guide[name].loc = torch.zeros_like(guide[name].loc)
        guide[name].scale = torch.ones_like(guide[name].scale)
    result = diagnose(model, guide, (x, y), losses=[1000.0] * 1100, num_samples=25)
    assert result.num_data == 900
    assert result.trivial == pytest.approx(-900 * math.log(3))
    assert result.collapsed == dict.fromkeys(guide, 1.0)
    assert result.collapsed_fraction == 1
    assert result.moved == 0


def normal(y, scale=None, counts=None):
    """The log density under Normals with the best mean and, unless it is known, scale."""
    counts = torch.ones_like(y) if counts is None else counts
    mean = (counts * y).sum(0) / counts.sum(0)
    best = ((counts * (y - mean).square()).sum(0) / counts.sum(0)).sqrt()
    return (counts * dist.Normal(mean, best if scale is None else scale).log_prob(y)).sum().item()


X3, Y2 = torch.randn(60, 3), torch.randn(60, 2) * torch.tensor([1.0, 5.0]) + torch.tensor([9.0, -7])
COUNTS = torch.cat([torch.arange(40.0), torch.zeros(20)])


def counts(total_count, y=COUNTS):
    """The log-likelihood of counts at the best mean, for a dispersion."""
    logits = (y.mean() / total_count).log()
    return dist.NegativeBinomial(total_count, logits=logits).log_prob(y).sum().item()


def student(scale, df, y=Y2[:, 0]):
    """The log-likelihood of Student's t at the best location of a fine grid."""
    loc = torch.linspace(y.min(), y.max(), 4001).double()
    df, scale = torch.tensor(df).double(), torch.tensor(scale).double()
    return dist.StudentT(df, loc, scale).log_prob(y.double()[:, None]).sum(0).max().item()


LABELS, ROWS = torch.arange(60) % 3, torch.arange(60) < 20
WEIGHT = torch.where(LABELS > 0, 0.01, 1.0)
CONSTANTS = {
    "noise that is known": (likelihoods.Normal(2.0), {"y": Y2[:, 0]}, normal(Y2[:, 0], 2.0)),
    "noise that is learned": (likelihoods.Normal(), {"y": Y2[:, 0]}, normal(Y2[:, 0])),
    "a noise for each target": (likelihoods.Normal(shape=(2,)), {"y": Y2}, normal(Y2)),
    "one for both": (
        likelihoods.Normal(),
        {"y": Y2},
        normal(Y2, (Y2 - Y2.mean(0)).square().mean().sqrt()),
    ),
    "rows that are masked": (
        likelihoods.Normal(),
        {"y": torch.where(ROWS, Y2[:, 0], 1e6), "mask": ROWS},
        normal(Y2[:20, 0]),
    ),
    "targets that are masked": (
        likelihoods.Normal(shape=(2,)),
        {"y": Y2, "mask": torch.stack([ROWS, ~ROWS], -1)},
        normal(Y2[:20, 0]) + normal(Y2[20:, 1]),
    ),
    "weights": (
        likelihoods.Normal(),
        {"y": Y2[:, 0], "weight": WEIGHT},
        normal(Y2[:, 0], counts=WEIGHT),
    ),
    "labels": (
        likelihoods.Categorical(),
        {"y": LABELS, "weight": WEIGHT},
        20 * math.log(1 / 1.02) + 0.4 * math.log(0.01 / 1.02),
    ),
    "counts": (
        likelihoods.Poisson(),
        {"y": COUNTS, "weight": WEIGHT},
        (WEIGHT * dist.Poisson((WEIGHT * COUNTS).sum() / WEIGHT.sum()).log_prob(COUNTS))
        .sum()
        .item(),
    ),
    "a dispersion that is known": (likelihoods.NegativeBinomial(2.0), {"y": COUNTS}, counts(2.0)),
    "a dispersion that is learned": (
        likelihoods.NegativeBinomial(),
        {"y": COUNTS},
        max(counts(r) for r in torch.logspace(-2, 3, 5001).double()),
    ),
    "one dispersion for both": (
        likelihoods.NegativeBinomial(),
        {"y": torch.stack([COUNTS, 1 + COUNTS.flip(0) // 3], -1)},
        max(
            counts(r) + counts(r, 1 + COUNTS.flip(0) // 3)
            for r in torch.logspace(-2, 3, 5001).double()
        ),
    ),
    "a scale of Student's t for both": (
        likelihoods.StudentT(3.0),
        {"y": Y2},
        max(
            student(s.item(), 3.0) + student(s.item(), 3.0, Y2[:, 1])
            for s in torch.logspace(-1, 1, 1001)
        ),
    ),
    "Student's t": (likelihoods.StudentT(3.0, 0.7), {"y": Y2[:, 0]}, student(0.7, 3.0)),
    "its scale is learned": (
        likelihoods.StudentT(3.0),
        {"y": Y2[:, 0]},
        max(student(s.item(), 3.0) for s in torch.logspace(-1, 1, 1001)),
    ),
    "several labels": (
        likelihoods.Bernoulli(),
        {"y": torch.stack([torch.ones(60), (LABELS == 0).float()], -1)},
        20 * math.log(1 / 3) + 40 * math.log(2 / 3),
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_trivial_bound_is_that_of_the_best_constant_of_each_target(name):
    torch.manual_seed(0)
    likelihood, observed, expected = CONSTANTS[name]
    num_outputs = 3 if isinstance(likelihood, likelihoods.Categorical) else observed["y"][0].numel()
    # A prior that predicts far from all targets; rates are exponentials of outputs.
    prior = Normal(0.0, 5.0 if isinstance(likelihood, likelihoods.Poisson) else 300.0)
    model = BNN(bayesianize(nn.Linear(3, num_outputs), prior=prior), likelihood)
    guide = AutoLRT(model)
    result = diagnose(model, guide, {"x": X3, **observed}, num_samples=25)
    assert result.trivial == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen", "latent"])
def test_trivial_bound_of_a_learned_noise_in_any_mode(how):
    torch.manual_seed(0)
    noise = dist.HalfNormal(1.0) if how == "latent" else None
    model = BNN(nn.Linear(3, 1), likelihoods.Normal(noise))
    guide = AutoLRT(model)
    guide(X3, Y2[:, 0])
    model.requires_grad_(how != "frozen")
    guide.requires_grad_(how != "frozen")
    flags = [p.requires_grad for p in (*model.parameters(), *guide.parameters())]
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with mode.get(how, torch.enable_grad)():
        result = diagnose(model, guide, (X3 + 0, Y2[:, 0] + 0), num_samples=25)
    assert result.trivial == pytest.approx(normal(Y2[:, 0]), rel=1e-4)
    assert [p.requires_grad for p in (*model.parameters(), *guide.parameters())] == flags


def test_a_site_of_another_kind_leaves_the_constant_of_the_others():
    torch.manual_seed(0)
    net = bayesianize(nn.Linear(3, 1), prior=Normal(0.0, 300.0))

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.factor("penalty", torch.full((len(x),), -2.0))
            pyro.sample("obs", dist.Normal(mean, 2.0), obs=y)

    result = diagnose(model, AutoLRT(model), (X3, Y2[:, 0]), num_samples=25)
    assert result.trivial == pytest.approx(normal(Y2[:, 0], 2.0) - 2 * 60, rel=1e-4)


def test_likelihoods_whose_best_constant_is_not_known():
    torch.manual_seed(0)
    net = BayesianLinear(3, 2)

    def model(x, y=None):
        mean = net(x)
        with pyro.plate("data", len(x)):
            pyro.factor("penalty", -mean.square().sum(-1))
            pyro.sample("obs", dist.MultivariateNormal(mean, torch.eye(2)), obs=y)

    guide = AutoLRT(model)
    result = diagnose(model, guide, (X3, Y2), num_samples=25)
    assert -math.inf < result.trivial < 0  # what the prior predicts
    assert math.isfinite(result.elbo)


def test_a_constant_that_costs_its_kl_divergence_is_no_failure():
    torch.manual_seed(0)
    model = Regression(BayesianLinear(1, 1), 1.0)
    guide = AutoLRT(model)
    x, y = torch.zeros(500, 1), 1 + torch.randn(500)
    guide["net.bias"].loc = torch.full((1,), 500 / 501 * y.mean().item())
    guide["net.bias"].scale = torch.full((1,), 501**-0.5)
    guide["net.weight"].loc, guide["net.weight"].scale = torch.zeros(1, 1), torch.ones(1, 1)
    result = diagnose(model, guide, (x, y), num_samples=200)
    assert result.elbo < result.trivial  # at the exact posterior
    assert not any("trivial" in finding for finding in result.findings())


def test_kl_divergences_count_as_often_as_their_plate_and_follow_what_their_prior_depends_on():
    torch.manual_seed(0)
    x = torch.randn(50)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("obs", dist.Normal(z, 0.5), obs=x)

    guide = AutoReparameterization(model, init_scale=0.5)
    guide(x)
    result = diagnose(model, guide, (x,), num_samples=2000)
    with torch.no_grad():
        losses = [TraceKL_ELBO().loss(model, guide, x) for _ in range(2000)]
    mean, error = -sum(losses) / 2000, torch.tensor(losses).std().item() / 2000**0.5
    assert abs(result.elbo - mean) < 5 * math.hypot(error, result.elbo_error)
    assert result.importance_bound > result.elbo


def test_weights_that_are_alike_have_no_tail():
    torch.manual_seed(0)
    model = Regression(BayesianLinear(2, 1, bias=False), 1.0)
    guide = AutoReparameterization(model, init_scale=1.0)
    guide["net.weight"].loc = torch.zeros(1, 2)
    result = diagnose(model, guide, (torch.zeros(5, 2), torch.randn(5)))  # the prior is exact
    assert result.khat < 0.7
    assert not any("importance" in finding for finding in result.findings())


def test_losses_that_still_fall():
    torch.manual_seed(0)
    model, guide, xy, *_ = conjugate()
    result = diagnose(model, guide, xy, losses=list(range(2000, 0, -1)), num_samples=25)
    assert result.moved == pytest.approx(1000)
    assert any("train longer" in finding for finding in result.findings())


def test_errors():
    model, guide, xy, *_ = conjugate()
    with pytest.raises(TypeError, match="`guide`"):
        diagnose(model, lambda x, y: None, xy)
    with pytest.raises(ValueError, match="`num_samples`"):
        diagnose(model, guide, xy, num_samples=10)
    for losses in (3, ["a"] * 1200):
        with pytest.raises(TypeError, match="`losses`"):
            diagnose(model, guide, xy, losses=losses, num_samples=25)
    with pytest.raises(ValueError, match=r"`losses\[1150\]` \(=nan\)"):
        diagnose(model, guide, xy, losses=[1.0] * 1150 + [math.nan] * 50, num_samples=25)
    with pytest.raises(ValueError, match="`losses`"):
        diagnose(model, guide, xy, losses=[1.0], num_samples=25)
    with pytest.raises(ValueError, match="observes nothing"):
        diagnose(model, guide, xy[:1], num_samples=25)


GAUSSIAN = Normal(0.0, 2.0)
WIDE = {"independent": GAUSSIAN, "learned": Normal(0.0, 2.0, learnable_scale="input")}


@pytest.mark.parametrize("name", WIDE)
def test_bounds_of_pruned_posteriors_are_of_the_weights_that_are_left(name):
    torch.manual_seed(0)
    x = 3 * torch.linalg.qr(torch.randn(50, 10)).Q  # mean-field is exact
    y = 2 * x[:, :3].sum(1) + 0.5 * torch.randn(50)
    model = Regression(BayesianLinear(10, 1, bias=False, prior=WIDE[name]), 0.5)
    guide = AutoLRT(model)
    precision = 9 / 0.25 + 1 / 4
    guide["net.weight"].loc = (x.T @ y / 0.25 / precision).reshape(1, 10)
    guide["net.weight"].scale = torch.full((1, 10), precision**-0.5)
    guide["net.weight"].prune((torch.arange(10) < 3).reshape(1, 10))
    left = x[:, :3].double()
    covariance = 0.25 * torch.eye(50).double() + 4 * left @ left.T
    evidence = dist.MultivariateNormal(torch.zeros(50).double(), covariance).log_prob(y.double())
    result = diagnose(model, guide, (x, y), num_samples=400)
    assert abs(result.elbo - evidence.item()) < 5 * result.elbo_error
    assert result.importance_bound == pytest.approx(evidence.item(), abs=2e-3)


def test_pruned_weights_do_not_count():
    torch.manual_seed(0)
    x, y = data(30, 3)
    model = Regression(bayesian_mlp(3, 8, 1), 0.5)
    guide = AutoLRT(model)
    first, *others = list(guide)
    kept = torch.rand(guide[first].loc.shape) < 0.5
    guide[first].loc = torch.zeros_like(guide[first].loc)  # at the prior
    guide[first].scale = torch.ones_like(guide[first].scale)
    guide[first].prune(kept)
    guide[others[0]].prune(torch.zeros_like(guide[others[0]].loc, dtype=torch.bool))
    result = diagnose(model, guide, (x, y), num_samples=25)
    assert result.collapsed[first] == 1.0
    assert result.signal_to_noise[first] == [0.0] * 5
    assert others[0] not in result.collapsed  # nothing is left
    assert others[0] not in result.signal_to_noise


def test_statistics_of_normalization_stay():
    torch.manual_seed(0)
    x, y = data(30, 3)
    net = PyroModule[nn.Sequential](BayesianLinear(3, 4), nn.BatchNorm1d(4), BayesianLinear(4, 1))
    model = Regression(net, 0.5)
    guide = AutoLRT(model)
    guide(x, y)
    before = {name: b.clone() for name, b in net.named_buffers()}
    diagnose(model, guide, (x, y), num_samples=25)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_the_error_counts_kls_that_are_estimated():
    """A location without data, whose KL divergence has no formula: all of the error is its."""

    def model(x, y=None):
        pyro.sample("z", dist.StudentT(4.0, 0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)

    torch.manual_seed(0)
    x, y = data(30, 3)
    guide = AutoLRT(model)
    guide(x, y)
    guide["z"].scale = torch.tensor(2.0)
    errors = [diagnose(model, guide, (x, y), num_samples=100) for _ in range(40)]
    spread = torch.tensor([e.elbo for e in errors]).std().item()
    mean = sum(e.elbo_error for e in errors) / len(errors)
    assert 0.5 < spread / mean < 1.7  # 40 values: 5 standard errors are 0.57 of it
