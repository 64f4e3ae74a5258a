"""Activation checkpoints: a recomputation sees the draws of the first computation."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from kinds import GUIDES
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.poutine import replay, trace
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import pyro_bnn
from pyro_bnn._recomputation import Call
from pyro_bnn.compat import Standalone, WithKL, bensemble
from pyro_bnn.compat.bayesian_torch import Conv1dFlipout, LinearFlipout, LinearReparameterization
from pyro_bnn.estimators import Flipout
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.posteriors import _together
from pyro_bnn.posteriors._together import distributions
from pyro_bnn.priors import Normal

MODES = [True, False]  # with reentrance, and without


class Checkpointed(nn.Module):
    """Part of a network, whose activations are recomputed, or not (None)."""

    def __init__(self, part, mode, **kwargs):
        super().__init__()
        self.part, self.mode, self.kwargs = part, mode, kwargs

    def forward(self, *args):
        if self.mode is None:
            return self.part(*args)
        return checkpoint(self.part, *args, use_reentrant=self.mode, **self.kwargs)


class Tied(nn.Module):
    """Uses one layer twice, between dropouts that show whether random numbers are in step."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.drop = nn.Linear(3, 4), nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.first(x)).tanh()
        return self.drop(self.twice(self.drop(self.twice(x)).tanh()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.drop = nn.GRU(3, 4), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.rnn(x.view(len(x), 1, 3).expand(-1, 5, -1))[0][:, -1])


class Embedded(nn.Module):
    def __init__(self, size=9):
        super().__init__()
        self.table, self.drop, self.out = nn.Embedding(size, 3), nn.Dropout(0.5), nn.Linear(3, 4)

    def forward(self, x):
        rows = torch.arange(len(x)) % 4
        return self.out(self.drop(self.table(rows)) * self.drop(self.table(rows + 1)) + x)


class Rows(Embedded):
    """Of a table so large that only the rows in use are drawn."""

    def __init__(self):
        super().__init__(3000)


def convolutions():
    parts = nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Dropout(0.5), nn.Flatten()
    return nn.Sequential(*parts)


def network(part, mode, **kwargs):
    torch.manual_seed(0)
    return nn.Sequential(Checkpointed(part, mode, **kwargs), nn.Tanh(), nn.Linear(4, 1))


def model_of(net):
    def model(x):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.ones(len(x)))

    return model


def svi_step(elbo):
    return lambda net, model, guide, x: elbo.loss_and_grads(model, guide, x)


def by_module(net, model, guide, x):
    TraceKL_ELBO(num_particles=2)(model, guide)(x).backward()


def several_losses(net, model, guide, x):
    elbo = TraceKL_ELBO()(model, guide)
    losses = [elbo(x) for _ in range(3)]
    losses[1].backward()
    (losses[2] + losses[0]).backward()


def alone(net, model, guide, x):
    module = Standalone(net, guide)
    (first, kl), (second, _) = module(x), module(2 * x)
    ((first * second).sum() + kl).backward()


FORMS = {
    "svi": svi_step(TraceKL_ELBO(num_particles=2)),
    "pyro": svi_step(Trace_ELBO(num_particles=2)),
    "mean-field": svi_step(TraceMeanField_ELBO()),
    "module": by_module,
    "losses": several_losses,
    "standalone": alone,
}


def gradients(net, guide, form, x):
    model = model_of(net)
    pyro.clear_param_store()
    torch.manual_seed(1)
    guide = guide(model)
    x = x.clone().requires_grad_()
    guide(x)
    torch.manual_seed(3)
    form(net, model, guide, x)
    parameters = [*guide.named_parameters(), *net.named_parameters(prefix="net")]
    return {"x": x.grad} | {name: p.grad for name, p in parameters}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


PARTS = [Recurrent, Embedded, Rows, convolutions]
CASES = [(Tied, form) for form in FORMS] + [(p, f) for p in PARTS for f in ("svi", "standalone")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("part", "form"), CASES)
def test_gradients_are_those_without_checkpoints(part, kind, form, mode):
    x, part = torch.randn(6, 3), part()
    expected, found = (
        gradients(pyro_bnn.bayesianize(network(part, m)), kind.make, FORMS[form], x)
        for m in (None, mode)
    )
    assert_same(found, expected)
    assert all(value is None or value.abs().sum() > 0 for value in found.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["svi", "standalone"])
def test_gradients_of_one_weight(form, mode):
    x, init = torch.ones(4, 1), lambda site: torch.ones(1, 1)
    net = pyro_bnn.bayesianize(Checkpointed(nn.Linear(1, 1, bias=False), mode))

    def model(x):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", 4):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.full((4,), 10.0))

    guide = AutoReparameterization(model, init_loc_fn=init, init_scale=1e-6)
    x.requires_grad_()
    if form == "standalone":
        (0.5 * (Standalone(net, guide)(x)[0] - 10).square().sum()).backward()
    else:
        TraceKL_ELBO(kl_weight=0).loss_and_grads(model, guide, x)
    # 4 (w x - y) x and (w x - y) w
    assert guide["part.weight"].loc_unconstrained.grad.item() == pytest.approx(-36, abs=1e-3)
    torch.testing.assert_close(x.grad, torch.full((4, 1), -9.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
def test_random_numbers_that_are_not_preserved_are_kept(kind, mode):
    x, part = torch.randn(6, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    expected, found = (
        gradients(
            pyro_bnn.bayesianize(network(part, m, preserve_rng_state=False)),
            kind.make,
            FORMS["svi"],
            x,
        )
        for m in (None, mode)
    )
    assert_same(found, expected)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # of the inner, at first
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
def test_checkpoints_inside_checkpoints_and_two_of_them(kind, mode):
    def build(mode):
        torch.manual_seed(0)
        inner = Checkpointed(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), mode)
        outer = Checkpointed(nn.Sequential(nn.Linear(3, 3), inner, nn.Tanh()), mode)
        return nn.Sequential(outer, Checkpointed(nn.Linear(3, 4), mode), nn.Tanh(), nn.Linear(4, 1))

    x = torch.randn(6, 3)
    for form in ("svi", "standalone"):
        expected, found = (
            gradients(pyro_bnn.bayesianize(build(m)), kind.make, FORMS[form], x)
            for m in (None, mode)
        )
        assert_same(found, expected)


class Again(nn.Module):
    """Uses one layer before a checkpoint, twice in it, and in another one."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.mode, self.out = nn.Linear(3, 4), mode, nn.Linear(4, 1)
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def inner(self, x):
        return self.drop(self.layer(self.drop(self.layer(x)).tanh()))

    def forward(self, x):
        x = self.layer(self.first(x).tanh())
        for part in (self.inner, self.layer):
            x = part(x) if self.mode is None else checkpoint(part, x, use_reentrant=self.mode)
        return self.out(x)


class Apart(Again):
    """Reads a weight outside of a call of its layer."""

    def inner(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        return self.drop(F.linear(x, weight, bias) / weight.norm())


class SameInput(Again):
    """Applies a layer to one input inside and outside of a checkpoint."""

    def forward(self, x):
        x = self.first(x).tanh()
        part = lambda x: self.drop(self.layer(x).tanh()) * self.layer(x)
        inner = part(x) if self.mode is None else checkpoint(part, x, use_reentrant=self.mode)
        return self.out(self.layer(x) + inner)


class Decoded(nn.Module):
    """Looks rows of a large table up in checkpoints, and decodes by the whole of it in between."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.table, self.drop = nn.Linear(3, 4), nn.Embedding(3000, 4), nn.Dropout(0.5)
        self.mode, self.decoder = mode, nn.Linear(4, 3000, bias=False)
        self.decoder.weight = self.table.weight

    def forward(self, x):
        inner, rows = lambda rows: self.drop(self.table(rows)), torch.arange(len(x)) % 4
        part = inner
        if self.mode is not None:
            part = lambda rows: checkpoint(inner, rows, use_reentrant=self.mode)
        decoded = self.drop(self.decoder(self.first(x) + part(rows)))
        return (decoded.mean(1) + part(rows + 2).sum(1)).unsqueeze(1)


@pytest.mark.parametrize("form", ["svi", "pyro", "mean-field", "standalone"])
@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("network", [Again, Apart, SameInput, Decoded])
def test_weights_with_learned_scales_that_are_used_again(network, kind, form):
    def build(mode):
        torch.manual_seed(0)
        return pyro_bnn.bayesianize(network(mode), prior=Normal(0, 1, learnable_scale=True))

    x = torch.randn(6, 3)
    expected, found = (gradients(build(m), kind.make, FORMS[form], x) for m in (None, False))
    assert_same(found, expected)


PRODUCTS = torch.ops.aten.addmm, torch.ops.aten.mul, torch.ops.aten.convolution
RANDOM = torch.ops.aten.randn, torch.ops.aten.randint, torch.ops.aten.native_dropout


class Whole(nn.Module):
    """Reads a weight as a whole, too, and draws numbers itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x) * self.layer.weight.norm() * torch.randn(4)


@pytest.mark.parametrize("saved", [PRODUCTS, RANDOM], ids=["products", "random"])
@pytest.mark.parametrize("form", ["svi", "standalone"])
@pytest.mark.parametrize(
    "guide",
    [*(kind.make for kind in GUIDES), partial(AutoRadial, estimator=Flipout())],
    ids=[*(kind.name for kind in GUIDES), "radial flipout"],
)
@pytest.mark.parametrize("part", [Tied, Embedded, Whole, convolutions])
def test_selective_checkpoints_find_each_operation_again(part, guide, form, saved):
    def policy(ctx, operation, *args, **kwargs):
        is_saved = operation.overloadpacket in saved
        return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE

    options = {"context_fn": partial(create_selective_checkpoint_contexts, policy)}
    x, part = torch.randn(6, 3), part()
    nets = [network(part, None), network(part, False, **options)]
    learned = Normal(0, 1, learnable_scale=True)
    expected, found = (
        gradients(pyro_bnn.bayesianize(net, prior=learned), guide, FORMS[form], x) for net in nets
    )
    assert_same(found, expected)


@pytest.mark.parametrize("guide", [AutoReparameterization, AutoFlipout, AutoLRT])
def test_weights_inside_and_outside_of_checkpoints(guide):
    class Net(nn.Module):
        def __init__(self, layer, mode):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.mode, self.out = layer, mode, nn.Linear(4, 1)

        def forward(self, x):
            first = self.layer(x).tanh()
            if self.mode is None:
                return self.out(self.layer(first))
            return self.out(checkpoint(self.layer, first, use_reentrant=self.mode))

    layer, x = nn.Linear(4, 4), torch.randn(6, 4)
    nets = [pyro_bnn.bayesianize(Net(layer, mode)) for mode in (None, False, True)]
    expected, *found = (gradients(net, guide, FORMS["svi"], x) for net in nets)
    for each in found:
        assert_same(each, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["svi", "pyro", "standalone"])
@pytest.mark.parametrize("kind", ["normal", "radial"])
def test_noise_whose_graph_is_made_after_a_checkpoint(kind, form, mode, monkeypatch):
    """As that of large weights, which are drawn one by one, when they are first used."""
    monkeypatch.setattr(_together, "_MIN_JOINT", 100)
    guide = {"normal": AutoFlipout, "radial": partial(AutoRadial, estimator=Flipout())}[kind]
    layer, x = nn.Linear(4, 4), torch.randn(6, 4)

    def build(mode):
        torch.manual_seed(0)
        return nn.Sequential(Checkpointed(layer, mode), nn.Tanh(), layer, nn.Linear(4, 1))

    expected, found = (
        gradients(pyro_bnn.bayesianize(build(m)), guide, FORMS[form], x) for m in (None, mode)
    )
    assert_same(found, expected)


@pytest.mark.parametrize("modes", [(True, None), (True, True)])
def test_covariance_without_a_graph_is_refused(modes):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.uses = nn.ModuleList(Checkpointed(self.layer, mode) for mode in modes)

        def forward(self, x):
            return self.uses[1](self.uses[0](x).tanh())

    net = pyro_bnn.bayesianize(Net())
    out, _ = Standalone(net, AutoLRT(net))(torch.randn(3, 4, requires_grad=True))
    with pytest.raises(ValueError, match="use_reentrant=False"):
        out.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_sites_of_handwritten_modules(mode):
    class Layer(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroSample(dist.HalfNormal(torch.ones(())))
            # With reentrance, what makes a prior in there has no graph.
            scale = lambda self: 1 if mode else self.scale
            weight = lambda self: dist.Normal(0, scale(self)).expand([3]).to_event(1)
            self.weight = PyroSample(weight)
            self.doubled = PyroSample(lambda self: 2 * self.weight)

        def forward(self, x):
            return self.scale * torch.tanh(x @ self.weight + (x @ self.doubled).square())

    class Net(PyroModule):
        def __init__(self, layer, mode):
            super().__init__()
            self.layer, self.mode = layer, mode

        def forward(self, x):
            if self.mode is None:
                return self.layer(x)
            return checkpoint(self.layer, x, use_reentrant=self.mode)

    x = torch.randn(6, 3)
    for form in ("svi", "pyro", "module"):
        expected, found = (
            gradients(Net(Layer(), m), AutoReparameterization, FORMS[form], x) for m in (None, mode)
        )
        assert_same(found, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    "layer",
    [LinearReparameterization, LinearFlipout, bensemble.BayesianLinear],
    ids=lambda layer: layer.__name__,
)
def test_layers_that_own_their_posteriors(layer, num_layers, mode):
    x = torch.randn(6, 4)

    def run(mode):
        torch.manual_seed(1)
        parts = [m for _ in range(num_layers) for m in (layer(4, 4), nn.Dropout(0.5), nn.Tanh())]
        net = WithKL(nn.Sequential(layer(4, 4), Checkpointed(nn.Sequential(*parts), mode)))
        inputs = x.clone().requires_grad_()
        out, kl = net(inputs)
        (out.square().sum() + kl).backward()
        return {"x": inputs.grad} | {name: p.grad for name, p in net.named_parameters()}

    assert_same(run(mode), run(None))


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_called_twice(mode):
    layer, x = Conv1dFlipout(2, 2, 1), torch.randn(3, 2, 4)

    def run(mode):
        torch.manual_seed(1)
        inputs = x.clone().requires_grad_()
        out, kl = WithKL(Checkpointed(nn.Sequential(layer, nn.Tanh(), layer), mode))(inputs)
        layer.zero_grad()
        (out.square().sum() + kl).backward()
        return {"x": inputs.grad} | {name: p.grad.clone() for name, p in layer.named_parameters()}

    assert_same(run(mode), run(None))


def test_unknown_values_are_refused():
    net = pyro_bnn.bayesianize(Checkpointed(nn.Linear(3, 1), False))
    model, x = model_of(net), torch.ones(4, 3, requires_grad=True)
    guide = AutoLRT(model)
    guide(x)
    losses = [Trace_ELBO()(model, guide)(x) for _ in range(2)]
    with pytest.raises(ValueError, match="TraceKL_ELBO"):
        sum(losses).backward()


def test_values_do_not_outlive_a_step():
    net = pyro_bnn.bayesianize(Checkpointed(nn.Linear(3, 1), False))
    model = model_of(net)
    guide = AutoReparameterization(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
    for _ in range(3):
        svi.step(torch.ones(4, 3, requires_grad=True))
    assert not any(call.is_alive for call in net._pyro_context._calls)


def test_samples_that_are_kept_do_not_slow_down_later_ones(monkeypatch):
    net = pyro_bnn.bayesianize(nn.Linear(3, 1))
    guide, x = AutoLRT(net), torch.ones(4, 3)
    looks = []
    is_alive = property(lambda call, alive=Call.is_alive: looks.append(0) or alive.fget(call))
    monkeypatch.setattr(Call, "is_alive", is_alive)
    kept = [trace(replay(net, trace(guide).get_trace(x))).get_trace(x) for _ in range(200)]
    assert len(looks) < 3 * len(kept)  # not each time at all that there are


def test_a_whole_step_may_be_recomputed():
    net = pyro_bnn.bayesianize(nn.Linear(3, 1))
    model = model_of(net)
    guide = AutoLRT(model)
    x = torch.randn(4, 3, requires_grad=True)
    guide(x)
    grads = []
    for recomputed in (False, True):
        guide.zero_grad()
        torch.manual_seed(1)
        elbo = TraceKL_ELBO()(model, guide)
        loss = checkpoint(elbo, x, use_reentrant=False) if recomputed else elbo(x)
        loss.backward()
        grads.append({name: p.grad.clone() for name, p in guide.named_parameters()})
    assert_same(grads[1], grads[0])


def test_scales_of_small_weights_have_a_graph_whoever_asks_first():
    net = pyro_bnn.bayesianize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    posteriors = distributions(AutoLRT(net)[name] for name in AutoLRT(net))
    with torch.no_grad():
        scales = [q.base_dist.scale for q in posteriors]
    assert all(scale.requires_grad for scale in scales)
