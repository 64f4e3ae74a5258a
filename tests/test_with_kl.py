"""A network trains in plain torch, in Pyro, and in both by turns."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Regression, data
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch, bensemble, to_pyro
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive, TraceKL_ELBO

NOISE = 0.5
ESTIMATORS = ["Reparameterization", "Flipout", "Radial", "Mixture"]


def network(estimator):
    linear = getattr(bayesian_torch, f"Linear{estimator}")
    return nn.Sequential(linear(3, 8), nn.Tanh(), nn.LayerNorm(8), linear(8, 1))


def lrt():
    return nn.Sequential(bensemble.BayesianLinear(3, 8), nn.Tanh(), bensemble.BayesianLinear(8, 1))


NETS = {name: (lambda name=name: network(name)) for name in ESTIMATORS} | {"LRT": lrt}
EACH = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def train_in_torch(net, x, y, steps):
    whole = WithKL(net)
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        out, kl = whole(x)
        nll = -dist.Normal(out.squeeze(-1), NOISE).log_prob(y).sum()
        (nll + kl).backward()
        optimizer.step()


def in_pyro(net):
    return to_pyro(WithKL(net), partial(Regression, noise=NOISE))


def train_in_pyro(net, x, y, steps):
    model, guide = in_pyro(net)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    for _ in range(steps):
        svi.step(x, y)


def bound(net, x, y):
    model, guide = in_pyro(net)
    torch.manual_seed(7)
    with torch.no_grad():
        return -TraceKL_ELBO(num_particles=100).loss(model, guide, x, y)


@EACH
def test_shares_parameters_and_numbers(make):
    net = make()
    x, _ = data()
    whole = WithKL(net)
    pyro_net, guide = to_pyro(whole)
    assert {id(p) for p in [*pyro_net.parameters(), *guide.parameters()]} == {
        id(p) for p in net.parameters()
    }
    names = {"0.weight", "0.bias", f"{len(net) - 1}.weight", f"{len(net) - 1}.bias"}
    assert set(guide) == names
    kl = whole(x)[1]
    torch.testing.assert_close(Standalone(pyro_net, guide)(x)[1], kl)
    torch.testing.assert_close(torch.tensor(TraceKL_ELBO().loss(pyro_net, guide, x)), kl.detach())
    output = lambda: whole(x)[0].mean().item()
    before = output()
    with torch.no_grad():
        for name, p in guide.named_parameters():
            if name.endswith("bias.loc_unconstrained"):
                p.add_(50.0)
    assert output() > before + 30
    draws = Predictive(pyro_net, guide=guide, num_samples=5, return_sites=["_RETURN"])(x)
    assert draws["_RETURN"].shape == (5, 20, 1)
    assert not any(isinstance(m, PyroModule) for m in net.modules())
    pickle.loads(pickle.dumps(whole))(x)
    copy.deepcopy(whole)(x)


@EACH
def test_half_the_steps_in_torch_and_half_in_pyro(make):
    x, y = data()
    torch.manual_seed(1)
    start = make()
    bounds = {}
    for name, parts in {
        "torch": [(train_in_torch, 200)],
        "Pyro": [(train_in_pyro, 200)],
        "both": [(train_in_torch, 100), (train_in_pyro, 100)],
        "Pyro first": [(train_in_pyro, 100), (train_in_torch, 100)],
    }.items():
        net = copy.deepcopy(start)
        pyro.clear_param_store()
        for train, steps in parts:
            train(net, x, y, steps)
        bounds[name] = bound(net, x, y)
    first = bound(start, x, y)
    gained = bounds["torch"] - first
    assert gained > 50
    assert all(
        value == pytest.approx(bounds["torch"], abs=0.05 * gained) for value in bounds.values()
    )


def test_a_function_and_other_latent_variables():
    x, y = data()
    net = network("Flipout")
    pyro_net, guide = to_pyro(WithKL(net))

    def model(x, y=None):
        mean = pyro_net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, NOISE), obs=y)

    with pytest.raises(ValueError, match="NaN in the model's arguments"):
        guide(x * float("nan"))
    before = [p.detach().clone() for p in net.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    assert svi.step(x, y) > 0
    assert all((p != q).any() for p, q in zip(net.parameters(), before, strict=True))
    assert Predictive(model, guide=guide, num_samples=3)(x)["obs"].shape == (3, 20)

    def with_noise(pyro_net):
        def model(x, y=None):
            mean, noise = pyro_net(x).squeeze(-1), pyro.sample("noise", dist.HalfNormal(1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

        return model

    model, guide = to_pyro(WithKL(net), with_noise)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    assert svi.step(x, y) > 0
    assert set(guide) == {"0.weight", "0.bias", "3.weight", "3.bias", "noise"}


class Lines(nn.Module):
    """A network that is written for the tuples of bayesian-torch."""

    def __init__(self):
        super().__init__()
        self.lstm = bayesian_torch.LSTMFlipout(3, 4)
        self.conv = bayesian_torch.Conv1dRadial(4, 2, 3, padding=1)
        self.head = bayesian_torch.LinearMixture(2, 1)

    def forward(self, x):
        x, _, kl = self.lstm(x)
        x, kl_conv = self.conv(x.transpose(1, 2))
        x, kl_head = self.head(x.mean(-1))
        return x, kl + kl_conv + kl_head


def test_a_network_that_adds_kls_itself():
    net, x = Lines(), torch.randn(5, 6, 3)
    out, kl = net(x)
    assert out.shape == (5, 1)
    torch.testing.assert_close(kl, bayesian_torch.get_kl_loss(net))
    pyro_net, guide = to_pyro(net)
    out, zero = pyro_net(x)
    assert out.shape == (5, 1)
    assert zero == 0
    assert set(guide) == {
        *(f"lstm.{w}_{s}_l0" for w in ("weight", "bias") for s in ("ih", "hh")),
        *(f"{layer}.{w}" for layer in ("conv", "head") for w in ("weight", "bias")),
    }
    loss = TraceKL_ELBO().loss(pyro_net, guide, x)
    assert loss == pytest.approx(kl.item(), rel=1e-5)
    (out, zero), kl = Standalone(pyro_net, guide)(x)
    assert kl.item() == pytest.approx(loss, rel=1e-5)
    guide.to(torch.float64)
    assert net.head.mu_weight.dtype == torch.float64


@EACH
def test_plain_torch_needs_no_pyro(make):
    net = WithKL(make())
    x, y = data()
    train_in_torch(net.net, x, y, 2)
    net.eval()(x)
    assert not len(pyro.get_param_store())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[1], net(x)[1])
    torch.compiler.reset()


@pytest.mark.parametrize("name", NETS)
def test_compiles_before_anything_has_run(name):
    code = f"""
import torch
from test_with_kl import NETS
from pyro_bnn.compat import WithKL
net = WithKL(NETS["{name}"]())
torch.compile(net, fullgraph=True, backend="aot_eager")(torch.ones(4, 3))
"""
    folder = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": str(folder.parent)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)


class Apart(nn.Module):
    """Its layers are on two devices."""

    # The meta device has shapes and no numbers, which is enough to tell where tensors are.
    other = "cuda" if torch.cuda.is_available() else "meta"

    def __init__(self, first, second):
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x):
        return self.second(self.first(x).to(self.other))


def test_layers_on_two_devices():
    x = torch.randn(4, 3)
    linear = bayesian_torch.LinearFlipout
    out, kl = WithKL(Apart(linear(3, 5), linear(5, 2).to(Apart.other)))(x)
    assert out.device.type == kl.device.type == Apart.other
    bnn = bayesianize(Apart(nn.Linear(3, 5), nn.Linear(5, 2)))
    guide = AutoLRT(bnn)
    bnn.second.to(Apart.other)
    guide.posteriors.second.to(Apart.other)
    out, kl = Standalone(bnn, guide)(x)
    assert out.device.type == kl.device.type == Apart.other


def test_priors_go_along():
    net = bayesian_torch.LinearReparameterization(3, 2, prior_mean=0.5, prior_variance=4.0)
    pyro_net, guide = to_pyro(net)
    prior = pyro_net.weight_prior().base_dist
    assert prior.mean.unique().tolist() == [0.5]
    assert prior.stddev.unique().tolist() == [2.0]
    expected = kl_divergence(guide["weight"].distribution(), pyro_net.weight_prior())
    expected = expected + kl_divergence(guide["bias"].distribution(), pyro_net.bias_prior())
    torch.testing.assert_close(net.kl_loss(), expected)
    with pytest.raises(ValueError, match=r"no layers of `pyro_bnn.compat`"):
        to_pyro(nn.Linear(3, 2))


def test_shared_layers_count_once():
    layer = bayesian_torch.LinearFlipout(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(4, 3)
    torch.testing.assert_close(WithKL(net)(x)[1], layer.kl_loss())
    pyro_net, guide = to_pyro(WithKL(net))
    assert pyro_net[0] is pyro_net[2]
    assert len(list(guide)) == 2
    assert TraceKL_ELBO().loss(pyro_net, guide, x) == pytest.approx(layer.kl_loss().item())


@EACH
def test_wrapping_leaves_the_network_as_it_is(make):
    net, x = make(), torch.randn(4, 3)
    layer = net[0]
    states = [dict(vars(module)) for module in net.modules()]
    before = type(layer(x))
    whole = WithKL(net)
    to_pyro(whole)
    whole(x)
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert compiled(x)[0].shape == (4, 1)
    torch.compiler.reset()
    assert type(layer(x)) is before
    assert [dict(vars(module)) for module in net.modules()] == states


@pytest.mark.parametrize("layer", [bayesian_torch.LinearFlipout, bensemble.BayesianLinear])
def test_a_layer_that_is_used_twice_is_drawn_once(layer):
    layer = layer(3, 3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return torch.stack([self.layer(x), self.layer(x)])

    net = Twice()
    x = torch.randn(4, 3)
    (first, again), _ = WithKL(net)(x)
    torch.testing.assert_close(first, again)
    (second, _), _ = WithKL(net)(x)
    assert not torch.equal(first, second)


def test_a_layer_that_takes_the_place_of_another_counts():
    net, x = nn.Sequential(bensemble.BayesianLinear(3, 2), nn.Tanh()), torch.randn(4, 3)
    whole = WithKL(net)
    whole(x)
    net[0] = bensemble.BayesianLinear(3, 5, init_sigma=0.3)
    groups = whole.parameter_groups(lr=1e-2, scale_lr=3e-2)
    assert {id(p) for p in groups[1]["params"]} == {id(net[0].w_rho), id(net[0].b_rho)}
    out, kl = whole(x)
    assert out.shape == (4, 5)
    torch.testing.assert_close(kl, net[0].kl_divergence())


def test_sample_statements_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = bensemble.BayesianLinear(3, 2)

        def forward(self, x):
            return self.layer(x) + pyro.sample("noise", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="samples `noise` in its forward"):
        WithKL(Net())(torch.ones(4, 3))


def test_evaluation_takes_the_means_of_layers_that_do():
    net, x = nn.Sequential(*(bensemble.BayesianLinear(3, 3) for _ in range(2))), torch.randn(4, 3)
    whole = WithKL(net)
    whole.eval()
    out, kl = whole(x)
    torch.testing.assert_close(out, net(x))
    assert kl.item() == pytest.approx(sum(layer.kl_divergence().item() for layer in net), rel=1e-5)
    net[1].train()
    first, second = whole(x)[0], whole(x)[0]
    assert not torch.equal(first, second)


def test_evaluation_goes_on_drawing_layers_that_do():
    """Those of bayesian-torch draw in both modes."""
    net, x = nn.Sequential(bayesian_torch.LinearFlipout(3, 3)).eval(), torch.randn(4, 3)
    whole = WithKL(net)
    assert not torch.equal(whole(x)[0], whole(x)[0])


@pytest.mark.parametrize("wrap", [WithKL, lambda net: Standalone(*to_pyro(net))])
def test_pickles_of_the_first_version_have_the_weight_one(wrap):
    """Where wrappers had no weight, and a module of other name."""
    whole, x = wrap(nn.Sequential(bensemble.BayesianLinear(3, 2))), torch.ones(4, 3)
    state = whole.__getstate__() | {"_buffers": {}}
    del state["_kl_weight"]
    old = object.__new__(type(whole))
    old.__setstate__(state)
    assert old.kl_weight == 1
    torch.testing.assert_close(old(x)[1], whole(x)[1])
    assert importlib.import_module("pyro_bnn.compat._worlds").WithKL is WithKL
