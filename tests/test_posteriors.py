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
from pyro_bnn.testing import check_posterior

ROWS = pytest.mark.parametrize("row", POSTERIORS, ids=lambda r: getattr(r.make, "__name__", "c"))


def make(row, dtype=torch.float, scale=0.1, **kwargs):
    loc = torch.rand(row.loc, dtype=dtype) + 0.5
    return loc, row.make(loc, scale, **kwargs)


def test_every_posterior_has_a_row():
    made = {type(make(row)[1]).__name__ for row in POSTERIORS}
    assert made | {"Posterior"} == set(pyro_bnn.posteriors.__all__)


@ROWS
def test_contract(row):
    check_posterior(row.make, row.loc)


@ROWS
def test_init_scale_is_the_standard_deviation_of_an_entry(row):
    _, posterior = make(row, scale=0.01)
    if isinstance(posterior, (ConstrainedPosterior, MixturePosterior)):
        return
    samples = posterior.distribution().sample((20_000,))
    assert within((samples - posterior.median()).square(), 0.01**2)


def test_a_radial_posterior_has_no_quantiles():
    with pytest.raises(NotImplementedError, match="samples"):
        RadialPosterior(torch.zeros(3, 2), 0.1).quantiles(torch.tensor([0.5]))


@ROWS
def test_event_dim(row):
    _, posterior = make(row, event_dim=1)
    q = posterior.distribution()
    assert q.batch_shape == (3,)
    assert q.event_shape == (2,)


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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies_are_read_as_fast(copied, monkeypatch):
    posterior = copied(NormalPosterior(torch.zeros(2), 0.1))
    support = constraints.independent(constraints.real, 1)
    vector = copied(ConstrainedPosterior(torch.zeros(2), 0.1, support=support))
    monkeypatch.delattr("pyro_bnn._parameters.transform_to")  # which is looked up
    torch.testing.assert_close(posterior.base().stddev, torch.full((2,), 0.1))
    assert type(vector.distribution()) is type(posterior.distribution())  # no transformed one


def test_base_class_is_abstract_in_what_matters():
    assert Posterior.base.__isabstractmethod__
