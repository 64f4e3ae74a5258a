from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data, normal_prior, torch_mlp, within
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal, init_to_sample, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_bnn.guides
from pyro_bnn import bayesianize, kernels
from pyro_bnn.distributions import Radial
from pyro_bnn.distributions._joint import joint_of
from pyro_bnn.estimators import Draw, Flipout, LocalReparameterization, Shared
from pyro_bnn.guides import (
    AutoFlipout,
    AutoLRT,
    AutoMixture,
    AutoRadial,
    AutoReparameterization,
    init_to_fan_in,
)
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.nn import BayesianConv2d, BayesianLinear
from pyro_bnn.posteriors import ConstrainedPosterior, NormalPosterior, RadialPosterior, _together
from pyro_bnn.posteriors._together import distributions

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
NETS = {"bayesian": bayesian_mlp, "torch": torch_mlp}


def step(model, guide, *args, elbo=None, steps=1):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo or TraceKL_ELBO())
    return [svi.step(*args) for _ in range(steps)]


def test_every_guide_has_a_row():
    names = {k.name for k in GUIDES} | {"AutoPosterior"}
    assert names == {name for name in pyro_bnn.guides.__all__ if name.startswith("Auto")}


@EACH
@pytest.mark.parametrize("net", NETS)
def test_parameters_exist_at_construction(kind, net):
    model = Regression(NETS[net](3, 4, 1))
    guide = kind.make(model)
    assert isinstance(guide, AutoGuide)
    before = dict(guide.named_parameters())
    assert before
    step(model, guide, *data())
    assert dict(guide.named_parameters()).keys() == before.keys()


@EACH
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("noise", [0.5, None])
def test_every_parameter_gets_a_gradient_also_on_the_second_pass(kind, net, noise):
    model = Regression(NETS[net](3, 4, 1, dtype=torch.float64), noise)
    guide = kind.make(model)
    x, y = data(dtype=torch.float64)
    guide(x, y)
    elbo = TraceKL_ELBO()(model, guide)
    for _ in range(2):
        elbo.zero_grad()
        elbo(x, y).backward()
        for name, parameter in elbo.named_parameters():
            assert parameter.dtype == torch.float64
            assert torch.isfinite(parameter.grad).all(), name
            assert (parameter.grad != 0).all(), name


@EACH
def test_samples_the_models_own_sites(kind):
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = kind.make(model)
    x, y = data()
    trace = poutine.trace(guide).get_trace(x, y)
    model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
    assert trace.stochastic_nodes == [n for n in model_trace.stochastic_nodes if n != "data"]
    for name in trace.stochastic_nodes:
        assert trace.nodes[name]["value"] is model_trace.nodes[name]["value"]
        assert trace.nodes[name]["fn"].event_dim == model_trace.nodes[name]["fn"].event_dim
    # Pyro warns of orders that break its mean-field condition, and warnings are errors here.
    TraceMeanField_ELBO().loss(model, guide, x, y)


@EACH
def test_draws(kind):
    guide = kind.make(bayesian_mlp(3, 4, 1))
    weight = guide(data()[0])["0.weight"]
    assert isinstance(weight, Draw) != kind.is_shared
    with guide.shared_draws():
        assert type(guide(data()[0])["0.weight"]) is torch.Tensor
        with guide.shared_draws():
            pass
        assert guide.is_shared
    assert not guide.is_shared
    with pytest.raises(RuntimeError, match="inside"), guide.shared_draws():
        raise RuntimeError("inside")
    assert not guide.is_shared


@EACH
def test_state_dict_loads_into_a_fresh_guide(kind):
    """Also that of the noise, which only a run reveals."""
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = kind.make(model)
    step(model, guide, x, y, steps=3)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)

    other_model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    other = kind.make(other_model)
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    torch.manual_seed(3)
    loss = TraceKL_ELBO().loss(model, guide, x, y)
    other(x, y)
    torch.manual_seed(3)
    assert TraceKL_ELBO().loss(other_model, other, x, y) == loss
    assert other.median().keys() == guide.median().keys()
    for name, value in guide.median().items():
        torch.testing.assert_close(other.median()[name], value)


@EACH
def test_state_of_another_model_is_rejected(kind):
    guide = kind.make(Regression(bayesian_mlp(3, 4, 1)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        guide.load_state_dict(kind.make(Regression(bayesian_mlp(3, 5, 1))).state_dict())


@EACH
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "both"])
def test_copies_and_pickles(kind, when, how):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = kind.make(model)
    if when == "after":
        step(model, guide, x, y)
    if how == "deepcopy":
        other_model, other = model, copy.deepcopy(guide)
    elif how == "pickle":
        if when == "before":
            with pytest.raises(ValueError, match="unpickled"):
                pickle.loads(pickle.dumps(guide))(x, y)
            return
        other_model, other = model, pickle.loads(pickle.dumps(guide))
    else:
        elbo = copy.deepcopy(TraceKL_ELBO()(model, guide))
        other_model, other = elbo.model, elbo.guide
        assert other.model is other_model
    assert guide.model is model  # Pyro's own guides lose it
    before = copy.deepcopy(dict(guide.named_parameters()))
    step(other_model, other, x, y, steps=2)
    mine, others = dict(guide.named_parameters()), dict(other.named_parameters())
    assert before.keys() == mine.keys() <= others.keys()  # a first call finds the noise
    for name, value in before.items():
        assert (mine[name] == value).all()
        assert (others[name] != value).any()
    step(model, guide, x, y)


@EACH
def test_median_and_quantiles(kind):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = kind.make(model)
    assert set(guide.median()) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    guide(x, y)
    median = guide.median()
    assert median["noise"] > 0
    assert median["net.0.weight"].shape == (4, 3)
    if not kind.has_quantiles:
        with pytest.raises(NotImplementedError, match="samples"):
            guide.quantiles([0.5])
        return
    low, middle, high = guide.quantiles([0.1, 0.5, 0.9])["net.0.weight"]
    torch.testing.assert_close(middle, median["net.0.weight"])
    assert (low < middle).all()
    assert (middle < high).all()
    (middle,) = guide.quantiles(torch.tensor([0.5]))["noise"]
    torch.testing.assert_close(middle, median["noise"])


@pytest.mark.parametrize("kind", [k for k in GUIDES if k.has_quantiles], ids=lambda k: k.name)
@pytest.mark.parametrize(
    "probs", [[2.5], [-0.1, 0.5], [0], [1], [0.0, 1.0], [], [float("nan")], [1 - 1e-12]]
)
def test_rejects_quantiles_that_are_none(kind, probs):
    guide = kind.make(bayesian_mlp(3, 1))
    for quantiles in (probs, torch.tensor(probs)):
        with pytest.raises(ValueError, match=r"`quantiles`.*between 0 and 1"):
            guide.quantiles(quantiles)
    with pytest.raises(ValueError, match="`quantiles`"):
        guide["0.weight"].quantiles(torch.tensor(probs))


@EACH
def test_initialization(kind):
    value = torch.randn(4, 3)
    guide = kind.make(
        bayesian_mlp(3, 4, 1),
        init_loc_fn=init_to_value(values={"0.weight": value}, fallback=init_to_fan_in),
        init_scale=0.25,
    )
    torch.testing.assert_close(guide.median()["0.weight"], value)
    assert (guide.median()["2.weight"].abs() <= 1.5).all()
    torch.testing.assert_close(guide.median()["2.bias"], torch.zeros(1))
    base = guide["2.weight"].base()
    scale = base.scale / 2 if isinstance(base, Radial) else base.scale  # of four entries
    torch.testing.assert_close(scale.detach(), torch.full_like(scale, 0.25))
    with pytest.raises(ValueError, match="init_scale"):
        kind.make(bayesian_mlp(3, 4, 1), init_scale=0.0)


def test_weights_start_as_torchs_do():
    """Uniform between -1/sqrt(n) and 1/sqrt(n), which has the variance 1 / (3 n)."""
    torch.manual_seed(0)
    guide = AutoLRT(PyroModule[nn.Sequential](BayesianLinear(25, 400), BayesianConv2d(9, 40, 5)))
    for name, num_in in (("0.weight", 25), ("1.weight", 225)):
        value = guide[name].median().flatten()
        assert value.abs().max() <= num_in**-0.5
        assert within(value, 0.0)
        assert within(value.square(), 1 / (3 * num_in))


@EACH
def test_default_scales(kind):
    """Of weights 0.03 / sqrt(n) for n inputs, of biases 0.03, of all else 0.1."""
    model = Regression(bayesian_mlp(9, 4, 1), noise=None)
    guide = kind.make(model)
    guide(*data(num_in=9))
    expected = {"net.0.weight": 0.01, "net.0.bias": 0.03, "net.2.weight": 0.015, "net.2.bias": 0.03}
    spread = (
        1.25**0.5 if kind.make is AutoMixture else 1.0
    )  # its components stand half a scale away
    for name, scale in expected.items():
        stddev = guide[name].base().stddev
        torch.testing.assert_close(stddev, torch.full_like(stddev, spread * scale))
    assert guide["noise"].base().stddev.item() == pytest.approx(0.1)


@EACH
def test_in_a_list_of_guides(kind):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    first = kind.make(poutine.block(model, expose=["net.0.weight", "net.0.bias"]))
    assert list(first) == ["net.0.weight", "net.0.bias"]
    guide = AutoGuideList(model)
    guide.append(first)
    guide.append(kind.make(poutine.block(model, hide=["net.0.weight", "net.0.bias", "noise"])))
    guide.append(AutoNormal(poutine.block(model, expose=["noise"])))
    losses = step(model, guide, x, y, elbo=Trace_ELBO(), steps=3)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert set(guide.median()) >= {"net.0.weight", "net.2.weight", "noise"}
    before = [p.clone() for p in first.parameters()]
    step(model, guide, x, y, elbo=Trace_ELBO(), steps=1)
    assert all((p != b).any() for p, b in zip(first.parameters(), before, strict=True))


def test_a_choice_for_each_site():
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1), noise=None)
    guide = AutoLRT(
        model,
        sites={
            "net.0.*": RadialPosterior,
            "net.2.bias": partial(NormalPosterior, estimator=Flipout()),
        },
    )
    assert isinstance(guide["net.0.weight"], RadialPosterior)
    assert isinstance(guide["net.2.bias"].estimator, Flipout)
    assert type(guide["net.2.weight"].estimator).__name__ == "LocalReparameterization"
    losses = step(model, guide, x, y, steps=400)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    fresh = AutoLRT(model, sites={"net.*": RadialPosterior, "noise": NormalPosterior})
    with pytest.raises(ValueError, match="noise"):
        fresh(x, y)
    unused = AutoLRT(model, sites={"netz.*": RadialPosterior})
    with pytest.raises(ValueError, match=r"netz"):
        unused(x, y)
    with pytest.raises(KeyError, match=r"net\.0\.weight"):
        guide["weight"]


class Own(PyroModule):
    """A user's module: hierarchical scale, an unused site, a weight used twice."""

    def __init__(self):
        super().__init__()
        self.scale = PyroSample(dist.HalfNormal(1.0))
        self.weight = PyroSample(lambda self: dist.Normal(0, self.scale).expand([3, 3]).to_event(2))
        self.square = PyroSample(lambda self: self.scale**2)

    def forward(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.weight), self.weight).sum(-1)


@EACH
def test_a_users_own_module(kind):
    x, y = data()
    model = Regression(Own())
    model.net = Own()
    guide = kind.make(model)
    assert set(guide) == {"net.scale", "net.weight"}
    assert isinstance(guide["net.scale"], ConstrainedPosterior)
    losses = step(model, guide, x, y, steps=20)
    assert all(torch.isfinite(torch.tensor(losses)))


@EACH
def test_a_function_model(kind):
    net = bayesian_mlp(3, 4, 1)

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean(x), 0.5), obs=y)

    def mean(x):
        return net(x).squeeze(-1)

    def direct(x, y=None):
        output = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(output, 0.5), obs=y)

    x, y = data()
    assert set(kind.make(direct)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    step(direct, kind.make(direct), x, y, steps=2)
    # A network that the function only reaches through another is found in a run.
    guide = kind.make(model)
    assert not list(guide)
    with pytest.raises(ValueError, match="plate `data`"):
        guide(x, y)

    def indirect(x, y=None):
        output = mean(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(output, 0.5), obs=y)

    guide = kind.make(indirect)
    step(indirect, guide, x, y, steps=2)
    assert isinstance(guide(x, y)["0.weight"], Draw) != kind.is_shared


class InsidePlate(Regression):
    def forward(self, x, y=None):
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(self.net(x).squeeze(-1), 0.5), obs=y)


@EACH
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO])
def test_a_network_inside_the_data_plate(kind, net, elbo):
    model = InsidePlate(NETS[net](3, 4, 1))
    guide = kind.make(model)
    state = copy.deepcopy(guide.state_dict())
    with pytest.raises(ValueError, match=r"(?s)plate `data`.*before the plate"):
        step(model, guide, *data(), elbo=elbo())
    for name, value in guide.state_dict().items():
        assert (state[name] == value).all()


class ReadInside(Regression):
    """Reads its noise where each datum gets one of its own."""

    def __init__(self, net):
        super().__init__(net)
        self.scale = PyroSample(dist.HalfNormal(1.0))

    def forward(self, x, y=None):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, self.scale), obs=y)


@EACH
def test_an_attribute_first_read_inside_the_data_plate(kind):
    x, y = data()
    with pytest.raises(ValueError, match=r"attribute `scale` .*before the plate.*plates="):
        kind.make(ReadInside(bayesian_mlp(3, 1)))(x, y)


@EACH
def test_plates_of_samples_outside(kind):
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = kind.make(model)
    x, y = data()
    with pyro.plate("samples", 7, dim=-2):
        trace = poutine.trace(guide).get_trace(x, y)
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
    assert trace.nodes["net.0.weight"]["value"].shape == (7, 1, 4, 3)
    assert replayed.nodes["obs"]["fn"].batch_shape == (7, 20)


class Tasks(PyroModule):
    """One network for each task, whose tasks may be subsampled."""

    def __init__(self, num_tasks, subsample_size=None):
        super().__init__()
        self.net = bayesian_mlp(3, 1)
        self.plate = (num_tasks, subsample_size)

    def forward(self, x, y=None):
        with pyro.plate("tasks", self.plate[0], subsample_size=self.plate[1], dim=-2) as index:
            mean = self.net(x[index]).squeeze(-1)
            with pyro.plate("data", x.shape[1], dim=-1):
                return pyro.sample(
                    "obs", dist.Normal(mean, 0.5), obs=None if y is None else y[index]
                )


@EACH
@pytest.mark.parametrize("subsample_size", [None, 2])
def test_a_network_for_each_task(kind, subsample_size):
    x = torch.randn(5, 8, 3)
    slopes = torch.arange(5.0).view(5, 1)
    y = slopes * x[..., 0]
    model = Tasks(5, subsample_size)
    with pytest.raises(ValueError, match=r"plates=\['tasks'\]"):
        kind.make(model)(x, y)
    guide = kind.make(model, plates=["tasks"], init_scale=0.05)
    assert not list(guide)
    guide(x, y)
    assert guide["net.0.weight"].loc.shape[:4] == (5, 1, 1, 3)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99}), TraceKL_ELBO())
    for _ in range(400):
        svi.step(x, y)
    fitted = guide.median()["net.0.weight"][..., 0].flatten()
    assert (fitted - slopes.flatten()).abs().max() < 0.5

    other = kind.make(model, plates="tasks")
    other.load_state_dict(guide.state_dict())
    assert other(x, y).keys() == guide(x, y).keys()
    torch.testing.assert_close(other["net.0.weight"].median(), guide["net.0.weight"].median())


@pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
def test_local_latent_variables_in_a_subsampled_plate(kind):
    class Simple(PyroModule):
        def forward(self, x):
            with pyro.plate("data", 50, subsample_size=10) as index:
                level = pyro.sample("level", dist.Normal(0.0, 10.0))
                pyro.sample("obs", dist.Normal(level, 0.5), obs=x[index])

    pyro.enable_validation(False)
    x = torch.linspace(-5, 5, 50)
    model = Simple()
    guide = kind.make(model)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.2, "lrd": 0.997}), TraceKL_ELBO())
    for _ in range(1_400):
        svi.step(x)
    assert guide["level"].loc.shape == (50,)
    # The posterior of each level is N(x / (1 + 0.0025), 0.25 / (1 + 0.0025)).
    assert (guide.median()["level"] - x / 1.0025).abs().max() < 0.25


def test_no_latent_sites():
    class Deterministic(PyroModule):
        def forward(self, x):
            return pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="no latent sites"):
        AutoFlipout(Deterministic())(torch.ones(3))


def test_modules_that_pyro_cannot_name():
    net = nn.Sequential(BayesianLinear(3, 4), nn.ReLU(), BayesianLinear(4, 1))
    with pytest.raises(ValueError, match="to_pyro_module_"):
        AutoFlipout(net)
    pyro.nn.module.to_pyro_module_(net)
    guide = AutoFlipout(net)
    assert set(guide) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert guide(torch.ones(2, 3))["2.weight"].shape == (1, 4)


def test_discrete_sites_are_named():
    class Discrete(PyroModule):
        def forward(self):
            return pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'z'"):
        AutoLRT(Discrete())()


@EACH
@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO])
def test_nan_in_the_data(kind, where, elbo):
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = kind.make(model)
    step(model, guide, x, y)
    {"x": x, "y": y}[where].view(-1)[3] = float("nan")
    state = copy.deepcopy(guide.state_dict())
    with pytest.raises(ValueError, match=rf"`{where}` \(1 of {x.numel() if where == 'x' else 20}"):
        step(model, guide, x, y, elbo=elbo())
    for name, value in guide.state_dict().items():
        assert (state[name] == value).all()


def test_nan_that_the_model_masks():
    class Missing(Regression):
        def forward(self, x, y):
            mean = self.net(x).squeeze(-1)
            seen = ~y.isnan()
            with pyro.plate("data", len(x)), poutine.mask(mask=seen):
                pyro.sample("obs", dist.Normal(mean, 0.5), obs=y.nan_to_num())

    x, y = data()
    y[2] = float("nan")
    model = Missing(bayesian_mlp(3, 4, 1))
    assert step(model, AutoLRT(model, allow_nan=True), x, y)
    with pytest.raises(ValueError, match="allow_nan"):
        step(model, AutoLRT(model), x, y)


@EACH
def test_infinite_values_are_not_nan(kind):
    guide = kind.make(bayesian_mlp(3, 4, 1))
    guide(torch.tensor([[float("inf"), float("-inf"), 1.0]]))


@EACH
def test_double_and_devices(kind):
    model = Regression(bayesian_mlp(3, 4, 1), noise=None).double()
    guide = kind.make(model)
    x, y = data(dtype=torch.float64)
    guide(x, y)
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    single = kind.make(Regression(bayesian_mlp(3, 4, 1))).double()
    assert {v.dtype for v in single.median().values()} == {torch.float64}
    assert single["net.0.weight"].distribution().rsample().dtype == torch.float64


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("kind", "joint"), [(k, joint) for k in GUIDES for joint in (False, True)[: 1 + k.is_normal]]
)
@kernels.enabled()
def test_outputs_have_the_moments_of_the_posteriors(kind, shared, joint, monkeypatch):
    """Of many small weights, which are drawn at once, and of weights that are drawn one by one."""
    torch.manual_seed(0)
    monkeypatch.setattr(_together, "_MIN_JOINT", 3 if joint else 100)
    layers = [nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(3, 2)]
    net = bayesianize(nn.ModuleList(layers))
    guide = kind.make(net, init_loc_fn=init_to_sample, init_scale=0.3)
    qs = distributions(guide[name] for name in guide)
    assert all((joint_of(q.base_dist) is not None) == joint for q in qs)

    linear, x = nn.functional.linear, torch.randn(2, 3)
    outputs, weights = [], []
    for _ in range(500):
        with torch.no_grad():
            draws = distributions((guide[name] for name in guide), shared=shared)
            w = dict(zip(guide, [q.rsample() for q in draws], strict=True))
            parts = [linear(x, w[f"{i}.weight"], w.get(f"{i}.bias")) for i in range(3)]
        outputs.append(torch.stack(parts))
        weights.append(w["0.weight"] + 0)  # the ordinary weight
    y = torch.stack(outputs)
    q = [guide[f"{i}.weight"].base() for i in range(3)]
    mean = torch.stack([linear(x, each.mean) for each in q])
    variance = torch.stack([linear(x.square(), each.variance) for each in q])
    mean[2] += guide["2.bias"].base().mean
    variance[2] += guide["2.bias"].base().variance
    noise = y - mean
    assert within(y, mean)
    assert within(noise.square(), variance)
    # One weight for all examples, or one for each; and each weight has noise of its own.
    is_one = shared or kind.is_shared
    covariance = linear(x[:1] * x[1:], torch.stack([each.variance for each in q[:2]]).flatten(0, 1))
    product = noise[:, :2].prod(2).flatten(1)
    assert within(product, covariance.flatten() if is_one else 0.0)
    assert within(noise[:, 0] * noise[:, 1], 0.0)
    w = torch.stack(weights)
    assert within(w, q[0].mean)
    assert within((w - q[0].mean).square(), q[0].variance)


def test_a_prior_that_is_not_an_event_is_left_to_pyro():
    net = PyroModule[nn.Linear](3, 2)
    net.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]))
    net.bias = normal_prior(2)
    guide = AutoReparameterization(net)
    assert guide["weight"].distribution().batch_shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "estimator"),
    [
        (AutoRadial, Flipout()),
        (AutoMixture, Shared()),
        (AutoFlipout, LocalReparameterization()),
        (AutoLRT, Shared()),
    ],
    ids=lambda x: getattr(x, "__name__", repr(x)),
)
def test_any_estimator_that_a_posterior_has_the_noise_for(make, estimator):
    torch.manual_seed(0)
    guide = make(bayesian_mlp(3, 4, bias=False), init_scale=0.3, estimator=estimator)
    assert guide["0.weight"].estimator is estimator
    x = torch.randn(2, 3)
    with torch.no_grad():
        y = torch.stack([nn.functional.linear(x, guide(x)["0.weight"]) for _ in range(4_000)])
    q = guide["0.weight"].base()
    mean, variance = nn.functional.linear(x, q.mean), nn.functional.linear(x**2, q.variance)
    assert within(y, mean)
    assert within((y - mean).square(), variance)
    # Flipout and local reparameterization make examples independent, one shared weight does not.
    covariance = (nn.functional.linear(x[:1] * x[1:], q.variance))[0]
    product = (y - mean).prod(1)
    assert within(product, covariance if isinstance(estimator, Shared) else 0.0)
    guide.load_state_dict(copy.deepcopy(guide).state_dict())
    assert pickle.loads(pickle.dumps(guide))["0.weight"].estimator.needs == estimator.needs


@pytest.mark.parametrize(
    ("make", "estimator", "remedy"),
    [
        (AutoMixture, Flipout(), r"use `Shared\(\)` with it"),
        (AutoMixture, LocalReparameterization(), r"use `Shared\(\)` with it"),
        (AutoRadial, LocalReparameterization(), r"use `Shared\(\)` or `Flipout\(\)` with it"),
    ],
)
def test_estimators_that_a_posterior_has_not_the_noise_for(make, estimator, remedy):
    with pytest.raises(ValueError, match=r"`estimator` \(=\w+\(\)\) needs.*" + remedy):
        make(bayesian_mlp(3, 4), estimator=estimator)

    def model(x):
        pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

    late = make(model, estimator=estimator)
    with pytest.raises(ValueError, match=remedy):
        late(torch.ones(1))
    assert not len(late)
    with pytest.raises(TypeError, match="must be an Estimator, say"):
        make(model, estimator=Flipout)


def test_a_weight_used_on_both_sides_gets_flipout_for_noise_of_outputs():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    net[1].weight = net[0].weight
    for guide in (AutoLRT, partial(AutoFlipout, estimator=LocalReparameterization())):
        assert isinstance(guide(bayesianize(net))["0.weight"].estimator, Flipout)


def test_a_guide_is_a_mapping_of_sites():
    guide = AutoLRT(bayesian_mlp(3, 4, 1))
    assert len(guide) == len(list(guide)) == 4
    assert dict(guide.items()) == {name: guide[name] for name in guide}
    late = AutoLRT(lambda: None)
    assert not len(late)
    assert late  # as any module is
