"""Processes of data loaders, and others to which networks and guides are sent."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from kinds import GUIDES
from torch import nn
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BNN, bayesianize, fit
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.likelihoods import Normal

# Python warns of forks of processes with threads, which all of torch's are.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def data():
    x = torch.linspace(-1, 1, 22).reshape(11, 2)
    return x, x.sum(-1)


def trained(**kwargs):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = BNN(nn.Linear(2, 1), Normal())
    guide = AutoLRT(model)
    loader = DataLoader(TensorDataset(*data()), 3, **kwargs)
    history = fit(model, guide, loader, 2, seed=1, progress=False)
    return dict(guide.named_parameters()), dict(history)


def test_fit_with_forked_workers_is_fit_without():
    kwargs = {"num_workers": 1, "multiprocessing_context": "fork"}
    found, expected = trained(shuffle=True, **kwargs), trained(shuffle=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_fit_with_spawned_workers_that_stay_is_fit_without():
    # Loaders seed workers by random numbers of their own here: those that stay take fewer.
    generators = [torch.Generator(), torch.Generator()]
    kwargs = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    found = trained(generator=generators[0], **kwargs)
    torch.testing.assert_close(found, trained(generator=generators[1]), rtol=0, atol=0)


class Model(BNN):
    """With a site that only a call reveals."""

    def forward(self, x, y=None):
        pyro.sample("late", pyro.distributions.Normal(0.0, 1.0))
        return super().forward(x, y)


def pairs():
    for kind in GUIDES:
        for is_called in (False, True):
            net = bayesianize(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
            model = Model(net, Normal(0.5), num_data=11)
            guide = kind.make(model)
            if is_called:
                guide(*data())
            yield model, guide


def step(pair):
    """One step of training, here or in another process."""
    model, guide = pair
    torch.manual_seed(2)
    guide(*data())
    elbo = TraceKL_ELBO()(model, guide)
    optimizer = torch.optim.SGD(elbo.parameters(), 1e-3)
    elbo(*data()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return pair


def results(pair):
    model, guide = pair
    torch.manual_seed(3)
    with torch.no_grad():
        loss = TraceKL_ELBO()(model, guide)(*data())
        output, kl = Standalone(model.net, AutoLRT(model.net))(data()[0])
    return dict(guide.named_parameters()), dict(model.named_parameters()), loss, output, kl


def test_guides_travel_to_other_processes_and_back():
    made = list(pairs())
    with get_context("spawn").Pool(1) as pool:
        # What is sent shares its memory with the worker, and so does what it sends.
        back = [copy.deepcopy(pair) for pair in pool.map(step, copy.deepcopy(made))]
    for there, here in zip(back, made, strict=True):
        before = {n: p.detach().clone() for n, p in here[1].named_parameters()}
        torch.testing.assert_close(results(there), results(step(here)), rtol=0, atol=0)
        moved = dict(here[1].named_parameters())
        assert any(not torch.equal(moved[n], p) for n, p in before.items())
