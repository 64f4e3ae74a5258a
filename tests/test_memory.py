"""Models that are gone leave nothing behind, and steps leave no cycles of tensors."""

from __future__ import annotations

import copy
import gc
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from pyro.infer import SVI
from pyro.optim import Adam
from torch import nn

from pyro_bnn import bayesianize, compat, to_deterministic
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch, bensemble, to_pyro
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear

pytestmark = pytest.mark.filterwarnings("ignore:the model observes nothing")
EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
SIZE = 17  # which no other tensor has


def count_tensors():
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum(SIZE in x.shape for x in tensors)


def small(kind):
    net = BayesianLinear(SIZE, SIZE)
    return net, kind.make(net)


def deep(kind):
    layers = [layer for _ in range(4) for layer in (nn.Linear(SIZE, SIZE), nn.Tanh())]
    net = bayesianize(nn.Sequential(*layers))
    return net, kind.make(net)


def layers(kind):
    mixed = bayesian_torch.LinearFlipout(SIZE, SIZE), bensemble.BayesianLinear(SIZE, SIZE)
    return WithKL(nn.Sequential(*mixed))


def predictive(net, guide):
    return Predictive(net, guide=guide, num_samples=3)


def loss_of(pair):
    out, kl = pair
    (out.sum() + kl).backward()


def function_model(kind, x):
    net = deep(kind)[0]

    def model(x, y):
        mean = net(x)
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, scale).to_event(1), obs=y)

    SVI(model, kind.make(model), Adam({}), TraceKL_ELBO()).step(x, x)


def pickled(kind, x):
    net, guide = pickle.loads(pickle.dumps(small(kind)))
    net(x)
    Standalone(net, guide)(x)


FORMS = {
    "svi": lambda kind, x: SVI(*small(kind), Adam({}), TraceKL_ELBO()).step(x),
    "elbo": lambda kind, x: TraceKL_ELBO()(*small(kind))(x).backward(),
    "joint": lambda kind, x: TraceKL_ELBO()(*deep(kind))(x).backward(),
    "predictive": lambda kind, x: predictive(*small(kind))(x),
    "standalone": lambda kind, x: loss_of(Standalone(*small(kind))(x)),
    "with_kl": lambda kind, x: loss_of(layers(kind)(x)),
    "to_pyro": lambda kind, x: TraceKL_ELBO()(*to_pyro(layers(kind)))(x).backward(),
    "deepcopy": lambda kind, x: copy.deepcopy(TraceKL_ELBO()(*small(kind)))(x).backward(),
    "pickle": pickled,
    "to_deterministic": lambda kind, x: to_deterministic(*deep(kind))(x),
    "function": function_model,
}


@EACH
@pytest.mark.parametrize("form", FORMS)
def test_models_that_are_dropped(kind, form):
    x = torch.ones(2, SIZE)

    def after_one_more():
        FORMS[form](kind, x)
        gc.collect()
        store = pyro.get_param_store()
        return count_tensors(), len(store), len(store._param_to_name)

    tensors, size, names = after_one_more()
    assert names == size  # the last one's, as after a run of Pyro's guides
    for _ in range(3):
        assert after_one_more() == (tensors, size, names)


def test_many_models_that_are_dropped():
    """Of 200, nothing is left that Python counts."""
    x, store = torch.ones(2, SIZE), pyro.get_param_store()

    def after(cycles):
        for form in ["svi", "elbo", "standalone", "with_kl"] * cycles:
            for kind in GUIDES:
                FORMS[form](kind, x)
        store.clear()
        gc.collect()
        tables = len(store), len(store._param_to_name), len(compat._twin._CLASSES)
        return tables, len(gc.get_objects())

    tables, before = after(1)
    last, objects = after(9)
    assert last == tables
    assert objects - before < 9  # not one for each form and guide, nor for each cycle


def test_names_of_models_that_live():
    """An optimizer saves its state by name, whichever model has the names now."""
    x = torch.ones(2, SIZE)
    optimizers = [Adam({}) for _ in range(2)]
    pairs = [small(GUIDES[0]) for _ in range(2)]
    for pair, optimizer in zip(pairs, optimizers, strict=True):
        SVI(*pair, optimizer, TraceKL_ELBO()).step(x)
    names = set(pyro.get_param_store())
    assert [set(optimizer.get_state()) for optimizer in optimizers] == [names, names]


STEPS = {
    "elbo": lambda kind: (
        lambda elbo, x: elbo(x).backward(),
        TraceKL_ELBO()(*deep(kind)),
    ),
    "standalone": lambda kind: (lambda m, x: loss_of(m(x)), Standalone(*deep(kind))),
    "with_kl": lambda kind: (lambda m, x: loss_of(m(x)), layers(kind)),
    "predictive": lambda kind: (
        lambda p, x: p(x),
        predictive(*deep(kind)),
    ),
}


@EACH
@pytest.mark.parametrize("form", STEPS)
def test_steps_leave_no_cycles(kind, form):
    """Memory that waits for the next garbage collection is many times that of a step."""
    x = torch.ones(2, SIZE)
    step, module = STEPS[form](kind)
    for _ in range(2):
        step(module, x)
    gc.collect()
    gc.disable()
    try:
        before = count_tensors()
        for _ in range(3):
            step(module, x)
        assert count_tensors() == before
    finally:
        gc.enable()
