"""Training that goes on from a pickle or a checkpoint is the training that was interrupted."""

from __future__ import annotations

import copy
import io
import pickle

import pyro
import pytest
import torch
from kinds import GUIDES
from models import Regression, data
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone
from pyro_bnn.infer import Predictive, TraceKL_ELBO

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)


def network():
    """With deterministic parameters, running statistics and random numbers of its own."""
    layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)
    return bayesianize(nn.Sequential(*layers), where="last_layer")


def make(kind, noise=None):
    model = Regression(network(), noise=noise)
    return model, kind.make(model)


def parameters(*modules):
    pairs = [(f"{i}.{n}", p) for i, m in enumerate(modules) for n, p in m.named_parameters()]
    return {name: p.detach().clone() for name, p in pairs}


def state(*modules):
    return copy.deepcopy([m.state_dict() for m in modules])


def saved(objects):
    file = io.BytesIO()
    torch.save(objects, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"pickle": lambda o: pickle.loads(pickle.dumps(o)), "save": saved, "copy": copy.deepcopy}


@EACH
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("form", ["pair", "svi", "elbo", "pyro"])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_copies_train_all_of_their_parameters(kind, how, form, steps_before):
    """While the originals are alive, and have the names in Pyro's store."""
    x, y = data()
    model, guide = make(kind)
    loss = Trace_ELBO() if form == "pyro" and kind.is_normal else TraceKL_ELBO()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
    for _ in range(steps_before):
        svi.step(x, y)
    if form == "elbo":
        elbo = COPIES[how](loss(model, guide))
        other_model, other = elbo.model, elbo.guide
    elif form == "svi":
        copied = COPIES[how](svi)
        other_model, other = copied.model, copied.guide
    else:
        other_model, other = COPIES[how]((model, guide))
    first, second = parameters(model, guide), parameters(other_model, other)
    assert first.keys() == second.keys()
    if form == "elbo":
        elbo(x, y)
        optimizer = torch.optim.Adam(elbo.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            elbo(x, y).backward()
            optimizer.step()
    else:
        if form != "svi":
            copied = SVI(other_model, other, pyro.optim.Adam({"lr": 0.1}), loss)
        for _ in range(3):
            copied.step(x, y)
    assert all(torch.equal(p, first[n]) for n, p in parameters(model, guide).items())
    after = parameters(other_model, other)
    assert "1.posteriors.noise.loc_unconstrained" in after
    assert [n for n, p in after.items() if n in second and torch.equal(p, second[n])] == []


def test_a_part_is_copied_without_its_root():
    model, _ = make(GUIDES[0])
    for copied in COPIES.values():
        assert copied(model.net)._pyro_context.root is None
        assert copied(model)._pyro_context.root is not None


def run(kind, form, model, guide, optimizer, x, y):
    if form == "svi":
        return SVI(model, guide, optimizer, TraceKL_ELBO()).step(x, y)
    if form == "elbo":
        loss = TraceKL_ELBO()(model, guide)(x, y)
    else:
        out, kl = Standalone(model.net, guide)(x)
        loss = (out.squeeze(-1) - y).square().sum() + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def optimizer_of(form, model, guide):
    if form == "svi":
        return pyro.optim.Adam({"lr": 0.1})
    return torch.optim.Adam([*model.parameters(), *guide.parameters()], 0.1)


@EACH
@pytest.mark.parametrize("form", ["svi", "elbo", "standalone"])
def test_resumed_is_uninterrupted_bit_for_bit(kind, form):
    x, y = data()
    noise = None if form == "svi" else 0.5
    model, guide = make(kind, noise)
    optimizer = optimizer_of(form, model, guide)
    for _ in range(2):
        run(kind, form, model, guide, optimizer, x, y)
    states = state(model, guide)
    is_pyro = form == "svi"
    of_optimizer = copy.deepcopy(optimizer.get_state() if is_pyro else optimizer.state_dict())
    generator = torch.get_rng_state()
    losses = [run(kind, form, model, guide, optimizer, x, y) for _ in range(3)]

    pyro.clear_param_store()
    resumed, other = make(kind, noise)
    optimizer = optimizer_of(form, resumed, other)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    (optimizer.set_state if is_pyro else optimizer.load_state_dict)(of_optimizer)
    torch.set_rng_state(generator)
    assert [run(kind, form, resumed, other, optimizer, x, y) for _ in range(3)] == losses
    before, after = state(model, guide), state(resumed, other)
    for one, two in zip(before, after, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@EACH
def test_first_step_counts_one_batch(kind):
    x, y = data()
    model, guide = make(kind)
    expected = 0.1 * model.net[0](x).mean(0)
    SVI(model, guide, pyro.optim.Adam({}), TraceKL_ELBO()).step(x, y)
    assert model.net[1].num_batches_tracked == 1
    torch.testing.assert_close(model.net[1].running_mean, expected)


class Replacing(nn.Module):
    """Puts new buffers in the place of old ones, and is in no module that the model refers to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        self.count = self.count + 1
        self.last = x.detach()
        return x


def test_dry_run_leaves_what_a_module_keeps():
    x, y = data()
    hidden = [Replacing()]
    net = network()
    model = lambda x, y=None: Regression.forward(shell, hidden[0](x), y)
    shell = Regression(net, noise=0.5)
    guide = GUIDES[0].make(model)
    generator = torch.get_rng_state()
    guide(x, y)
    assert hidden[0].count == 0
    assert hidden[0].last is None
    torch.set_rng_state(generator)
    first = guide(x, y)
    torch.set_rng_state(generator)
    again = GUIDES[0].make(model)
    again.load_state_dict(guide.state_dict())
    torch.set_rng_state(generator)
    for name, value in again(x, y).items():
        assert torch.equal(value, first[name])


@EACH
def test_first_prediction_after_a_load_is_the_second(kind):
    x, y = data()
    model, guide = make(kind)
    SVI(model, guide, pyro.optim.Adam({}), TraceKL_ELBO()).step(x, y)
    resumed, other = make(kind)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(guide.state_dict())
    resumed.eval()
    predictive = Predictive(resumed, guide=other, num_samples=3)

    def predict():
        pyro.set_rng_seed(0)
        return predictive(x)

    first, second = predict(), predict()
    assert all(torch.equal(first[name], second[name]) for name in first)
