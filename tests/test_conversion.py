"""Networks are converted where they are meant to be, and nothing else about them changes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES, PRIORS
from models import Regression, bayesian_mlp, data
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_mean
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_digits
from torch import nn

from pyro_bnn import BNN, bayesianize, likelihoods, summary, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoReparameterization, init_to_fraction
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.nn import BayesianConv2d, BayesianEmbedding, BayesianLinear, BayesianLSTM
from pyro_bnn.priors import FanInNormal, Laplace, Normal, Pretrained

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)


class Net(nn.Module):
    """A network with an embedding tied to its decoder, and a block that is used twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.norm = nn.LayerNorm(4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.again = self.block
        self.scale = nn.Parameter(torch.ones(4))
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.embed.weight

    def forward(self, index):
        x = self.norm(self.embed(index)).mean(1)
        return self.decode(self.again(self.block(x)) * self.scale)


X = torch.tensor([[1, 0, 3], [2, 5, 6]])
ALL = ["scale", "embed.weight", "block.0.weight", "block.0.bias", "decode.bias"]
NORMS = ["norm.weight", "norm.bias", "block.1.weight", "block.1.bias"]


def sites(net):
    return [name for name, node in poutine.trace(net).get_trace(X).nodes.items() if "fn" in node]


def is_norm(name, module):
    return isinstance(module, nn.LayerNorm)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ALL),
        ("*", ALL),
        (nn.Linear, ["embed.weight", "block.0.weight", "block.0.bias", "decode.bias"]),
        (nn.Embedding, ["embed.weight"]),
        (nn.LayerNorm, ["norm.weight", "norm.bias"]),
        ((nn.LayerNorm, nn.BatchNorm1d), NORMS),
        ("last_layer", ["embed.weight", "decode.bias"]),
        ("decode", ["embed.weight", "decode.bias"]),
        ("decode.weight", ["embed.weight"]),
        ("block.0.weight", ["block.0.weight"]),
        ("again.0.weight", ["block.0.weight"]),
        ("block", ["block.0.weight", "block.0.bias"]),
        ("block.*", ["block.0.weight", "block.0.bias"]),
        ("block.1", ["block.1.weight", "block.1.bias"]),
        ("norm", ["norm.weight", "norm.bias"]),
        ("*.bias", ["block.0.bias", "decode.bias"]),
        ("scale", ["scale"]),
        (["scale", nn.Embedding], ["scale", "embed.weight"]),
        (is_norm, ["norm.weight", "norm.bias"]),
        (lambda name, module: True, [*ALL, *NORMS]),
    ],
)
def test_selection(where, expected):
    net = Net()
    converted = bayesianize(net, where=where)
    assert set(AutoReparameterization(converted)) == set(expected)
    parameters = {name for name, _ in converted.named_parameters()}
    assert parameters == {name for name, _ in net.named_parameters()} - set(expected)


class NormalLinear(nn.Linear):
    """Its class is none of the normalisation layers, for all its name."""


class MyRMSNorm2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def test_normalisation_layers_are_known_by_their_names():
    net = nn.ModuleDict({"a": NormalLinear(3, 3), "b": MyRMSNorm2d()})
    assert list(AutoLRT(bayesianize(net))) == ["a.weight", "a.bias"]


def test_the_last_layer_may_have_the_weight_of_the_first():
    net = Net()
    net.decode.bias = None
    assert list(AutoLRT(bayesianize(net, where="last_layer"))) == ["embed.weight"]


def test_selection_by_a_parameter_or_a_module():
    net = Net()
    assert list(AutoLRT(bayesianize(net, where=net.decode.bias))) == ["decode.bias"]
    assert list(AutoLRT(bayesianize(net, where=net.scale))) == ["scale"]
    assert set(AutoLRT(bayesianize(net, where=net.block))) == {"block.0.weight", "block.0.bias"}
    assert list(AutoLRT(bayesianize(net, where=[net.norm, net.scale]))) == [
        "scale",
        "norm.weight",
        "norm.bias",
    ]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("decoder", ValueError, "'decoder', which fits none of the parameters"),
        (nn.Conv2d, ValueError, "Conv2d.*fits none"),
        (torch.ones(2), ValueError, "a tensor, which fits none"),
        (nn.Linear(1, 1), ValueError, "fits none"),
        (lambda name, module: False, ValueError, "fits none"),
        (3, TypeError, "`where` has 3: give a class"),
        (dist.Normal, TypeError, "give a class of modules"),
        ([nn.Linear, 3], TypeError, "`where` has 3"),
    ],
)
def test_selects_nothing(where, error, message):
    net = Net()
    with pytest.raises(error, match=message):
        bayesianize(net, where=where, inplace=True)
    assert type(net) is Net


@pytest.mark.parametrize("net", [nn.ReLU(), nn.LayerNorm(3), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_select(net):
    with pytest.raises(ValueError, match="`net` has no parameters to convert"):
        bayesianize(net)


def test_shared_weights_are_one_site_with_one_kl():
    net = bayesianize(Net()).eval()
    assert net.block is net.again
    guide = AutoReparameterization(net)
    trace = poutine.trace(net).get_trace(X)
    assert list(trace.stochastic_nodes) == list(dict.fromkeys(trace.stochastic_nodes))
    assert set(trace.stochastic_nodes) == set(ALL)
    kl = sum(
        torch.distributions.kl_divergence(guide[n].distribution(), trace.nodes[n]["fn"])
        for n in ALL
    )
    assert Standalone(net, guide)(X)[1].item() == pytest.approx(kl.item())
    loss = TraceKL_ELBO().loss(net, guide, X)
    assert loss == pytest.approx(kl.item())


def test_the_draw_of_a_shared_weight_reaches_all_of_its_places():
    net = bayesianize(Net()).eval()
    values = AutoReparameterization(net, init_scale=0.5)(X)
    other = Net().eval()
    other.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        for name, value in values.items():
            other.get_parameter(name).copy_(value)
    torch.testing.assert_close(poutine.condition(net, values)(X), other(X))


def test_nothing_else_changes():
    net = Net().double()
    net.train()
    net.block.eval()
    net.scale.requires_grad_(False)
    net.note = {"a": [1, 2]}
    net.register_buffer("offset", torch.arange(3))
    calls = []
    net.block[0].register_forward_hook(lambda module, args, output: calls.append(module))
    net.decode.register_forward_pre_hook(lambda module, args: calls.append(module))
    modes = {name: module.training for name, module in net.named_modules()}
    children = dict(net.named_modules(remove_duplicate=False))
    converted = bayesianize(net, inplace=True)
    assert converted is net
    assert isinstance(net, Net)
    assert isinstance(net.block[0], nn.Linear)
    after = dict(net.named_modules(remove_duplicate=False))
    assert all(after[name] is module for name, module in children.items())
    assert all(after[name].training is mode for name, mode in modes.items())
    assert net.note == {"a": [1, 2]}
    assert net.offset.equal(torch.arange(3))
    assert isinstance(net.scale, nn.Parameter)
    assert not net.scale.requires_grad
    assert net(X).dtype == torch.float64
    assert calls == [net.block[0], net.block[0], net.decode]
    guide = AutoLRT(net)
    assert {p.dtype for p in guide.parameters()} == {torch.float64}


def test_frozen_parameters_stay_frozen_and_equal():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    before = copy.deepcopy(net[0].state_dict())
    model = Regression(bayesianize(net))
    x, y = data()
    for guide in (AutoLRT(model), AutoNormal(model)):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(3):
            svi.step(x, y)
    assert list(AutoLRT(model)) == ["net.2.weight", "net.2.bias"]
    assert all(torch.equal(model.net[0].state_dict()[n], value) for n, value in before.items())
    assert not any(p.requires_grad for p in model.net[0].parameters())
    with pytest.raises(ValueError, match=r"frozen, \['0.weight', '0.bias'\]: call `requires_grad_"):
        bayesianize(net, where="0")
    assert set(AutoLRT(bayesianize(net, where=nn.Linear))) == {"2.weight", "2.bias"}


def test_deterministic_parameters_train():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model = Regression(bayesianize(net))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert set(before) == {"net.1.weight", "net.1.bias"}
    x, y = data()
    svi = SVI(model, AutoLRT(model), pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    svi.step(x, y)
    assert all((p != before[name]).any() for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Linear(3, 2), torch.randn(5, 3)),
        (nn.Conv2d(1, 2, 3), torch.randn(5, 1, 4, 4)),
        (nn.LSTM(3, 2, batch_first=True), torch.randn(5, 4, 3)),
        (nn.Embedding(5, 2), torch.randint(5, (4, 2))),
        (nn.Bilinear(3, 2, 4), None),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_root_layer_is_like_a_nested_one(net, x):
    inputs = (torch.randn(5, 3), torch.randn(5, 2)) if x is None else (x,)
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    root = bayesianize(net)
    nested = bayesianize(nn.Sequential(net))
    assert list(AutoFlipout(root)) == list(values)
    assert list(AutoFlipout(nested)) == [f"0.{name}" for name in values]
    assert type(root) is type(nested[0])
    expected = net(*inputs)
    first = lambda out: out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(first(poutine.condition(root, values)(*inputs)), first(expected))


def test_classes():
    class Mine(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for made, layer, plain in [
        (nn.Linear(2, 2), BayesianLinear, nn.Linear),
        (nn.Conv2d(2, 2, 1), BayesianConv2d, nn.Conv2d),
        (nn.LSTM(2, 2), BayesianLSTM, nn.LSTM),
        (nn.Embedding(2, 2), BayesianEmbedding, nn.Embedding),
        (Mine(2, 2), BayesianLinear, Mine),
    ]:
        converted = bayesianize(made)
        assert isinstance(converted, layer)
        assert isinstance(converted, type(made))
        assert type(to_deterministic(converted, AutoLRT(converted))) is plain
    doubled = bayesianize(Doubled(2, 2))
    assert not isinstance(doubled, BayesianLinear)
    values = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    assert poutine.condition(doubled, values)(torch.ones(1, 2)).tolist() == [[4.0, 4.0]]


class PickledLinear(nn.Linear):
    pass


def test_copies_and_pickles():
    net = bayesianize(
        nn.Sequential(PickledLinear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.GRU(4, 2))
    )
    net.eval()
    x = torch.randn(5, 3)
    values = {name: q.median() for name, q in ((n, AutoLRT(net)[n]) for n in AutoLRT(net))}
    expected = poutine.condition(net, values)(x)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert [type(m) for m in other.modules()] == [type(m) for m in net.modules()]
        torch.testing.assert_close(poutine.condition(other, values)(x)[0], expected)
        assert list(AutoLRT(other)) == list(values)


def test_priors():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Conv1d(8, 4, 1), nn.LSTM(4, 4))
    converted = bayesianize(net, prior=FanInNormal(), bias_prior=Laplace(0.0, 0.2))
    assert converted[0].weight_prior().base_dist.scale[0, 0].item() == pytest.approx(3**-0.5)
    assert isinstance(converted[0].bias_prior().base_dist, dist.Laplace)
    assert isinstance(converted[3].bias_ih_l0_prior().base_dist, dist.Laplace)
    mapping = {"0.*": Normal(0, 2), "*bias*": dist.Normal(0.0, 3.0)}
    converted = bayesianize(net, prior=mapping)
    assert converted[0].bias_prior().base_dist.scale[0].item() == 2
    assert converted[2].bias_prior().base_dist.scale[0].item() == 3
    assert converted[2].weight_prior().base_dist.scale[0, 0, 0].item() == 1
    with pytest.raises(ValueError, match=r"`prior` has \['5.*'\], which fit none"):
        bayesianize(net, prior={"5.*": Normal()})
    with pytest.raises(ValueError, match=r"`bias_prior`.*no bias is converted"):
        bayesianize(net, bias_prior=Normal(), where="*.weight")
    with pytest.raises(TypeError, match=r"`prior` .*must be a distribution, or a rule"):
        bayesianize(net, prior=3.0)
    with pytest.raises(ValueError, match="`prior` has shape"):
        bayesianize(net, prior=dist.Normal(torch.zeros(5), 1.0))
    with pytest.raises(TypeError, match=r"`net` \(=function\) must be a torch.nn.Module"):
        bayesianize(test_priors)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@EACH
def test_trains_with_each_prior(kind, prior):
    model = Regression(
        bayesianize(nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)), prior)
    )
    guide, (x, y) = kind.make(model), data()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    losses = [svi.step(x, y) for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert Predictive(model, guide=guide, num_samples=4)(x)["obs"].shape == (4, 20)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_network_that_has_run_goes_into_another_model(inplace):
    x, y = data()
    net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    summary(net)
    guide = AutoReparameterization(net)
    guide(x), net(x)
    model = Regression(bayesianize(net, prior=guide, inplace=inplace))
    svi = SVI(model, AutoLRT(model), pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    assert svi.step(x, y) > 0


def test_a_summary_is_no_run():
    net = bayesianize(nn.Linear(3, 1))
    summary(net)
    assert Regression(net)(data()[0]).shape == (20,)


def test_converts_again_what_is_shared(capsys):
    net = bayesianize(bayesianize(Net()), prior=Normal(0, 2))
    assert set(AutoLRT(net)) == set(ALL)
    assert net.again[0].weight_prior().base_dist.scale[0, 0].item() == 2
    summary(net)
    assert f"random weights in {len(ALL)} sites" in capsys.readouterr().out


def test_a_part_of_a_model_in_place():
    model = Regression(PyroModule[nn.Sequential](PyroModule[nn.Linear](3, 1)))
    bayesianize(model.net, inplace=True)
    assert list(AutoLRT(model)) == ["net.0.weight", "net.0.bias"]
    assert model(data()[0]).shape == (20,)


def test_keeps_no_parameter_that_it_replaces():
    net = nn.LSTM(3, 4)
    old = [weakref.ref(p) for p in net.parameters()]
    bayesianize(net, inplace=True)
    gc.collect()
    assert not any(ref() is not None for ref in old)


def test_is_a_model_for_nuts():
    model = Regression(bayesianize(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))))
    x, y = data()
    mcmc = MCMC(NUTS(model), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, y)
    assert mcmc.get_samples()["net.0.weight"].shape == (3, 2, 3)


def test_converts_what_is_partly_a_pyro_module():
    net = nn.Sequential(nn.Linear(3, 4), BayesianLinear(4, 4), bayesian_mlp(4, 4, 2))
    converted = bayesianize(net, where="0")
    assert set(AutoLRT(converted)) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.0.weight",
        "2.0.bias",
        "2.2.weight",
        "2.2.bias",
    }
    assert converted(torch.ones(5, 3)).shape == (5, 2)

    class Mine(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.shift = nn.Parameter(torch.zeros(3))
            self.noise = PyroSample(dist.HalfNormal(torch.ones(3)).to_event(1))

        def forward(self, x):
            return self.inner(x) + self.shift + self.noise

    mine = bayesianize(Mine())
    assert set(AutoLRT(mine)) == {"inner.weight", "inner.bias", "shift", "noise"}
    assert mine(torch.ones(5, 3)).shape == (5, 3)


class Sliced(nn.Module):
    """Uses parts of what it holds."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.shifts = nn.ParameterList([torch.randn(2) for _ in range(3)])

    def forward(self, x):
        x = self.body[3:](self.body[:2](x))
        for block in self.blocks[1:]:
            x = block(x)
        return x + sum(self.shifts[::2])


def test_slices():
    net = Sliced()
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    converted = bayesianize(net)
    x = torch.randn(4, 3)
    for other in (converted, pickle.loads(pickle.dumps(converted)), copy.deepcopy(converted)):
        torch.testing.assert_close(poutine.condition(other, values)(x), net(x))
        assert set(AutoLRT(other)) == set(values)
        trace = poutine.trace(other).get_trace(x)
        used = {"0", "3"}
        assert set(trace.stochastic_nodes) == {
            *(f"body.{i}.{p}" for i in used for p in ("weight", "bias")),
            *(f"blocks.{i}.{p}" for i in (1, 2) for p in ("weight", "bias")),
            *(f"shifts.{i}" for i in (0, 2)),
        }
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    poutine.condition(converted, leaves)(x).sum().backward()
    assert leaves["shifts.2"].grad.any()
    assert leaves["body.3.weight"].grad.any()
    guide = AutoReparameterization(converted)
    with pytest.warns(UserWarning, match="did not sample .*body.2.weight"):
        TraceKL_ELBO().loss(converted, guide, x)
    plain = to_deterministic(converted, guide)
    assert type(plain.body) is nn.Sequential
    torch.testing.assert_close(plain(x), net(x))


def test_a_deterministic_recurrent_layer_trains():
    net = nn.Sequential(nn.LSTM(3, 4, batch_first=True), Last(), nn.Linear(4, 1))
    model, x = Regression(bayesianize(net, where="last_layer")), torch.randn(20, 5, 3)
    y = data()[1]
    guide = AutoLRT(model)
    assert list(guide) == ["net.2.weight", "net.2.bias"]
    torch.testing.assert_close(Standalone(model.net, guide, sample=False)(x)[0], net(x))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    assert len(before) == 4
    assert all((p != before[name]).any() for name, p in model.named_parameters())
    plain = to_deterministic(model.net, guide)
    torch.testing.assert_close(plain(x), Standalone(model.net, guide, sample=False)(x)[0])


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


def test_padding_of_an_embedding_that_is_there_twice_stays():
    embed = nn.Embedding(5, 3, padding_idx=0)
    net = bayesianize(nn.ModuleDict({"a": embed, "b": embed}))
    assert net["a"] is net["b"]
    assert net["a"](torch.tensor([0])).tolist() == [[0.0] * 3]


def test_rules_know_the_inputs_of_a_bias_when_priors_are_renewed():
    net = bayesianize(nn.Sequential(nn.Linear(4, 2)))
    net = bayesianize(net, FanInNormal(), FanInNormal())
    assert net[0].bias_prior().base_dist.scale.tolist() == [0.5, 0.5]


# What cannot be converted says why, and what to do.


class KeepsList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.all = {"weights": [self.layer.weight]}


class SequentialWithScale(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2))
        self.scale = nn.Parameter(torch.ones(2))


class Clash(nn.Linear):
    weight_prior = "mine"


class WithComplex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.complex64))


REFUSED = {
    "list": (KeepsList, "`net`, a KeepsList, keeps the parameter `layer.weight` in .*`all`"),
    "sequence": (SequentialWithScale, "`net`, a SequentialWithScale, .*`scale`: the priors would"),
    "clash": (lambda: Clash(2, 2), "`net`, a Clash, .*another attribute `weight_prior`"),
    "complex": (WithComplex, "`w`: its dtype is torch.complex64"),
    "bag": (lambda: nn.EmbeddingBag(3, 2, max_norm=1.0), "`max_norm` would change the drawn"),
    "sparse": (lambda: nn.Embedding(3, 2, sparse=True), "`net`, a Embedding, .*`sparse`"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(make, message):
    net = make()
    types = [type(m) for m in net.modules()]
    with pytest.raises(TypeError, match=message) as error:
        bayesianize(net, inplace=True)
    assert "`where=lambda name, module: name != " in str(error.value)
    assert [type(m) for m in net.modules()] == types


class Reads(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 1), function

    def forward(self, x):
        return self.layer(x) + self.function(self)


RUNS = {
    "a guide": lambda net: AutoLRT(net)(torch.ones(2, 3)),
    "Standalone": lambda net: Standalone(net, AutoLRT(net))(torch.ones(2, 3)),
    "BNN": lambda net: BNN(net, likelihoods.Normal(1.0))(torch.ones(2, 3), torch.ones(2)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda net: next(net.parameters()).new_zeros(()), r"`parameters` \(StopIteration\(\)\)"),
        (lambda net: [*net.parameters()].pop().mean(), r"`parameters` \(IndexError"),
        (lambda net: dict(net.named_parameters())["layer.bias"], r"`named_parameters`"),
        (lambda net: net.layer._parameters["bias"], r"`_parameters` \(KeyError\('bias'\)\)"),
        (lambda net: net.state_dict()["layer.bias"], r"`state_dict`"),
    ],
)
def test_code_that_reads_parameters_is_told_what_to_read(run, function, message):
    with pytest.raises(TypeError, match=message + r".*`self.layer.weight`.*`x.device`"):
        run(bayesianize(Reads(function)))
    with pytest.raises(KeyError, match="mine"):
        run(bayesianize(Reads(lambda net: {}["mine"])))
    run(bayesianize(Reads(lambda net: net.layer.weight.new_zeros(()))))


def test_the_way_out_is_one():
    net = SequentialWithScale()
    converted = bayesianize(net, where=lambda name, module: name != "scale")
    assert list(AutoLRT(converted)) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, "`net`, a DataParallel, .*`.module`"),
        (torch.compile, "`net`, a OptimizedModule, is compiled: convert the network first"),
        (
            lambda net: torch.jit.trace(net, torch.ones(1, 3), check_trace=False),
            "is compiled by TorchScript",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_refuses_wrappers(wrap, message):
    with pytest.raises(TypeError, match=message):
        bayesianize(wrap(nn.Linear(3, 2)))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_must_have_run():
    net = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    with pytest.raises(TypeError, match="`1`, a LazyLinear, has no shapes yet: run the network"):
        bayesianize(net, where="0")  # where it would be converted to what torch takes apart
    net(torch.ones(1, 3))
    assert list(AutoLRT(bayesianize(net, where="1"))) == ["1.weight", "1.bias"]


# Starting from trained weights.


def test_starts_at_the_values_of_the_network():
    net = Net()
    guide = AutoReparameterization(bayesianize(net))
    assert all(torch.equal(guide[name].median(), net.get_parameter(name)) for name in ALL)


@EACH
def test_starts_at_a_state_dict(kind):
    trained = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    net = PyroModule[nn.Sequential](
        BayesianLinear(3, 4), PyroModule[nn.BatchNorm1d](4), BayesianLinear(4, 2)
    ).eval()
    net.load_state_dict(trained.state_dict(), strict=False)
    guide = kind.make(net, init_loc_fn=trained.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(Standalone(net, guide, sample=False)(x)[0], trained(x))
    pickle.dumps(guide)


def test_a_state_dict_with_a_shared_weight_and_one_without_all():
    net = Net()
    converted = bayesianize(net)
    other = Net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.embed.weight.add_(1)
    guide = AutoLRT(converted, init_loc_fn=other.state_dict())
    assert torch.equal(guide["embed.weight"].median(), other.embed.weight)
    guide = AutoLRT(converted, init_loc_fn={"decode.weight": torch.full((7, 4), 2.0)})
    assert (guide["embed.weight"].median() == 2.0).all()
    guide = AutoLRT(converted, init_loc_fn={"scale": torch.full((4,), 3.0)})
    assert guide["scale"].median().tolist() == [3.0] * 4
    assert torch.equal(guide["embed.weight"].median(), net.embed.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {"net." + n: v for n, v in s.items()},
            "`net.0.weight`, which the model has not",
        ),
        (lambda s: s | {"0.weight": torch.ones(3, 3)}, r"shape \(3, 3\) for `0.weight`.*\(4, 3\)"),
        (lambda s: s | {"1.weight": torch.zeros(4)}, "another value for `1.weight`.*load it by"),
    ],
)
def test_a_state_dict_of_another_network(change, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=message):
        AutoLRT(bayesianize(net), init_loc_fn=change(net.state_dict()))


def test_moped_sets_prior_and_posterior():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].bias.zero_()
    prior = {"0.*": Pretrained(0.5), "*": Pretrained(2.0)}
    converted = bayesianize(net, prior=prior)
    guide = AutoLRT(converted, init_scale=init_to_fraction(0.2, least=1e-3))
    for name, w in net.named_parameters():
        module = converted.get_submodule(name.rpartition(".")[0])
        p = getattr(module, name.rpartition(".")[2] + "_prior")().base_dist
        assert torch.equal(p.loc, w)
        assert (p.scale == (0.5 if name[0] == "0" else 2.0)).all()
        q = guide[name].base()
        torch.testing.assert_close(q.loc, w)
        torch.testing.assert_close(q.scale, (0.2 * w.abs()).clamp(min=1e-3))
    by_layer = AutoLRT(converted, init_scale=lambda site, loc: 0.1 if "0." in site["name"] else 0.3)
    assert by_layer["0.bias"].base().scale[0].item() == pytest.approx(0.1)
    assert by_layer["1.bias"].base().scale[0].item() == pytest.approx(0.3)
    assert AutoLRT(converted, init_loc_fn=init_to_mean)["0.bias"].median().equal(net[0].bias)
    with pytest.raises(TypeError, match="`Pretrained` is a prior for `bayesianize"):
        BayesianLinear(3, 2, prior=Pretrained())
    with pytest.raises(ValueError, match=r"`fraction` \(=0\)"):
        init_to_fraction(0)
    with pytest.raises(ValueError, match=r"`scale` .*positive"):
        AutoLRT(converted, init_scale=lambda site, loc: 0.0)


# The posteriors of one task are the priors of the next.


@EACH
def test_posteriors_become_priors(kind):
    x, y = data()
    model = Regression(bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))))
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    for _ in range(5):
        svi.step(x, y)
    model = bayesianize(model, prior=guide)
    after = kind.make(model)
    assert list(after) == list(guide)
    for name in guide:
        assert torch.equal(after[name].median(), guide[name].median())
    after.load_state_dict(guide.state_dict())
    trace = poutine.trace(poutine.replay(model, poutine.trace(after).get_trace(x, y)))
    nodes = trace.get_trace(x, y).nodes
    for name in guide:
        p, q = nodes[name]["fn"], guide[name].distribution(shared=True)
        value = guide[name].median() + 0.01
        torch.testing.assert_close(p.log_prob(value), q.log_prob(value))
        assert not p.log_prob(value).requires_grad
        if kind.is_normal:
            kl = torch.distributions.kl_divergence(after[name].distribution(), p)
            assert kl.item() == pytest.approx(0.0, abs=1e-5)


def fitted(model, x, y, noise):
    """The guide of a linear regression at its optimum, by the closed form of the bound."""
    guide = AutoReparameterization(model, init_scale=0.1)
    optimizer = torch.optim.LBFGS(
        guide.parameters(),
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        q = guide["net.weight"].base()
        error = (y - x @ q.loc[0]).square() + x.square() @ q.scale[0].square()
        kl = torch.distributions.kl_divergence(q, model.net.weight_prior().base_dist)
        loss = error.sum() / (2 * noise**2) + kl.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return guide


def test_sequential_learning_gives_the_posterior_of_all_data():
    # A conjugate model with an orthogonal design, whose posterior is independent Normals.
    noise = 0.5
    x = torch.eye(3, dtype=torch.float64).repeat(20, 1)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    model = Regression(bayesianize(nn.Linear(3, 1, bias=False, dtype=torch.float64)), noise)
    for part in (slice(0, 15), slice(15, 60)):
        model = bayesianize(model, prior=fitted(model, x[part], y[part], noise))
    precision = 20 / noise**2 + 1
    posterior = model.net.weight_prior().base_dist
    torch.testing.assert_close(posterior.scale, torch.full_like(posterior.scale, precision**-0.5))
    torch.testing.assert_close(posterior.loc, (x.T @ y / noise**2 / precision).unsqueeze(0))


def test_priors_of_another_guide():
    net = bayesianize(nn.Sequential(nn.Linear(3, 2)))
    guide = AutoLRT(net)
    head = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"a guide without posteriors for \['1.weight', '1.bias'\]"
    ):
        bayesianize(head, prior=guide)
    mapping = {name: guide[name] for name in guide} | {"1.*": Normal(0, 3)}
    converted = bayesianize(head, prior=mapping)
    assert torch.equal(converted[0].weight_prior().base_dist.loc, guide["0.weight"].median())
    assert converted[1].weight_prior().base_dist.scale[0, 0].item() == 3
    whole = Regression(bayesianize(nn.Sequential(nn.Linear(3, 1))), noise=None)
    guide = AutoLRT(whole)
    guide(*data())
    part = bayesianize(whole.net, prior=guide)
    assert torch.equal(part[0].weight_prior().base_dist.loc, guide["net.0.weight"].median())
    with pytest.raises(ValueError, match=r"`prior` has \['noise'\], which fit none.*a mapping"):
        bayesianize(whole, prior=guide)
    both = bayesianize(head)
    with pytest.raises(ValueError, match=r"`prior` has \['1.bias'\], which fit none"):
        bayesianize(both, prior=AutoLRT(both), where=["0", "1.weight"])


class Digits(PyroModule):
    def __init__(self, net, size):
        super().__init__()
        self.net = net
        self.size = size

    def forward(self, x, y):
        logits = self.net(x)
        with pyro.plate("data", self.size, subsample_size=len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def test_a_trained_network_saves_two_thirds_of_the_steps():
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)

    def network():
        return nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))

    def batch():
        index = torch.randint(len(images), (256,))
        return images[index], labels[index]

    def losses(net, steps, every, **kwargs):
        """The negative ELBO of each image, after every so many steps."""
        model = Digits(net, len(images))
        guide = AutoLRT(model, **kwargs)
        elbo = TraceKL_ELBO(num_particles=8)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
        for step in range(1, steps + 1):
            svi.step(*batch())
            if step % every == 0:
                yield elbo.loss(model, guide, images, labels) / len(images)

    (final,) = losses(bayesianize(network()), 900, 900)
    trained = network()
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    for _ in range(300):
        x, y = batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        optimizer.step()
    net = bayesianize(trained, prior=Pretrained(0.1))
    assert min(losses(net, 300, 300, init_scale=init_to_fraction(0.3))) < final
