from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, normal_prior, torch_mlp, within
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import bayesianize, priors, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.estimators import Draw
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
NETS = pytest.mark.parametrize("net", [bayesian_mlp, torch_mlp])


@EACH
@NETS
def test_output_and_kl(kind, net):
    net = net(3, 4, 1)
    guide = kind.make(net)
    module = Standalone(net, guide)
    x, _ = data()
    out, kl = module(x)
    assert out.shape == (20, 1)
    assert kl.shape == ()
    expected = 0.0
    for name in guide:
        owner = net[int(name[0])]
        prior = owner._pyro_samples[name[2:]]
        prior = prior if hasattr(prior, "sample") else prior(owner)
        expected = expected + kl_divergence(guide[name].distribution(), prior)
    torch.testing.assert_close(kl, expected)
    assert not torch.equal(module(x)[0], module(x)[0])
    assert not len(pyro.get_param_store())


class Pair(NamedTuple):
    function: Callable
    factor: float


class Keeps(nn.Module):
    """Calls its layer through what it keeps of it."""

    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.loop: list = [how]
        self.loop.append(self.loop)
        if how == "method of the layer":
            self.call = self.layer.forward
        elif how == "own method":
            self.call = self.helper
        elif how == "partial":
            self.call = functools.partial(self.scaled, factor=1.0)
        elif how == "module in a partial":
            self.call = functools.partial(nn.Linear.forward, self.layer)
        elif how == "list of modules":
            self.kept = [self.layer]
            self.call = self.first_of_kept
        elif how == "containers":
            self.kept = {"both": [(self.layer, Pair(self.layer.forward, 1.0))]}
            self.call = self.mean_of_kept
        elif how == "closure":
            self.call = lambda x: self.layer(x)
        elif how == "container of closures":
            self.kept = {"both": [(lambda x: self.layer(x), Pair(lambda x: self.layer(x), 1.0))]}
            self.kept["itself"] = self.kept
            self.call = self.mean_of_kept
        elif how == "recursive closure":
            layer, forward = self.layer, self.layer.forward

            def call(x, times=2):
                return call(x, times - 1) if times else (layer(x) + forward(x)) / 2

            self.call = call
        else:  # as libraries that wrap a forward do
            self.layer.forward = functools.partial(self.layer.forward)
            self.call = self.helper

    def helper(self, x):
        return self.layer(x)

    def first_of_kept(self, x):
        return self.kept[0](x)

    def mean_of_kept(self, x):
        [(function, pair)] = self.kept["both"]
        return (function(x) + pair.factor * pair.function(x)) / 2

    def scaled(self, x, factor):
        return factor * self.layer(x)

    def forward(self, x):
        return self.call(x)


@EACH
@pytest.mark.parametrize(
    "how",
    [
        "method of the layer",
        "own method",
        "partial",
        "module in a partial",
        "list of modules",
        "containers",
        "wrapped forward",
    ],
)
def test_methods_that_a_module_keeps_see_the_draws(kind, how):
    net = bayesianize(Keeps(how))
    module = Standalone(net, kind.make(net, init_scale=1e-6))
    x, _ = data()
    mean = {name: module.guide[name].median() for name in module.guide}
    expected = nn.functional.linear(x, mean["layer.weight"], mean["layer.bias"])
    for given in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(given(x)[0], expected, rtol=0, atol=1e-4)
    module(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.guide.parameters())


@EACH
@pytest.mark.parametrize("how", ["closure", "recursive closure", "container of closures"])
def test_closures_over_a_module_see_the_draws(kind, how):
    given = Keeps(how)
    net = bayesianize(given)
    module = Standalone(net, kind.make(net, init_scale=1e-6))
    x, _ = data()
    with torch.no_grad():  # of the network that was given, which a copy has nothing to do with
        given.layer.weight.fill_(torch.nan)
    mean = {name: module.guide[name].median() for name in module.guide}
    expected = nn.functional.linear(x, mean["layer.weight"], mean["layer.bias"])
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-4)
    module(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.guide.parameters())
    deterministic = to_deterministic(net, module.guide)
    torch.testing.assert_close(deterministic(x), expected, rtol=0, atol=1e-4)
    trace = poutine.trace(poutine.condition(net, data=mean)).get_trace(x)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], expected, rtol=0, atol=1e-4)


def test_variables_of_a_closure_stay_its_own():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)
            calls = 0

            def call(x):
                nonlocal calls
                calls += 1
                return calls, self.layer(x)

            self.call = call

        def forward(self, x):
            return self.call(x)

    net = bayesianize(Counts())
    module = Standalone(net, AutoLRT(net))
    assert [module(torch.ones(2, 3))[0][0] for _ in range(3)] == [1, 2, 3]


class Flagged(nn.Module):
    doubles = False

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return (2 if self.doubles else 1) * self.linear(x)


def test_attributes_that_a_class_has_a_default_for():
    net = bayesianize(Flagged())
    module = Standalone(net, AutoReparameterization(net), sample=False)
    x, _ = data()
    once = module(x)[0]
    net.doubles = True
    torch.testing.assert_close(module(x)[0], 2 * once)


@EACH
def test_parameters_are_those_of_the_guide(kind):
    net = bayesian_mlp(3, 4, 1)
    guide = kind.make(net)
    module = Standalone(net, guide)
    assert {id(p) for p in module.parameters()} == {id(p) for p in guide.parameters()}
    with_biases = torch_mlp(3, 4, 1)
    both = Standalone(with_biases, kind.make(with_biases))
    assert {id(p) for p in both.net.parameters()} <= {id(p) for p in both.parameters()}
    out, kl = both(data()[0])
    (out.square().sum() + kl).backward()
    assert all((p.grad != 0).all() for p in both.parameters())


@EACH
def test_several_forward_passes_before_one_backward(kind):
    net = bayesian_mlp(3, 4, 1, dtype=torch.float64)
    module = Standalone(net, kind.make(net))
    x, y = data(dtype=torch.float64)

    def losses():
        for seed, rows in enumerate((slice(0, 5), slice(5, 20), slice(2, 9))):
            torch.manual_seed(seed)
            out, kl = module(x[rows])
            yield (out.squeeze(-1) - y[rows]).square().sum() + kl

    together = torch.autograd.grad(sum(list(losses())), list(module.parameters()))
    one_by_one = [torch.autograd.grad(loss, list(module.parameters())) for loss in losses()]
    for i, gradient in enumerate(together):
        torch.testing.assert_close(gradient, sum(g[i] for g in one_by_one))


@EACH
def test_gradients_against_finite_differences(kind):
    if kind.name == "AutoMixture":
        return  # its draws are not smooth in the parameters, only their distribution is
    net = bayesian_mlp(3, 2, 1, dtype=torch.float64)
    module = Standalone(net, kind.make(net))
    x, _ = data(4, dtype=torch.float64)
    parameters = dict(module.named_parameters())

    def f(*values):
        torch.manual_seed(0)
        by_name = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, by_name, (x,))

    assert torch.autograd.gradcheck(f, tuple(parameters.values()))


@EACH
def test_an_ensemble_is_one_vectorised_call(kind):
    modules = [Standalone(net, kind.make(net)) for net in (bayesian_mlp(3, 4, 1) for _ in "abc")]
    x, _ = data()
    states = torch.func.stack_module_state(modules)

    def call(parameters, buffers):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x,))

    for module in modules:
        module.sample = False
    output, kl = torch.vmap(call)(*states)
    for i, module in enumerate(modules):
        torch.testing.assert_close((output[i], kl[i]), module(x))
    modules[0].sample = True
    output, again = torch.vmap(call, randomness="different")(*states)
    torch.testing.assert_close(again, kl)
    assert torch.isfinite(output).all()


@EACH
def test_sample_or_mean(kind):
    net = bayesian_mlp(3, 4, 1)
    module = Standalone(net, kind.make(net), sample=False)
    x, _ = data()
    for mode in (True, False):
        module.train(mode)
        module.sample = False
        torch.testing.assert_close(module(x)[0], module(x)[0])
        means = {n: module.guide[n].distribution().mean for n in module.guide}
        expected = pyro.poutine.condition(net, means)(x)
        torch.testing.assert_close(module(x)[0], expected)
        module.sample = True
        assert not torch.equal(module(x)[0], module(x)[0])


@EACH
def test_shared_draws(kind):
    net = bayesian_mlp(3, 4, 1)
    module = Standalone(net, kind.make(net, init_scale=0.3))
    x = torch.ones(6, 3)
    with module.guide.shared_draws():
        out, _ = module(x)
    torch.testing.assert_close(out, out[:1].expand(6, 1))
    assert torch.allclose(*(module(x)[0][i] for i in (0, 1))) <= kind.is_shared


@EACH
@NETS
def test_compiles_in_one_graph(kind, net):
    torch._dynamo.reset()
    torch.distributions.kl._KL_MEMOIZE.clear()  # as in a new process
    net = net(3, 4, 1)
    module = Standalone(net, kind.make(net, init_scale=0.3))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, _ = data()
    compiled(x)
    torch.testing.assert_close(compiled(x)[1], module(x)[1])
    out = torch.stack([compiled(x)[0] for _ in range(300)])
    expected = torch.stack([module(x)[0] for _ in range(300)])
    error = (out.var(0) / 300 + expected.var(0) / 300).sqrt()
    assert ((out.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    for _ in range(2):
        module.zero_grad()
        out, kl = compiled(x)
        (out.square().sum() + kl).backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
        assert all((p.grad != 0).all() for p in module.parameters())
    before = compiled(x)[1]
    with torch.no_grad():
        for parameter in module.guide.parameters():
            parameter.add_(0.5)
    assert compiled(x)[1] != before
    torch.testing.assert_close(compiled(x)[1], module(x)[1])
    module.sample = False
    torch.testing.assert_close(compiled(x)[0], module(x)[0])


@EACH
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_and_pickles(kind, copied):
    net = bayesian_mlp(3, 4, 1)
    module = Standalone(net, kind.make(net))
    x, _ = data()
    module(x)
    other = copied(module)
    other.sample = module.sample = False
    torch.testing.assert_close(other(x), module(x))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert not torch.equal(other(x)[0], module(x)[0])


@EACH
def test_state_dict_round_trip(kind):
    net, other_net = bayesian_mlp(3, 4, 1), bayesian_mlp(3, 4, 1)
    module = Standalone(net, kind.make(net), sample=False)
    other = Standalone(other_net, kind.make(other_net), sample=False)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x, _ = data()
    torch.testing.assert_close(other(x), module(x))


@EACH
def test_moves_with_net_and_guide(kind):
    net = bayesian_mlp(3, 4, 1)
    module = Standalone(net, kind.make(net)).double()
    out, kl = module(data(dtype=torch.float64)[0])
    assert out.dtype == kl.dtype == torch.float64


@EACH
def test_same_network_in_torch_and_in_pyro(kind):
    """The loss of a mini-batch is that of SVI, in expectation."""
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=0.5)
    guide = kind.make(model, init_scale=0.2)
    module = Standalone(model.net, guide)
    assert {id(p) for p in module.parameters()} == {id(p) for p in guide.parameters()}

    def loss():
        out, kl = module(x)
        return kl - dist.Normal(out.squeeze(-1), 0.5).log_prob(y).sum()

    with torch.no_grad():
        standalone = torch.stack([loss() for _ in range(1_000)])
        svi = torch.tensor([TraceKL_ELBO().loss(model, guide, x, y) for _ in range(500)])
    error = (standalone.var() / 1_000 + svi.var() / 500).sqrt()
    assert (standalone.mean() - svi.mean()).abs() < 5 * error

    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    samples = Predictive(model, guide=guide, num_samples=200)(x)["obs"]
    assert (samples.mean(0) - y).square().mean() < 0.7


class Everything(PyroModule):
    """Hooks, buffers, dropout, a module used twice, constrained and hierarchical parameters."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = PyroModule[nn.Dropout](0.5)
        self.inner = torch_mlp(3, 3)
        self.tau = PyroSample(dist.HalfNormal(1.0))
        self.weight = PyroSample(lambda self: dist.Normal(0, self.tau).expand([1, 3]).to_event(2))
        self.gain = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)
        self.factor = 1.0
        self.register_buffer("offset", torch.tensor(0.0))

    def forward(self, x, *, double=False):
        x = self.inner(self.inner(self.norm(x)))
        y = self.gain * nn.functional.linear(self.drop(x), self.weight) + self.offset
        return self.factor * (2 * y if double else y)


def test_a_users_own_module():
    net = Everything()
    module = Standalone(net, AutoReparameterization(net), sample=False)
    x, _ = data()
    out, kl = module(x)
    (out.sum() + kl).backward()
    assert net.gain_unconstrained.grad != 0
    assert net.norm.running_mean.abs().sum() > 0
    assert not torch.equal(module(x)[0], out)  # dropout
    net.eval()  # on the network itself
    fixed = module(x)[0]
    torch.testing.assert_close(module(x)[0], fixed)
    torch.testing.assert_close(module(x, double=True)[0], 2 * fixed)
    net.factor = 3.0
    torch.testing.assert_close(module(x)[0], 3 * fixed)
    net.factor = 1.0
    net.offset = torch.tensor(1.0)
    torch.testing.assert_close(module(x)[0], fixed + 1)
    seen = []
    handle = net.inner[0].register_forward_hook(lambda *args: seen.append(1))
    module(x)
    assert len(seen) == 2
    handle.remove()


def test_kl_of_a_hierarchical_prior_is_estimated_at_the_draw():
    net = Everything()
    net.eval()
    module = Standalone(net, AutoReparameterization(net, init_scale=0.3))
    x, _ = data()
    with torch.no_grad():
        kls = torch.stack([module(x)[1] for _ in range(4_000)])
    q = {name: module.guide[name].distribution() for name in module.guide}
    tau = q["tau"].sample((20_000,))
    expected = q["tau"].log_prob(tau) - dist.HalfNormal(1.0).log_prob(tau)
    weight = q["weight"].base_dist
    expected = expected + kl_divergence(weight, dist.Normal(0.0, tau.view(-1, 1, 1))).sum((1, 2))
    inner = net.inner[0]._pyro_samples["weight"]
    expected = expected + kl_divergence(q["inner.0.weight"], inner)
    error = (kls.var() / len(kls) + expected.var() / len(expected)).sqrt()
    assert (kls.mean() - expected.mean()).abs() < 5 * error


def test_kl_of_a_hierarchical_prior_is_taken_at_the_means():
    net = Everything()
    net.eval()
    module = Standalone(net, AutoReparameterization(net, init_scale=0.3), sample=False)
    q = {name: module.guide[name].distribution() for name in module.guide}
    tau = module.guide["tau"].center()
    expected = q["tau"].log_prob(tau) - dist.HalfNormal(1.0).log_prob(tau)
    expected = expected + kl_divergence(q["weight"].base_dist, dist.Normal(0.0, tau)).sum()
    inner = net.inner[0]._pyro_samples["weight"]
    expected = expected + kl_divergence(q["inner.0.weight"], inner)
    torch.testing.assert_close(module(data()[0])[1], expected)


@EACH
def test_a_deterministic_function_of_a_draw(kind):
    """It sees the same draw as the rest of the network, not one of the prior."""

    class Squared(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = normal_prior(1, 3)
            self.twice = PyroSample(lambda self: 2 * self.weight)

        def forward(self, x):
            return self.twice - 2 * self.weight, self.twice

    net = Squared()
    module = Standalone(net, kind.make(net, init_scale=1e-6))
    (difference, double), kl = module(torch.ones(2, 3))
    assert (difference == 0).all()
    torch.testing.assert_close(double, 2 * module.guide.median()["weight"], atol=1e-4, rtol=0)
    assert torch.isfinite(kl)


def test_learnable_prior():
    net = bayesian_mlp(3, 1, prior=priors.Normal(0.0, 1.0, learnable_scale=True))
    module = Standalone(net, AutoLRT(net))
    module(data()[0])[1].backward()
    assert net[0].weight_prior.scale_unconstrained.grad != 0


def test_tied_weights_count_once():
    layer = bayesian_mlp(3, 3)[0]
    twice = PyroModule[nn.Sequential](layer, nn.Tanh(), layer)
    once = Standalone(twice, AutoLRT(twice))
    names = list(once.guide)
    assert len(names) == 2
    x, _ = data()
    expected = sum(
        kl_divergence(once.guide[n].distribution(), getattr(layer, n.split(".")[1] + "_prior")())
        for n in names
    )
    torch.testing.assert_close(once(x)[1], expected)


def test_a_draw_outlives_the_call_for_nobody():
    net = bayesian_mlp(3, 1)
    module = Standalone(net, AutoLRT(net))
    with pytest.raises(ValueError, match="features"):
        module(torch.ones(2, 5))
    twin = module._lasting[-1]._modules["0"]
    assert not any(isinstance(v, Draw) for v in twin.__dict__.values())


def test_rejects():
    net = bayesian_mlp(3, 1)
    with pytest.raises(TypeError, match="guide"):
        Standalone(net, AutoNormal(net))
    with pytest.raises(ValueError, match="no random weights"):
        Standalone(nn.Linear(3, 1), AutoLRT(net))
    with pytest.raises(ValueError, match="no posteriors"):
        Standalone(bayesian_mlp(3, 4, 1), AutoLRT(net))

    class Sampling(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = normal_prior(1, 3)

        def forward(self, x):
            return nn.functional.linear(x, self.weight) + pyro.sample("z", dist.Normal(0.0, 1.0))

    sampling = Sampling()
    with pytest.raises(ValueError, match="`z`"):
        Standalone(sampling, AutoLRT(sampling))(torch.ones(2, 3))


def test_moments_of_outputs():
    net = bayesian_mlp(3, 1, bias=False)
    module = Standalone(net, AutoLRT(net, init_scale=0.3))
    x, _ = data()
    with torch.no_grad():
        out = torch.stack([module(x)[0] for _ in range(4_000)])
    q = module.guide["0.weight"].base()
    assert within(out, nn.functional.linear(x, q.mean))
    mean = nn.functional.linear(x, q.mean)
    assert within((out - mean).square(), nn.functional.linear(x**2, q.variance))
