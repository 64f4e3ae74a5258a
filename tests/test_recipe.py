"""Training by the recipe: KL warm-up, and learning rates of scales apart from those of means."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch, bensemble
from pyro_bnn.guides import (
    AutoFlipout,
    AutoLRT,
    AutoMixture,
    AutoRadial,
    AutoReparameterization,
    optim_args,
    parameter_groups,
)
from pyro_bnn.infer import KLWarmup, TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.priors import HierarchicalNormal, Normal

EACH = pytest.mark.parametrize("kind", GUIDES)


def names_of(groups, module):
    names = {id(p): name for name, p in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def check_groups(groups, module, lr=0.01, scale_lr=0.1):
    """Each trainable parameter once, scales of posteriors in the group of the second rate."""
    assert [group["lr"] for group in groups] == [lr, scale_lr]
    means, scales = names_of(groups, module)
    expected = [name for name, p in module.named_parameters() if p.requires_grad]
    assert sorted(means + scales) == sorted(expected)
    assert scales == [
        n for n in expected if "posteriors" in n and n.endswith("scale_unconstrained")
    ]
    torch.optim.Adam(groups)


# Groups of parameters.


class Experiment:
    """An object that is no module, with a model."""

    def __init__(self, *, is_listed=False):
        prior = Normal(learnable_scale="input")
        net = bayesian_mlp(3, 4, 1, prior=prior, bias_prior=prior)
        self.net = [net] if is_listed else net

    def __call__(self, x, y):
        net = self.net if isinstance(self.net, nn.Module) else self.net[0]
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    def model(self, x, y):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


def functions(experiment):
    net = experiment.net

    def inner(x, y):
        outputs = torch.stack([net(part) for part in (x,)])
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(outputs[0].squeeze(-1), 0.5), obs=y)

    @functools.wraps(inner)
    def wrapper(*args):
        return inner(*args)

    return {
        "a method": experiment.model,
        "an object": experiment,
        "a function inside": inner,
        "a wrapper": wrapper,
    }


@pytest.mark.parametrize("name", functions(Experiment()))
def test_groups_of_models_that_are_no_modules(name):
    experiment = Experiment()
    guide = AutoLRT(functions(experiment)[name])
    groups = guide.parameter_groups(lr=0.01, scale_lr=0.1)
    found = {id(p) for group in groups for p in group["params"]}
    assert found == {id(p) for p in (*guide.parameters(), *experiment.net.parameters())}


def test_a_global_of_the_name_of_an_attribute_is_no_module_of_the_model():
    def model(x, y):
        mean = config.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    config = Experiment()
    globals()["net"] = bayesian_mlp(2, 1)
    try:
        assert not list(AutoLRT(model))
    finally:
        del globals()["net"]


def test_a_global_of_the_decorator_is_no_module_of_the_model():
    namespace = {"net": bayesian_mlp(3, 1), "functools": functools}
    code = "def wrap(f):\n    return functools.wraps(f)(lambda *args: f(*args))"
    exec(code, namespace)

    def model(x, y):
        return net(x)  # noqa: F821

    assert not list(AutoLRT(namespace["wrap"](model)))


def test_a_global_that_an_inner_function_names_is_a_module_of_the_model():
    def model(x, y):
        outputs = torch.stack([net(part) for part in (x,)])  # noqa: F821
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(outputs[0].squeeze(-1), 0.5), obs=y)

    globals()["net"] = bayesian_mlp(3, 1)
    try:
        assert len(list(AutoLRT(model))) == 2
    finally:
        del globals()["net"]


def test_groups_that_lack_parameters_of_the_loss_are_warned_of_once():
    x, y = data()
    experiment = Experiment(is_listed=True)
    guide = AutoLRT(experiment)
    guide(x, y)
    guide.parameter_groups(lr=0.01, scale_lr=0.1)
    elbo = TraceKL_ELBO()(experiment, guide)
    with torch.no_grad():
        elbo(x, y)
    with pytest.warns(UserWarning, match=r"uses 4 parameters .* not trained") as warned:
        elbo(x, y)
    assert warned[0].filename == __file__
    elbo(x, y)


def guide_list():
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = AutoGuideList(model)
    guide.append(AutoLRT(poutine.block(model, expose=["net.0.weight", "net.0.bias"])))
    guide.append(AutoFlipout(poutine.block(model, expose=["net.2.weight", "net.2.bias"])))
    guide.append(AutoNormal(poutine.block(model, expose=["noise"])))
    return model, guide


def test_rates_of_a_list_of_guides():
    x, y = data()
    model, guide = guide_list()
    guide(x, y)
    elbo = TraceKL_ELBO()(model, guide)
    groups = parameter_groups(guide, lr=0.01, scale_lr=0.1)
    check_groups(groups, elbo)
    elbo(x, y)
    optimizer = pyro.optim.Adam(optim_args(guide, lr=0.01, scale_lr=0.1))
    SVI(model, guide, optimizer, TraceKL_ELBO()).step(x, y)
    rates = {id(p): o.param_groups[0]["lr"] for p, o in optimizer.optim_objs.items()}
    assert rates == {id(p): g["lr"] for g in groups for p in g["params"]}
    for function in (parameter_groups, optim_args):
        with pytest.raises(TypeError, match="`guide`"):
            function(AutoNormal(model), lr=0.01, scale_lr=0.1)
    with pytest.raises(ValueError, match="`scale_lr`"):
        optim_args(guide, lr=0.01, scale_lr=0.0)


@EACH
def test_groups_are_the_same_in_every_form(kind):
    x, y = data()
    net = bayesianize(
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)),
        prior=Normal(learnable_scale=True),
    )
    model = Regression(net, noise=None)
    guide = kind.make(model)
    guide(x, y)
    elbo = TraceKL_ELBO()(model, guide)
    groups = guide.parameter_groups(lr=0.01, scale_lr=0.1)
    check_groups(groups, elbo)
    assert any("noise" in name for name in names_of(groups, elbo)[1])
    module = Standalone(net, guide)
    check_groups(module.parameter_groups(lr=0.01, scale_lr=0.1), module)
    copied = pickle.loads(pickle.dumps(module))
    check_groups(copied.parameter_groups(lr=0.01, scale_lr=0.1), copied)
    arguments = guide.optim_args(lr=0.01, scale_lr=0.1, betas=(0.8, 0.9))
    optimizer = pyro.optim.Adam(arguments)
    SVI(model, guide, optimizer, TraceKL_ELBO()).step(x, y)
    in_pyro = {id(p): o.param_groups[0] for p, o in optimizer.optim_objs.items()}
    assert len(in_pyro) == len(list(elbo.parameters()))
    for group in groups:
        for p in group["params"]:
            assert in_pyro[id(p)]["lr"] == group["lr"]
            assert in_pyro[id(p)]["betas"] == (0.8, 0.9)


def test_models_that_are_functions():
    x, y = data()
    net, head = bayesian_mlp(3, 4), nn.Linear(4, 1)

    def model(x, y=None):
        pyro.module("head", head)
        noise = pyro.sample("noise", dist.HalfCauchy(1.0))
        mean = head(net(x)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    guide = AutoLRT(model)
    guide(x, y)
    groups = guide.parameter_groups(lr=0.01, scale_lr=0.1)
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in [*guide.parameters(), *head.parameters(), *net.parameters()]}
    # `pyro.optim` makes its optimizers when it meets a parameter, however late.
    late = AutoLRT(model)
    optimizer = pyro.optim.Adam(late.optim_args(lr=0.01, scale_lr=0.1))
    SVI(model, late, optimizer, Trace_ELBO()).step(x, y)
    (noise,) = late["noise"].scales().values()
    assert optimizer.optim_objs[noise].param_groups[0]["lr"] == 0.1
    assert optimizer.optim_objs[head.weight].param_groups[0]["lr"] == 0.01


def test_frozen_parameters_are_left_out():
    net = BayesianLinear(3, 2)
    guide = AutoReparameterization(net)
    guide["weight"].scale_unconstrained.requires_grad_(False)
    check_groups(guide.parameter_groups(lr=0.01, scale_lr=0.1), guide)
    guide["bias"].scale_unconstrained.requires_grad_(False)
    (group,) = guide.parameter_groups(lr=0.01, scale_lr=0.1)
    assert group["lr"] == 0.01
    assert len(group["params"]) == 2


def test_groups_of_networks_of_layers():
    net = nn.Sequential(
        bensemble.BayesianLinear(3, 4),
        nn.LayerNorm(4),
        bayesian_torch.LinearFlipout(4, 4),
        bayesian_torch.LSTMRadial(4, 2),
    )
    module = WithKL(net)
    means, scales = names_of(module.parameter_groups(lr=0.01, scale_lr=0.1), module)
    assert sorted(means + scales) == sorted(n for n, _ in module.named_parameters())
    assert scales == [n for n, _ in module.named_parameters() if "rho" in n or "sigma" in n]
    assert scales


def test_groups_before_the_guide_knows_its_sites():
    x, y = data()

    def model(x, y):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("obs", dist.Normal(x.sum(-1), scale).to_event(1), obs=y)

    guide = AutoLRT(model)
    with pytest.raises(ValueError, match=r"no posteriors yet.*call it once, `guide\(\*args\)`"):
        guide.parameter_groups(lr=0.01, scale_lr=0.1)
    guide(x, y)
    assert len(guide.parameter_groups(lr=0.01, scale_lr=0.1)) == 2

    model = Regression(bayesian_mlp(3, 1), noise=None)
    guide = AutoLRT(model)
    guide.parameter_groups(lr=0.01, scale_lr=0.1)
    with pytest.raises(ValueError, match=r"`parameter_groups` was called before.*\['noise'\]"):
        guide(x, y)
    again = AutoLRT(model)
    again(x, y)
    check_groups(again.parameter_groups(lr=0.01, scale_lr=0.1), TraceKL_ELBO()(model, again))
    with pytest.raises(ValueError, match=r"unpickled without its model"):
        pickle.loads(pickle.dumps(again)).parameter_groups(lr=0.01, scale_lr=0.1)


@pytest.mark.parametrize("rates", [(-1.0, 0.1), (0.1, -1.0), (0.0, 0.1), (0.1, math.nan)])
def test_rates_that_are_not_positive(rates):
    net = BayesianLinear(3, 2)
    guide = AutoLRT(net)
    name = "lr" if not rates[0] > 0 else "scale_lr"
    for function in (
        guide.parameter_groups,
        guide.optim_args,
        Standalone(net, guide).parameter_groups,
        WithKL(bensemble.BayesianLinear(3, 2)).parameter_groups,
    ):
        with pytest.raises(ValueError, match=rf"`{name}` .* must be positive"):
            function(lr=rates[0], scale_lr=rates[1])


# Warm-up.


def targets():
    net = BayesianLinear(3, 2)
    guide = AutoLRT(net)
    elbo, module = TraceKL_ELBO(), Standalone(net, guide)
    return {
        "elbo": (elbo, elbo),
        "elbo module": (elbo(net, guide), elbo),
        "standalone": (module, module),
        "compiled": (torch.compile(module, backend="eager"), module),
        "data parallel": (nn.DataParallel(module), module),
        "layers": (lambda m: (m, m))(WithKL(bayesian_torch.LinearFlipout(3, 2))),
    }


@pytest.mark.parametrize("name", targets())
def test_the_warmup_ends_at_one(name):
    given, weighted = targets()[name]
    warmup = KLWarmup(given, steps=7, start=0.3)
    for t in range(7):
        assert weighted.kl_weight == pytest.approx(0.3 + 0.7 * t / 7)
        assert not warmup.is_finished
        assert "not finished" in repr(warmup)
        warmup.step()
    assert weighted.kl_weight == 1
    assert warmup.is_finished
    warmup.step()
    assert weighted.kl_weight == 1
    assert repr(warmup) == "KLWarmup(step 8 of 7, kl_weight=1, finished)"


def test_a_warmup_goes_on_from_its_state():
    elbo, other = TraceKL_ELBO(), TraceKL_ELBO()
    warmup = KLWarmup(elbo, steps=np.int64(10))
    for _ in range(4):
        warmup.step()
    again = KLWarmup(other, steps=3)
    again.load_state_dict(pickle.loads(pickle.dumps(warmup.state_dict())))
    assert other.kl_weight == elbo.kl_weight == 0.4
    for _ in range(6):
        assert not again.is_finished
        again.step()
    assert again.is_finished
    assert other.kl_weight == 1
    state = warmup.state_dict()
    with pytest.raises(ValueError, match="`state_dict` has the entries"):
        warmup.load_state_dict({"num_steps": 3})
    with pytest.raises(TypeError, match="`state_dict`"):
        warmup.load_state_dict(None)
    for bad in ({"steps": 0}, {"num_steps": -1}, {"num_steps": None}, {"start": math.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            warmup.load_state_dict({**state, "kl_weight": 2.0, **bad})
    assert warmup.state_dict() == state
    assert elbo.kl_weight == 0.4


def test_a_cold_posterior_is_named():
    elbo = TraceKL_ELBO(kl_weight=0.2)
    with pytest.raises(ValueError, match=r"has the `kl_weight` 0.2.*pass `kl_weight=0.2`"):
        KLWarmup(elbo, steps=4)
    assert elbo.kl_weight == 0.2
    warmup = KLWarmup(elbo, steps=4, kl_weight=0.2)
    weights = [elbo.kl_weight]
    for _ in range(4):
        warmup.step()
        weights.append(elbo.kl_weight)
    assert weights == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    with pytest.raises(ValueError, match=r"assign 1.0 to it first$"):
        KLWarmup(TraceKL_ELBO(kl_weight=0.0), steps=4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"`steps` \(=0\) must be positive"),
        ({"steps": -5}, ValueError, r"`steps` \(=-5\) must be positive"),
        ({"steps": 10.0}, TypeError, r"`steps` \(=10.0\) must be an integer"),
        ({"steps": math.inf}, TypeError, r"`steps` \(=inf\) must be an integer"),
        ({"steps": True}, TypeError, r"`steps` \(=True\) must be an integer"),
        ({"steps": 3, "start": "0"}, TypeError, r"`start` \(='0'\) must be a number"),
        ({"steps": 3, "kl_weight": "1"}, TypeError, r"`kl_weight` \(='1'\) must be a number"),
        ({"steps": 3, "start": -0.1}, ValueError, r"`start` \(=-0.1\) must be at least 0"),
        ({"steps": 3, "start": 1.0}, ValueError, r"`start` \(=1.0\) .* below the weight"),
        ({"steps": 3, "start": math.nan}, ValueError, r"`start` \(=nan\)"),
        ({"steps": 3, "kl_weight": 0.0}, ValueError, r"`kl_weight` \(=0.0\) must be positive"),
        ({"steps": 3, "kl_weight": 0.5}, ValueError, r"has the `kl_weight` 1.0"),
    ],
)
def test_warmups_that_cannot_be(arguments, error, message):
    elbo = TraceKL_ELBO()
    with pytest.raises(error, match=message):
        KLWarmup(elbo, **arguments)
    assert elbo.kl_weight == 1


@pytest.mark.parametrize("target", [Trace_ELBO(), nn.Linear(3, 2), 1.0])
def test_what_has_no_weight(target):
    with pytest.raises(TypeError, match=r"has no `kl_weight`: give a `TraceKL_ELBO`"):
        KLWarmup(target, steps=3)


@pytest.mark.parametrize("make", ["standalone", "layers", "mean"])
def test_the_weight_scales_the_kl(make):
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    if make == "layers":
        module = WithKL(bayesian_torch.LinearFlipout(3, 2), kl_weight=0.25)
    else:
        net = BayesianLinear(3, 2)
        guide = AutoMixture(net) if make == "mean" else AutoLRT(net)
        module = Standalone(net, guide, sample=make != "mean", kl_weight=0.25)
    kl = module(x)[1]
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.kl_weight == 0.25
        other.kl_weight = 1
        torch.testing.assert_close(0.25 * other(x)[1], kl)
        other.kl_weight = 0
        assert other(x)[1] == 0
        other.kl_weight = 0.25
    assert not any("kl" in name for name in module.state_dict())
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"`kl_weight` .* must be finite and not negative"):
            module.kl_weight = value
    assert module.kl_weight == 0.25


@EACH
def test_without_weight_the_loss_is_that_of_the_data(kind):
    torch.manual_seed(0)
    x, y = data()
    for prior in (Normal(), HierarchicalNormal("input")):
        model = Regression(bayesian_mlp(3, 4, 1, prior=prior))
        guide = kind.make(model)
        elbo = TraceKL_ELBO(kl_weight=0.0)(model, guide)
        with guide.shared_draws():
            torch.manual_seed(1)
            loss = elbo(x, y)
            torch.manual_seed(1)
            trace = pyro.poutine.trace(guide).get_trace(x, y)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace)).get_trace(x, y)
        model_trace.compute_log_prob()
        torch.testing.assert_close(loss, -model_trace.nodes["obs"]["log_prob"].sum())
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in elbo.parameters())


PRIORS = [
    *(HierarchicalNormal(groups) for groups in ("tensor", "input", "output")),
    *(Normal(learnable_scale=groups) for groups in ("entry", "input", "output", True)),
]


@pytest.mark.parametrize("make", [AutoLRT, AutoRadial, AutoMixture])
@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("size", [4, 150])
def test_networks_of_all_priors_compile_whole(make, prior, size):
    torch.manual_seed(0)
    net = bayesian_mlp(size, size, 1, prior=prior, bias_prior=prior)
    module = Standalone(net, make(net))
    x = torch.randn(5, size)
    module(x)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    try:
        kl = compiled(x)[1]
        torch.testing.assert_close(kl, module(x)[1])
        found, expected = (
            torch.autograd.grad(k, [*module.parameters()], allow_unused=True)
            for k in (compiled(x)[1], module(x)[1])
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        torch.compiler.reset()


def test_a_warmup_does_not_compile_again():
    net = bayesian_mlp(3, 4, 1)
    module = Standalone(net, AutoReparameterization(net))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    warmup, x = KLWarmup(compiled, steps=30), torch.randn(5, 3)
    module(x)  # the first call of all has checks of its own
    try:
        for _ in range(31):
            kl = compiled(x)[1]
            torch.testing.assert_close(kl, module(x)[1])
            warmup.step()
        assert module.kl_weight == 1
        assert len(graphs) == 1
    finally:
        torch.compiler.reset()


def test_the_recipe_trains():
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    x, y = data(40)
    model = Regression(bayesian_mlp(3, 8, 1, prior=HierarchicalNormal()), noise=None)
    guide = AutoLRT(model)
    elbo = TraceKL_ELBO()(model, guide)
    elbo(x, y)
    before = elbo(x, y).item()
    optimizer = torch.optim.Adam(guide.parameter_groups(lr=1e-2, scale_lr=3e-2))
    warmup = KLWarmup(elbo, steps=100)
    for _ in range(200):
        optimizer.zero_grad()
        elbo(x, y).backward()
        optimizer.step()
        warmup.step()
    assert warmup.is_finished
    assert elbo(x, y).item() < before - 10
