"""Kernels and the plain formulas that they stand for give the same values and gradients."""

from __future__ import annotations

import importlib.util
import threading

import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import check_gradients_with_graph
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyro_bnn import bayesianize, kernels
from pyro_bnn.compat import Standalone
from pyro_bnn.distributions._joint import Part
from pyro_bnn.kernels import _switch
from pyro_bnn.posteriors._together import distributions
from pyro_bnn.priors import HierarchicalNormal, Normal, ScaleMixture

PRIORS = [
    dist.Normal(0.1, 0.8),
    Normal(0.1, 0.8, learnable_scale="input"),
    ScaleMixture(0.4, 1.0, 0.1),
    HierarchicalNormal("output"),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
def test_guides_train_alike_with_kernels_and_without(kind, prior, monkeypatch):
    # Noise that does not depend on the order: joint draws take that of all weights at once.
    monkeypatch.setattr(torch, "randn", lambda shape, **kwargs: torch.full(shape, 0.7, **kwargs))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, 0.7))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 130), nn.Tanh(), nn.Linear(130, 130), nn.Linear(130, 2))
    net = bayesianize(net, prior, prior).double()
    guide = kind.make(net).double()
    module = Standalone(net, guide)
    x = torch.linspace(-1, 1, 900, dtype=torch.double).view(150, 6)

    def step():
        torch.manual_seed(1)
        module.zero_grad()
        output, kl = module(x)
        (output.square().sum() + kl).backward()
        are_joint = any(
            type(q.base_dist) is Part for q in distributions(guide[name] for name in guide)
        )
        return are_joint, (output, kl, [p.grad for p in module.parameters()])

    with kernels.enabled():
        are_joint, fast = step()
    with kernels.enabled(False):
        are_still_joint, plain = step()
    assert are_joint == kind.is_normal
    assert not are_still_joint
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize(("size", "prior_size"), [(1, 1), (2, 0), (2, 1), (3, 2)])
def test_bound_on_mixtures_has_the_gradients_of_its_formula(size, prior_size):
    torch.manual_seed(0)
    own = [torch.randn(size, 5, dtype=torch.double) for _ in range(3)]
    own = [own[0].log_softmax(0), own[1], own[2].exp()]
    prior = [torch.randn(prior_size, 5, dtype=torch.double) for _ in range(3)]
    prior = [prior[0].log_softmax(0), prior[1], prior[2].exp()] if prior_size else []
    own = [t.requires_grad_() for t in own]

    def f(*own):
        return kernels.summed_mixture_bound(own, prior)

    with kernels.enabled():
        assert type(f(*own).grad_fn).__name__ == "_SummedBoundBackward"
        torch.testing.assert_close(f(*own), kernels.mixture_bound(*own, *prior).sum())
        assert gradcheck(f, own)
        assert gradgradcheck(f, own)
        check_gradients_with_graph(f, own)


@pytest.mark.parametrize("is_on", [False, True])
def test_bound_on_mixtures_has_gradients_for_a_prior_that_is_learned(is_on):
    own = [torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.full((1, 2), 0.5)]
    loc, scale = (torch.full((1, 2), x, requires_grad=True) for x in (0.5, 2.0))
    with kernels.enabled(is_on):
        kl = kernels.summed_mixture_bound(own, [torch.zeros(1, 2), loc, scale])
    by_loc, by_scale = torch.autograd.grad(kl, [loc, scale])
    # Of log s + (0.25 + (m - c)^2) / (2 s^2) for means m of 1 and 2, and c = 0.5.
    torch.testing.assert_close(by_loc, torch.tensor([[-0.125, -0.375]]))
    torch.testing.assert_close(by_scale, torch.tensor([[0.4375, 0.1875]]))


def test_the_setting_holds_in_one_thread_and_ends():
    found = []

    def look():
        found.append(kernels.are_enabled())

    before = kernels.are_enabled()
    with kernels.enabled(not before):
        look()
        with kernels.enabled(before):
            look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert found == [not before, before, before, before]


@pytest.mark.parametrize(("value", "expected"), [("0", False), ("1", True), (None, True)])
def test_the_environment_switches_kernels_off(value, expected, monkeypatch):
    monkeypatch.delenv("PYRO_BNN_KERNELS", raising=False)
    if value is not None:
        monkeypatch.setenv("PYRO_BNN_KERNELS", value)
    spec = importlib.util.spec_from_file_location(_switch.__name__ + "_again", _switch.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.are_enabled() == expected
