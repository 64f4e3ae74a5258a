"""Warnings of data that depend on several rows, where each row has noise of its own."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_bnn import BNN, bayesianize, likelihoods
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.posteriors import NormalPosterior

OWN_NOISE = pytest.mark.parametrize("guide_class", [AutoFlipout, AutoLRT])
ROWS = 8


class Net(nn.Module):
    """Layers, and a function of what they make of the input."""

    def __init__(self, body, function=lambda h: h):
        super().__init__()
        self.body, self.function = body, function

    def forward(self, *x):
        return self.function(*map(self.body, x))


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def observed(net, *x):
    mean = net(*x).squeeze(-1)
    with pyro.plate("data", len(mean)):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.ones(len(mean)))


def joint(net, x):
    mean = net(x).squeeze(-1)
    pyro.sample("obs", dist.MultivariateNormal(mean, torch.eye(ROWS)), obs=torch.ones(ROWS))


def summed(net, x):
    density = dist.Normal(net(x), 1.0).log_prob(torch.ones(ROWS, 1))
    pyro.factor("obs", density.sum())
    pyro.sample("other", dist.Normal(net.body[3].bias, 1.0), obs=torch.ones(1))


def cox(net, x, function=lambda risk: risk - risk.logcumsumexp(0)):
    """The partial likelihood of survival times, each of which depends on all later ones."""
    factors = function(net(x).squeeze(-1))
    with pyro.plate("data", ROWS):
        pyro.factor("obs", factors)


def one_event(net, x):
    pyro.sample("obs", dist.Normal(net(x), 1.0).to_event(2), obs=torch.ones(ROWS, 1))


def masked(net, x):
    """The mean of all rows is not observed."""
    mean = net(x)
    mean = torch.cat([mean.mean(-2, keepdim=True), mean])
    seen = torch.tensor([False] + [True] * ROWS)
    with pyro.plate("data", ROWS + 1), pyro.poutine.mask(mask=seen):
        pyro.sample("obs", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(ROWS + 1, 1))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1))

    def forward(self, x):
        return nn.functional.linear(x, self.weight.mT)


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 1)

    def forward(self, x):
        return self.rnn(x)[0][-1]


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 1), reentrant

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))


X = torch.randn(ROWS, 3)
STEPS = torch.randn(2, ROWS, 3)
GRAPH = torch.eye(ROWS) + torch.eye(ROWS).roll(1, 0)
ONE_EDGE = torch.eye(ROWS)
ONE_EDGE[1, -1] = 1.0
INTERACT = {
    "mean of rows": (lambda: Net(mlp(), lambda h: h.mean().expand(ROWS, 1)), observed, X),
    "graph": (lambda: Net(mlp(), lambda h: GRAPH @ h), observed, X),
    "one edge": (lambda: Net(mlp(), lambda h: ONE_EDGE @ h), observed, X),
    "transposed": (lambda: Net(Transposed(), lambda h: h - h.mean()), observed, X),
    "flattened steps": (lambda: Net(mlp(), lambda h: h.view(4, 2).mean(-1, True)), observed, X),
    "one neighbour": (lambda: Net(nn.Linear(3, 1), lambda h, g: h - g.roll(1, 0)), observed, X, X),
    "steps in front": (lambda: Net(nn.Linear(3, 1), lambda h: h.mean(0)), observed, STEPS),
    "factors": (lambda: Net(mlp()), cox, X),
    "a joint density": (lambda: Net(mlp()), joint, X),
    "indices": (
        lambda: Net(nn.Embedding(9, 1), lambda h: h.view(4, 2, 1).mean(1)),
        observed,
        torch.arange(ROWS),
    ),
}
APART = {
    "rows": (lambda: Net(mlp()), observed, X),
    "twins": (lambda: Net(nn.Linear(3, 1), lambda h, g: h - g), observed, X, X + 1),
    "one row": (lambda: Net(nn.Linear(3, 1), lambda h: h.expand(ROWS, 1)), observed, X[:1]),
    "steps behind": (
        lambda: Net(nn.Linear(3, 1), lambda h: h.mean(1)),
        observed,
        STEPS.transpose(0, 1),
    ),
    "a recurrent layer": (Last, observed, STEPS),
    "a convolution": (
        lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(14, 1)),
        observed,
        X.view(ROWS, 3, 1).expand(ROWS, 3, 8),
    ),
    "a sum of densities": (lambda: Net(mlp()), summed, X),
    "a factor for each row": (lambda: Net(mlp()), partial(cox, function=torch.sin), X),
    "a share for each row": (lambda: Net(mlp()), partial(cox, function=torch.mean), X),
    "one event": (lambda: Net(mlp()), one_event, X),
    "a mask": (lambda: Net(mlp()), masked, X),
    **{
        f"a checkpoint, {reentrant}": (
            lambda reentrant=reentrant: Checkpointed(reentrant),
            observed,
            X.clone().requires_grad_(),
        )
        for reentrant in (True, False)
    },
}


def first_call(case, guide_class, **kwargs):
    make, function, *x = case
    net = bayesianize(make())
    guide = guide_class(lambda *x: function(net, *x), **kwargs)
    guide(*x)
    return guide


@OWN_NOISE
@pytest.mark.parametrize("name", INTERACT)
def test_rows_that_interact_are_told(name, guide_class):
    with pytest.warns(UserWarning, match=r"`obs` depend on several rows.*shared_draws"):
        guide = first_call(INTERACT[name], guide_class)
    guide(*INTERACT[name][2:])  # once; warnings are errors here


@OWN_NOISE
@pytest.mark.parametrize("name", APART)
def test_rows_that_do_not_interact_pass(name, guide_class):
    first_call(APART[name], guide_class)


@pytest.mark.parametrize("guide_class", [AutoReparameterization, AutoRadial])
def test_one_weight_for_all_rows_passes(guide_class):
    first_call(INTERACT["graph"], guide_class)
    first_call(INTERACT["graph"], AutoLRT, sites={"*": NormalPosterior})


def test_nothing_is_changed_and_shared_draws_pass():
    model = BNN(Net(mlp(), lambda h: GRAPH @ h), likelihoods.Normal())
    guide = AutoFlipout(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with guide.shared_draws():
        guide(X, torch.ones(ROWS))
    torch.set_rng_state(state)
    other = AutoFlipout(model)
    with pytest.warns(UserWarning, match="several rows"):
        other(X, torch.ones(ROWS))
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    # The numbers that are drawn next are those without the check.
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    other(X, torch.ones(ROWS))
    assert torch.equal(after, torch.get_rng_state())


FIRST = {
    "no gradients": (torch.no_grad, ROWS),
    "shared draws": (AutoFlipout.shared_draws, ROWS),
    "one row": (nullcontext, 1),
    "no targets": (nullcontext, ROWS),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_later_call_tells_what_the_first_could_not(name):
    model = BNN(Net(nn.Linear(3, 1), lambda h: h - h.mean()), likelihoods.Normal(1.0))
    guide, y = AutoFlipout(model), torch.ones(ROWS)
    guide.load_state_dict(guide.state_dict())  # one that is loaded may predict first
    context, rows = FIRST[name]
    batch = (X,) if name == "no targets" else (X[:rows], y[:rows])
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    with context(guide) if name == "shared draws" else context():
        guide(*batch)
        guide(*batch)
    guide()  # what is no run of the model
    assert len(runs) == (2 if context is nullcontext else 1)  # to find sites, and to look at rows
    with pytest.warns(UserWarning, match=r"several rows"):
        guide(X[:4], y[:4])
    del runs[:]
    guide(X, y)
    assert not runs


def test_a_step_tells_it_where_the_user_stands():
    net = bayesianize(nn.Linear(3, 1))

    def model(x):
        return observed(Net(net, lambda h: h.mean().expand(ROWS, 1)), x)

    guide = AutoLRT(model)
    with pytest.warns(UserWarning, match="several rows") as told:
        TraceKL_ELBO()(model, guide)(X)
    assert [warning.filename for warning in told] == [__file__]
