"""The ELBO with KL divergences in closed form is that of ``Trace_ELBO`` in expectation."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import within
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear


def losses(elbo, model, guide, *args, num=400):
    return torch.tensor([elbo.loss(model, guide, *args) for _ in range(num)])


def chain():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0))


def reversed_chain():
    y = pyro.sample("y", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(y, 1.0))


def forward_chain():
    x = pyro.sample("x", dist.Normal(0.5, 1.0))
    pyro.sample("y", dist.Normal(2 * x, 1.0))


@pytest.mark.parametrize(("guide", "expected"), [(reversed_chain, 0.5), (forward_chain, 0.75)])
def test_guides_that_are_not_mean_field(guide, expected):
    # Of the reversed chain: E[y^2] / 2 and E[log N(y; 0, 1) - log N(y; x, 1)] = (E[(y - x)^2] -
    # E[y^2]) / 2 = 0. Of the other: 0.5^2 / 2 and E[x^2] / 2 = (1 + 0.25) / 2.
    torch.manual_seed(0)
    assert within(losses(TraceKL_ELBO(), chain, guide), expected)
    assert within(losses(Trace_ELBO(), chain, guide), expected)


def test_weights_depend_on_nothing_in_whatever_order():
    torch.manual_seed(0)
    net = BayesianLinear(3, 2)
    guide = AutoLRT(net)
    x = torch.ones(2, 3)
    expected = TraceKL_ELBO().loss(net, guide, x)
    trace = poutine.trace(guide).get_trace(x)

    def other(x):
        for name in ("bias", "weight"):
            pyro.sample(name, trace.nodes[name]["fn"])

    assert list(guide) == ["weight", "bias"]
    assert TraceKL_ELBO().loss(net, other, x) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("prior", [dist.Normal(0.3, 2.0), dist.Laplace(0.3, 2.0)])
@pytest.mark.parametrize("size", [None, 3])
def test_scalars_are_exact_everywhere(prior, size):
    def model():
        if size is None:
            return pyro.sample("z", prior)
        with pyro.plate("plate", size):
            return pyro.sample("z", prior)

    guide = AutoReparameterization(model)
    guide()
    q = guide["z"].base()
    expected = torch.distributions.kl_divergence(q, prior).sum().item()
    for elbo in (TraceKL_ELBO(), TraceMeanField_ELBO()):
        values = losses(elbo, model, guide, num=3)
        torch.testing.assert_close(values, torch.full((3,), expected))


def test_scalars_are_exact_in_plain_torch():
    class Scaled(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.factor = pyro.nn.PyroSample(dist.Normal(0.3, 2.0))

        def forward(self, x):
            return self.factor * x

    net = Scaled()
    guide = AutoReparameterization(net)
    x = torch.ones(2)
    guide(x)
    expected = torch.distributions.kl_divergence(guide["factor"].base(), dist.Normal(0.3, 2.0))
    _, kl = Standalone(net, guide)(x)
    torch.testing.assert_close(kl, expected)


def test_sites_that_are_masked_altogether():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))

    def guide():
        pyro.sample("x", dist.Normal(2.0, 1.0).mask(False))

    assert TraceKL_ELBO().loss(model, guide) == 0
    assert Trace_ELBO().loss(model, guide) == 0


@pytest.mark.parametrize("alike", [True, False])
def test_masks_and_scales_that_are_tensors(alike):
    """Equal ones are those of one KL divergence; others weigh the two densities."""
    torch.manual_seed(0)
    scale, mask = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([True, True, False])

    def run(loc, scale, mask):
        with pyro.plate("plate", 3), poutine.scale(scale=scale), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc, 1.0))

    def model():
        run(0.0, scale.clone(), mask.clone())

    def guide():
        run(1.0, scale.clone() if alike else torch.ones(3), mask.clone())

    values = losses(TraceKL_ELBO(), model, guide)
    if alike:
        torch.testing.assert_close(values, torch.full((400,), 0.5 * 2.5))
    else:
        # E[log q] and -E[log p] of an entry: the entropy, and half of 1 + 1 more.
        constant = 0.5 * math.log(2 * math.pi)
        assert within(values, 2.5 * (constant + 1) - 2 * (constant + 0.5))


@pytest.mark.parametrize("num", [0, -1, 1.5])
def test_refuses_numbers_of_particles_that_are_none(num):
    with pytest.raises(ValueError, match="`num_particles`"):
        TraceKL_ELBO(num_particles=num)


def test_a_site_that_comes_too_late_holds_for_all_after_it():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(x, 1.0))

    def guide():
        pyro.sample("y", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    torch.manual_seed(0)
    assert within(losses(TraceKL_ELBO(), model, guide), 0.5)


def test_steps_without_formulas_are_those_of_trace_elbo():
    """Given the same draws, loss and gradients are the same, and the loss of SVI is a number."""

    def model():
        pyro.sample("w", dist.StudentT(torch.tensor(3.0)))  # which has no formula
        pyro.sample("k", dist.Poisson(2.0))  # nor a reparameterization

    def guide():
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))
        if is_discrete:
            pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(1.5))))

    def by_module(elbo):
        loss = elbo.differentiable_loss(hidden, guide)
        loss.backward()
        return loss.item()

    def by_svi(elbo):
        loss = elbo.loss_and_grads(hidden, guide)
        assert isinstance(loss, float)
        return loss

    for is_discrete, step in itertools.product((False, True), (by_module, by_svi)):
        hidden = model if is_discrete else poutine.block(model, hide=["k"])
        results = []
        for elbo in (Trace_ELBO(num_particles=3), TraceKL_ELBO(num_particles=3)):
            pyro.clear_param_store()
            torch.manual_seed(0)
            loss = step(elbo)
            found = pyro.get_param_store().named_parameters()
            results.append([loss, *(p.grad.item() for _, p in found)])
        assert results[0] == pytest.approx(results[1], rel=1e-5)
