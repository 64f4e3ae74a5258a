"""Parameters of sites that only a run reveals reach an optimizer, or an error says why not."""

from __future__ import annotations

import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Regression, bayesian_mlp
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch.nn.parallel import DistributedDataParallel

from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO

ELBOS = pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO])


def problem(size=200):
    x = torch.linspace(-1, 1, size).unsqueeze(-1)
    y = x.squeeze(-1) + 0.1 * torch.randn(size)
    model = Regression(bayesian_mlp(1, 1), noise=None)
    return model, AutoLRT(model), x, y


def step(loss, optimizer, *args):
    optimizer.zero_grad()
    loss(*args).backward()
    optimizer.step()


def state(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@ELBOS
def test_an_optimizer_built_before_the_first_call_raises_at_its_step(elbo):
    model, guide, x, y = problem()
    module = elbo()(model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    loss = module(x, y)
    loss.backward()
    before = state(guide)
    for _ in range(2):  # not once only
        with pytest.raises(ValueError, match=r"posteriors\.noise.*call `guide\(\*args\)`"):
            optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in guide.named_parameters())
    # The remedy: all exist now.
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(500):
        step(module, optimizer, x, y)
    assert guide["noise"].median().item() == pytest.approx(0.1, rel=0.2)


def test_an_optimizer_of_something_else_is_left_alone():
    model, guide, x, y = problem()
    other = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([other], lr=0.5)
    TraceKL_ELBO()(model, guide)(x, y).backward()
    other.square().backward()
    optimizer.step()
    assert other.item() == 0


def test_evaluation_in_between_does_not_hide_it():
    model, guide, x, y = problem()
    module = TraceKL_ELBO()(model, guide)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    with torch.no_grad():
        module(x, y)
    with pytest.raises(ValueError, match="built before"):
        step(module, optimizer, x, y)


def test_what_an_optimizer_is_given_later_counts():
    model, guide, x, y = problem()
    module = TraceKL_ELBO()(model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    module(x, y)
    optimizer.add_param_group({"params": list(guide["noise"].parameters())})
    before = state(guide)
    step(module, optimizer, x, y)
    assert not any(torch.equal(p, before[name]) for name, p in guide.named_parameters())


def test_two_optimizers_may_share_the_parameters():
    model, guide, x, y = problem()
    module = TraceKL_ELBO()(model, guide)
    weights = torch.optim.Adam(module.parameters(), lr=0.02)
    module(x, y)
    noise = torch.optim.Adam(guide["noise"].parameters(), lr=0.02)
    before = state(guide)
    step(module, weights, x, y)
    noise.step()
    assert not any(torch.equal(p, before[name]) for name, p in guide.named_parameters())


def test_sites_of_a_loaded_state_are_as_new():
    model, guide, x, y = problem()
    guide(x, y)
    fresh = AutoLRT(model)
    module = TraceKL_ELBO()(model, fresh)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    fresh.load_state_dict(guide.state_dict())
    with pytest.raises(ValueError, match=r"posteriors\.noise"):
        step(module, optimizer, x, y)


def test_parameters_of_the_model_that_a_run_makes():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = bayesian_mlp(1, 1)

        def forward(self, x, y):
            if not hasattr(self, "noise"):
                self.noise = PyroParam(torch.tensor(1.0), dist.constraints.positive)
            mean = self.net(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, self.noise), obs=y)

    _, _, x, y = problem()
    model = Model()
    module = TraceKL_ELBO()(model, AutoLRT(model))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    with pytest.raises(ValueError, match="noise_unconstrained"):
        step(module, optimizer, x, y)


def test_who_does_not_train_them_is_left_alone():
    """SVI makes optimizers as it needs them; in plain torch the noise has no gradient."""
    model, guide, x, y = problem()
    standalone = Standalone(model.net, guide)
    optimizer = torch.optim.Adam(standalone.parameters(), lr=0.02)
    guide(x, y)
    optimizer.zero_grad()
    output, kl = standalone(x)
    ((output.squeeze(-1) - y).square().sum() + kl).backward()
    optimizer.step()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceKL_ELBO())
    before = state(guide)
    svi.step(x, y)
    assert not any(torch.equal(p, before[name]) for name, p in guide.named_parameters())
    optimizer.step()  # the noise has a gradient now, but an optimizer, too


def test_nothing_is_kept_alive():
    model, guide, x, y = problem()
    module = TraceKL_ELBO()(model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    module(x, y)
    assert optimizer._optimizer_step_pre_hooks
    parts = optimizer.param_groups[0]["params"]
    gc.collect()
    gc.disable()
    try:
        del optimizer
        found = [x for x in gc.get_objects() if issubclass(type(x), torch.optim.Adam)]
        assert not any(x.param_groups[0]["params"] is parts for x in found)
    finally:
        gc.enable()


def test_ddp_knows_all_parameters(process_group):
    model, guide, x, y = problem()
    ddp = DistributedDataParallel(TraceKL_ELBO()(model, guide))
    with pytest.raises(ValueError, match=r"\['noise'\].*ranks drift.*before it is wrapped"):
        ddp(x, y)
    assert "noise" not in set(guide)
    known = AutoLRT(model)
    known(x, y)
    saved = known.state_dict()
    with pytest.raises(ValueError, match=r"\['noise'\].*ranks drift"):
        guide.load_state_dict(saved)
    ddp = DistributedDataParallel(TraceKL_ELBO()(model, known))
    ddp(x, y).backward()
    assert all(p.grad is not None for p in known.parameters())
