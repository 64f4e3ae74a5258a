"""Two models of the same structure in one process never touch each other's parameters."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, torch_mlp
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)


class Deterministic(Regression):
    """With each kind of parameter that Pyro has names for."""

    def __init__(self, noise: float | None = None):
        super().__init__(torch_mlp(3, 4, 1), noise)
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
        self.shift = nn.Parameter(torch.zeros(()))
        self.plain = nn.Linear(3, 3)

    def forward(self, x, y=None):
        return super().forward(self.scale * self.plain(x) + self.shift, y)


def pair(kind, make=Deterministic):
    models = [make(), make()]
    return [(m, kind.make(m)) for m in models]


def state(model, guide):
    modules = {"model": model, "guide": guide}.items()
    named = {f"{k}.{name}": p for k, m in modules for name, p in m.named_parameters()}
    return copy.deepcopy(named)


def moved(before, after):
    return {name for name in after if name not in before or (before[name] != after[name]).any()}


@EACH
@pytest.mark.parametrize("trainer", ["pyro.optim", "torch"])
def test_training_one_leaves_the_other(kind, trainer):
    x, y = data()
    (model, guide), (other_model, other_guide) = pair(kind)
    elbo = Trace_ELBO if kind.is_normal else TraceKL_ELBO

    def train(model, guide, steps=3):
        if trainer == "pyro.optim":
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
            return [svi.step(x, y) for _ in range(steps)]
        loss = elbo()(model, guide)
        loss(x, y)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
        return None

    train(model, guide)
    for _ in range(2):
        first, second = state(model, guide), state(other_model, other_guide)
        train(other_model, other_guide)
        assert not moved(first, state(model, guide))
        assert moved(second, state(other_model, other_guide)) == set(
            state(other_model, other_guide)
        )
        second = state(other_model, other_guide)
        train(model, guide)
        assert not moved(second, state(other_model, other_guide))
        assert moved(first, state(model, guide)) == set(state(model, guide))
        # Nor does a model read the other's when it runs by itself.
        model(x)
        other_model(x)
        assert not moved(second, state(other_model, other_guide))


@EACH
def test_same_result_as_alone(kind):
    x, y = data()

    def train(count):
        torch.manual_seed(0)
        (model, guide), (other_model, other_guide) = pair(kind)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
        other = SVI(other_model, other_guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
        losses = []
        for i in range(5):
            torch.manual_seed(i)
            losses.append(svi.step(x, y))
            for _ in range(count):
                other.step(x, y)
        return losses

    alone = train(0)
    pyro.clear_param_store()
    assert train(2) == alone


@EACH
def test_a_copy_and_its_original(kind):
    x, y = data()
    model = Deterministic()
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    svi.step(x, y)
    elbo = copy.deepcopy(TraceKL_ELBO()(model, guide))
    before = state(model, guide)
    other = SVI(elbo.model, elbo.guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    other.step(x, y)
    assert not moved(before, state(model, guide))
    assert moved(before, state(elbo.model, elbo.guide)) == set(before)


@EACH
def test_a_network_trained_with_a_guide_of_pyros_leaves_the_next(kind):
    x, y = data()
    first = Deterministic()
    svi = SVI(first, AutoNormal(first), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x, y)
    second = Deterministic()
    before = copy.deepcopy(dict(second.named_parameters()))
    guide = kind.make(second)
    guide(x, y)
    assert not moved(before, dict(second.named_parameters()))


@EACH
def test_store_cleared_between_steps(kind):
    x, y = data()
    model = Deterministic()
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    svi.step(x, y)
    pyro.clear_param_store()
    before = state(model, guide)
    svi.step(x, y)
    assert moved(before, state(model, guide)) == set(before)


@EACH
def test_saved_store_is_loaded(kind, tmp_path):
    """The way in which Pyro's own examples save what they trained."""
    x, y = data()
    model = Deterministic()
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    for _ in range(3):
        svi.step(x, y)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store", map_location="cpu")
    other_model = Deterministic()
    other = kind.make(other_model)
    other(x, y)
    other_model(x)
    assert not moved(state(model, guide), state(other_model, other))


def test_loaded_store_of_another_shape(tmp_path):
    x, y = data()
    kind = GUIDES[0]
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = kind.make(model)
    SVI(model, guide, pyro.optim.Adam({}), TraceKL_ELBO()).step(x, y)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store", map_location="cpu")
    with pytest.raises(ValueError, match="clear_param_store"):
        kind.make(Regression(bayesian_mlp(3, 5, 1)))(x, y)


@EACH
def test_lists_of_guides(kind):
    x, y = data()

    def make():
        model = Regression(bayesian_mlp(3, 4, 1), noise=None)
        guide = AutoGuideList(model)
        sites = ["net.0.weight", "net.0.bias"]
        guide.append(kind.make(pyro.poutine.block(model, expose=sites)))
        guide.append(kind.make(pyro.poutine.block(model, hide=sites)))
        return model, guide

    (model, guide), (other_model, other_guide) = make(), make()
    for m, g in ((model, guide), (other_model, other_guide)):
        SVI(m, g, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    before, second = state(model, guide), state(other_model, other_guide)
    SVI(other_model, other_guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    assert not moved(before, state(model, guide))
    assert moved(second, state(other_model, other_guide)) == set(second)


@EACH
def test_guide_inside_a_module(kind):
    class Outer(PyroModule):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, y=None):
            return self.inner(x, y)

    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = Outer(kind.make(model))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    svi.step(x, y)
    before = state(model, guide)
    svi.step(x, y)
    assert moved(before, state(model, guide)) == {n for n in before if n.startswith("guide")}


def test_frozen_parameters_stay_frozen():
    x, y = data()
    model = Deterministic()
    model.shift.requires_grad_(False)
    guide = GUIDES[0].make(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    assert not model.shift.requires_grad
    assert model.shift == 0


def test_optimizer_state_by_name():
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = GUIDES[0].make(model)
    optim = pyro.optim.Adam(lambda name: {"lr": 0.0 if "weight" in name else 0.1})
    before = copy.deepcopy(guide.state_dict())
    SVI(model, guide, optim, TraceKL_ELBO()).step(x, y)
    changed = moved(before, guide.state_dict())
    assert changed
    assert all("bias" in name for name in changed)
    assert None not in optim.get_state()


def test_local_parameters_of_pyro():
    x, y = data()
    with pyro.settings.context(module_local_params=True):
        model = Deterministic()
        guide = GUIDES[0].make(model)
        elbo = TraceKL_ELBO()(model, guide)
        elbo(x, y).backward()
        assert all(p.grad is not None for p in elbo.parameters())
    assert not len(pyro.get_param_store())


@EACH
def test_parameters_are_statements_for_handlers(kind):
    x, y = data()
    guide = pair(kind)[0][1]
    guide(x, y)
    prefix = type(guide).__name__ + "."  # Pyro's name of a guide
    names = {prefix + name for name, _ in guide.named_pyro_params()}
    trace = poutine.trace(guide).get_trace(x, y)
    assert set(trace.param_nodes) == names
    parameters = dict(guide.named_parameters())
    store = pyro.get_param_store()
    for name in names:
        value = trace.nodes[name]["value"]
        own = parameters[name.removeprefix(prefix) + "_unconstrained"]
        assert value.unconstrained() is own
        torch.testing.assert_close(value, store[name])
    replaced = {n: torch.full_like(store[n], 7.0) for n in names if n.endswith("bias.loc")}
    values = poutine.substitute(guide, data=replaced)(x, y)
    for name in guide:
        expected = 7.0 if name.endswith("bias") else 0.0
        assert (values[name].mean() - expected).abs() < 2


def test_named_models_keep_their_names():
    model = PyroModule("own")
    model.net = bayesian_mlp(3, 1)
    guide = GUIDES[0].make(model)
    assert set(guide) == {"own.net.0.weight", "own.net.0.bias"}


def test_contexts_pickled_by_0_1_0_load():
    guide = AutoLRT(Regression(bayesian_mlp(3, 4, 1)))
    guide(*data())
    name = b"pyro_bnn._parameter_store\nIsolatedContext\n"
    pickled = pickle.dumps(guide, protocol=0)  # in which names are text
    assert name in pickled
    loaded = pickle.loads(pickled.replace(name, b"pyro_bnn._parameter_store\nOwnParameters\n"))
    for key, value in guide.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)
