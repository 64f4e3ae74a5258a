from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from kinds import POSTERIORS
from models import within
from pyro.distributions import constraints
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import pyro_bnn.posteriors
from pyro_bnn.estimators import Flipout
from pyro_bnn.posteriors import (
    ConstrainedPosterior,
    MixturePosterior,
    NormalPosterior,
    Posterior,
    RadialPosterior,
)

ROWS = pytest.mark.parametrize("row", POSTERIORS, ids=lambda r: getattr(r.make, "__name__", "c"))


def make(row, dtype=torch.float, scale=0.1, **kwargs):
    loc = torch.rand(row.loc, dtype=dtype) + 0.5
    return loc, row.make(loc, scale, **kwargs)


def test_every_posterior_has_a_row():
    made = {type(make(row)[1]).__name__ for row in POSTERIORS}
    assert made | {"Posterior"} == set(pyro_bnn.posteriors.__all__)


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distribution(row, dtype):
    loc, posterior = make(row, dtype)
    q = posterior.distribution()
    value = q.rsample()
    assert q.batch_shape == ()
    assert value.shape == loc.shape
    assert value.dtype == q.log_prob(value).dtype == dtype
    torch.testing.assert_close(posterior.median(), loc)


@ROWS
def test_init_scale_is_the_standard_deviation_of_an_entry(row):
    _, posterior = make(row, scale=0.01)
    if isinstance(posterior, (ConstrainedPosterior, MixturePosterior)):
        return
    samples = posterior.distribution().sample((20_000,))
    assert within((samples - posterior.median()).square(), 0.01**2)


@ROWS
def test_quantiles(row):
    _, posterior = make(row)
    probs = torch.tensor([0.1, 0.5, 0.9])
    if isinstance(posterior, RadialPosterior):
        with pytest.raises(NotImplementedError, match="samples"):
            posterior.quantiles(probs)
        return
    quantiles = posterior.quantiles(probs)
    samples = posterior.distribution().sample((20_000,))
    assert quantiles.shape == (3, 3, 2)
    assert within((samples.unsqueeze(1) <= quantiles).float(), probs.view(3, 1, 1))


@ROWS
def test_event_dim(row):
    _, posterior = make(row, event_dim=1)
    q = posterior.distribution()
    assert q.batch_shape == (3,)
    assert q.event_shape == (2,)


@ROWS
def test_every_parameter_gets_a_gradient_also_on_the_second_pass(row):
    _, posterior = make(row, torch.float64)
    for _ in range(2):
        posterior.zero_grad()
        q = posterior.distribution()
        (q.rsample().sin().sum() + 0 * q.log_prob(q.sample()).sum()).backward()
        for name, parameter in posterior.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            assert (parameter.grad != 0).all(), name


@ROWS
def test_parameters_are_vectors_in_memory(row):
    loc = torch.rand(2, 3, dtype=torch.double).t() + 0.5
    posterior = row.make(loc, torch.rand(2, 3, dtype=torch.double).t() + 0.1)
    start = parameters_to_vector(posterior.parameters())
    vector_to_parameters(start + 1, posterior.parameters())
    torch.testing.assert_close(parameters_to_vector(posterior.parameters()), start + 1)
    vector_to_parameters(start, posterior.parameters())
    optimizer = torch.optim.LBFGS(posterior.parameters(), line_search_fn="strong_wolfe")
    target = torch.linspace(0.5, 2.0, 6, dtype=torch.double).view(3, 2)

    def closure():
        optimizer.zero_grad()
        loss = -posterior.distribution().log_prob(target)
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before - 1


@ROWS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(row, copied):
    _, posterior = make(row)
    other = copied(posterior)
    torch.testing.assert_close(other.median(), posterior.median())
    other.load_state_dict(posterior.state_dict())
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert (next(other.parameters()) != next(posterior.parameters())).all()


@ROWS
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_rejects_scale(row, scale):
    with pytest.raises(ValueError, match="scale"):
        make(row, scale=scale)


def test_rejects_other_arguments():
    with pytest.raises(ValueError, match="loc"):
        NormalPosterior(torch.tensor([math.nan]), 0.1)
    with pytest.raises(TypeError, match="estimator"):
        NormalPosterior(torch.zeros(2), 0.1, estimator="flipout")
    with pytest.raises(ValueError, match="num_components"):
        MixturePosterior(torch.zeros(2), 0.1, num_components=0)


def test_any_estimator_and_number_of_components():
    assert RadialPosterior(torch.zeros(3, 2), 0.1, estimator=Flipout()).distribution().has_rsample
    q = MixturePosterior(torch.zeros(3, 2), 0.1, num_components=5).base()
    assert q.loc.shape == (3, 2, 5)
    torch.testing.assert_close(q.mean, torch.zeros(3, 2))


@pytest.mark.parametrize(
    "prior",
    [
        dist.HalfCauchy(1.0),
        dist.LogNormal(0.0, 1.0),
        dist.Beta(2.0, 2.0),
        dist.Dirichlet(torch.ones(3)),
        dist.LKJCholesky(3, torch.tensor(1.0)),
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
    ],
    ids=lambda p: type(p).__name__,
)
def test_constrained(prior):
    posterior = ConstrainedPosterior(prior.sample(), 0.3, prior.event_dim, support=prior.support)
    q = posterior.distribution()
    value = q.rsample()
    assert value.shape == prior.shape()
    assert prior.support.check(value).all()
    assert q.log_prob(value).shape == ()
    assert prior.support.check(posterior.median()).all()


def test_constrained_density_integrates_to_one():
    posterior = ConstrainedPosterior(
        torch.tensor(0.5, dtype=torch.float64), 0.4, support=constraints.positive
    )
    x = torch.linspace(1e-6, 20, 200_001, dtype=torch.float64)
    mass = torch.trapezoid(posterior.distribution().log_prob(x).exp(), x)
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_base_class_is_abstract_in_what_matters():
    assert Posterior.base.__isabstractmethod__
