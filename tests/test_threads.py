"""A call has its draws to itself: in threads, inside another call, in replicas."""

from __future__ import annotations

import sys
import threading
import time

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from kinds import GUIDES
from models import bayesian_mlp
from torch import nn

from pyro_bnn import BNN, bayesianize, predict
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch, bensemble
from pyro_bnn.guides import AutoLRT
from pyro_bnn.posteriors import Posterior

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(function, count=2):
    """What the function returns in several threads at the same time."""
    results, errors = [], []

    def run():
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(results) == count
    return results


class Meeting(nn.Linear):
    """Uses its weight once more when another thread has come as far, and looks at the two."""

    meet = staticmethod(lambda: None)

    def forward(self, x):
        first = F.linear(x, self.weight, self.bias)
        self.meet()
        torch.testing.assert_close(F.linear(x, self.weight, self.bias), first)
        return first


class Whole(bayesian_torch.LinearReparameterization, Meeting):
    pass


class OfExamples(bayesian_torch.LinearFlipout, Meeting):
    pass


class OfOutputs(bensemble.BayesianLinear, Meeting):
    pass


def standalone(kind):
    net = bayesianize(nn.Sequential(Meeting(3, 4), nn.Tanh(), Meeting(4, 2)))
    module = Standalone(net, kind.make(net, init_scale=0.5))
    module(torch.ones(1, 3))
    return module


MODULES = {kind.name: lambda kind=kind: standalone(kind) for kind in GUIDES} | {
    "layer": lambda: Whole(3, 2),
    "bensemble": lambda: OfOutputs(3, 2),
    "WithKL": lambda: WithKL(nn.Sequential(Whole(3, 4), OfExamples(4, 4), OfOutputs(4, 2))),
}


@pytest.mark.parametrize("name", MODULES)
def test_two_calls_at_the_same_time(name, monkeypatch):
    module = MODULES[name]()
    barrier = threading.Barrier(2)
    monkeypatch.setattr(Meeting, "meet", staticmethod(lambda: barrier.wait(60)))
    outputs = [
        r[0] if isinstance(r, tuple) else r for r in in_threads(lambda: module(torch.ones(5, 3)))
    ]
    assert not torch.equal(*outputs)


def test_posteriors_are_made_once(monkeypatch):
    module = MODULES["WithKL"]()
    made = []
    distribution = Posterior.distribution

    def counted(self, **kwargs):
        made.append(self)
        return distribution(self, **kwargs)

    monkeypatch.setattr(Posterior, "distribution", counted)
    out, kl = module(torch.ones(5, 3))
    (out.sum() + kl).backward()
    assert made
    assert len(set(map(id, made))) == len(made)


@EACH
def test_many_calls_of_a_new_module(kind):
    """Whose first call looks for sample statements, by a handler on Pyro's stack."""
    net = bayesian_mlp(3, 8, 2)
    module = Standalone(net, kind.make(net))

    def calls():
        for _ in range(20):
            out, kl = module(torch.ones(4, 3))
            (out.sum() + kl).backward()

    in_threads(calls, 4)


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.whole = []

    def forward(self, x, depth=0):
        first = self.linear(x)
        inner = self.whole[0](x, depth - 1)[0] if depth else ()
        torch.testing.assert_close(self.linear(x), first)
        return [first, *inner]


@EACH
def test_a_call_inside_a_call(kind):
    net = bayesianize(Recursive())
    module = Standalone(net, kind.make(net, init_scale=0.5))
    net.whole.append(module)
    outputs, _ = module(torch.ones(4, 3), depth=2)
    assert len({tuple(out.flatten().tolist()) for out in outputs}) == 3


class Stateful(nn.Module):
    steps = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.last = None
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        self.last = self.linear(x)
        self.total = self.total + 1
        assert self.steps == self.total  # reads what it has just written
        return self.last


@pytest.mark.parametrize("compat", [False, True])
def test_what_a_forward_assigns_stays(compat):
    net = Stateful()
    if compat:
        net.linear = bayesian_torch.LinearReparameterization(3, 2)
        module = WithKL(net)
    else:
        net = bayesianize(net)
        module = Standalone(net, GUIDES[0].make(net))
    for step in (1, 2):
        out, _ = module(torch.ones(4, 3))
        assert (net.steps, net.total) == (step, step)
        assert net.last is out
    net.steps, net.total = 5, torch.tensor(5.0)
    module(torch.ones(4, 3))
    assert net.steps == 6


@EACH
def test_replicas_have_twins_of_their_own(kind):
    module = standalone(kind)
    replicas = [module._replicate_for_data_parallel() for _ in range(2)]
    for one, other in ((module, replicas[0]), replicas):
        assert one._lasting[-1] is not other._lasting[-1]
        assert one._sites is not other._sites
    x = torch.ones(4, 3)
    iterator = iter(replicas)
    in_threads(lambda: [next_one(x) for next_one in [next(iterator)] for _ in range(20)])
    # `nn.DataParallel` puts the parts into a replica one after the other.
    other = standalone(kind)
    replicas[0].net, replicas[0].guide = other.net, other.guide
    torch.manual_seed(0)
    expected = other(x)
    torch.manual_seed(0)
    torch.testing.assert_close(replicas[0](x), expected)


def test_predictions_by_moments_at_the_same_time():
    class Slow(dist.Normal):
        @property
        def mean(self):
            time.sleep(0.05)  # for the other thread to begin
            return super().mean

    model = BNN(nn.Linear(3, 1), lambda f: Slow(f.squeeze(-1), 1.0))
    guide = AutoLRT(model)
    one, other = in_threads(lambda: predict(model, guide, torch.ones(5, 3), moments=True))
    assert torch.equal(one.mean, other.mean)
