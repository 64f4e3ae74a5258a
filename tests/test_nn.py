from __future__ import annotations

import copy
import inspect
import pickle

import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES, LAYERS, PRIORS
from models import within
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn

import pyro_bnn.nn
from pyro_bnn import priors
from pyro_bnn.compat import Standalone
from pyro_bnn.conversion import prune
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import Predictive
from pyro_bnn.nn import (
    BayesianConv2d,
    BayesianConvTranspose2d,
    BayesianEmbedding,
    BayesianLinear,
    BayesianLSTM,
)

VARIANTS = [
    pytest.param(row, variant, id=f"{row.name}-{variant}")
    for row in LAYERS
    for variant in [{}, *row.variants]
]
VARIANTS = pytest.mark.parametrize(("row", "variant"), VARIANTS)


def test_every_layer_has_a_row():
    assert {row.make.__name__ for row in LAYERS} == set(pyro_bnn.nn.__all__)


def test_every_prior_has_a_row():
    assert set(PRIORS) | {"Pretrained"} == {*priors.__all__, "ARD"}


@VARIANTS
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_equals_torch_given_the_same_weights(row, variant):
    layer, other = row.make(**row.args | variant), row.torch(**row.args | variant)
    assert isinstance(layer, row.torch)
    x = row.x(5, dtype=variant.get("dtype"))
    values = {name: p.detach().clone() for name, p in other.named_parameters()}
    torch.testing.assert_close(poutine.condition(layer, values)(x), other(x))
    assert set(poutine.trace(layer).get_trace(x).stochastic_nodes) == set(values)


@VARIANTS
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_priors(row, variant, prior):
    layer = row.make(**row.args | variant, prior=PRIORS[prior])
    x = row.x(5, dtype=variant.get("dtype"))
    trace = poutine.trace(layer).get_trace(x)
    trace.compute_log_prob()
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        assert site["value"].dtype == variant.get("dtype", torch.float)
        assert site["fn"].event_shape == site["value"].shape
        assert site["log_prob"].shape == ()


@pytest.mark.parametrize("prior", [*PRIORS, "expanded"])
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_buffers_can_be_written(row, prior):
    def expanded(shape, fan_in):
        return dist.Normal(torch.zeros(()).expand(shape), torch.ones(()).expand(shape))

    layer = row.make(**row.args | {"prior": PRIORS.get(prior, expanded)})
    guide = AutoLRT(layer) if prior == "Normal" else AutoReparameterization(layer)
    prune(guide, 0.83)
    buffers = [*layer.buffers(), *guide.buffers()]
    assert len(buffers) > 1
    for buffer in buffers:
        buffer.copy_(buffer.clone())  # as DDP and moving averages do
    average = torch.optim.swa_utils.AveragedModel(Standalone(layer, guide), use_buffers=True)
    average.update_parameters(Standalone(layer, guide))


@pytest.mark.parametrize("prior", PRIORS)
def test_moments_of_priors(prior):
    layer = BayesianLinear(4, 3, prior=PRIORS[prior], bias=False)
    fn = layer.weight_prior()
    samples = fn.sample((20_000,))
    assert within(samples, fn.mean)
    variance = {
        "Normal": 0.25,
        "FanInNormal": 0.5,
        "ScaleMixture": 0.4 + 0.6 * 0.01,
        "Laplace": 2 * 0.49,
        "ARD": 0.25,
        "HierarchicalNormal": 0.5,
    }[prior]
    torch.testing.assert_close(fn.variance, torch.full((3, 4), variance))
    assert within((samples - fn.mean).square(), variance)


GIVEN = {
    "scalar": dist.Normal(0.5, 2.0),
    "row": dist.Normal(torch.zeros(4), 2.0),
    "whole": dist.Normal(torch.zeros(3, 4), 2.0).to_event(2),
    "student": dist.StudentT(3.0),
    "torch": torch.distributions.Laplace(0.0, 1.0),
    "mixture": torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7])),
        torch.distributions.Normal(torch.zeros(2), torch.tensor([1.0, 0.1])),
    ),
    "multivariate": dist.MultivariateNormal(torch.zeros(4), torch.eye(4)),
    "transformed": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(torch.tensor(1.0), 2.0)
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_distributions(name):
    prior = GIVEN[name]
    layer = BayesianLinear(4, 3, prior=prior)
    value = torch.randn(3, 4)
    expected = prior.log_prob(value).sum()
    torch.testing.assert_close(layer.weight_prior().log_prob(value), expected)
    assert dict(layer.weight_prior.named_buffers())
    assert not list(layer.parameters())

    double = copy.deepcopy(layer).double()
    assert double.weight_prior().sample().dtype == torch.float64
    torch.testing.assert_close(
        double.weight_prior().log_prob(value.double()), expected.double(), rtol=1e-5, atol=1e-5
    )
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again.weight_prior().log_prob(value), expected)
    assert again(torch.ones(2, 4)).shape == (2, 3)


def test_state_dict_round_trip_changes_the_prior():
    layer = BayesianLinear(4, 3, prior=priors.Normal(0.0, 1.0))
    other = BayesianLinear(4, 3, prior=priors.Normal(0.5, 2.0))
    assert {"weight_prior.loc", "weight_prior.scale"} <= set(layer.state_dict())
    for assign in (False, True):
        target = copy.deepcopy(layer)
        target.load_state_dict(other.state_dict(), assign=assign)
        torch.testing.assert_close(target.weight_prior().mean, torch.full((3, 4), 0.5))
        torch.testing.assert_close(target.weight_prior().variance, torch.full((3, 4), 4.0))


def test_a_given_distribution_is_not_changed():
    prior = dist.Normal(torch.tensor(0.0), torch.tensor(1.0))
    layer = BayesianLinear(4, 3, prior=prior).double()
    assert prior.loc.dtype == torch.float
    with torch.no_grad():
        layer.weight_prior.scale.fill_(3.0)
    assert prior.scale == 1
    torch.testing.assert_close(
        layer.weight_prior().variance, torch.full((3, 4), 9.0, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "prior",
    [
        priors.Normal(0, 0.5, learnable_scale=True),
        priors.Laplace(0, 0.5, learnable_scale=True),
        priors.FanInNormal(1, learnable_scale=True),
    ],
)
def test_learnable_scale(prior):
    layer = BayesianLinear(4, 3, prior=prior, bias=False)
    (parameter,) = layer.parameters()
    assert parameter.shape == ()
    torch.testing.assert_close(layer.weight_prior().base_dist.scale, torch.full((3, 4), 0.5))
    guide = AutoReparameterization(layer)
    kl = torch.distributions.kl_divergence(guide["weight"].distribution(), layer.weight_prior())
    kl.backward()
    assert parameter.grad != 0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        AutoReparameterization(other)  # from here on, Pyro's store keeps the two apart
        other.weight_prior.scale = torch.tensor(2.0)
        torch.testing.assert_close(other.weight_prior().base_dist.scale, torch.full((3, 4), 2.0))
    assert layer.double().weight_prior().sample().dtype == torch.float64


def _student(shape, fan_in):
    return dist.StudentT(3.0, 0.0, fan_in**-0.5)


def test_a_function_is_a_rule():
    layer = pickle.loads(pickle.dumps(BayesianLinear(4, 3, prior=_student)))
    torch.testing.assert_close(layer.weight_prior().variance, torch.full((3, 4), 3 / 4))


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.zeros(2, 4), 1.0),
        dist.Normal(torch.zeros(5, 3, 4), 1.0),
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    ],
)
def test_prior_of_the_wrong_shape(prior):
    with pytest.raises(ValueError, match=r"`prior` has shape .* \(3, 4\)"):
        BayesianLinear(4, 3, prior=prior)


@pytest.mark.parametrize("prior", [1.0, "normal", lambda shape, fan_in: 1.0])
def test_prior_of_the_wrong_type(prior):
    with pytest.raises(TypeError, match="prior"):
        BayesianLinear(4, 3, prior=prior)


def test_bias_prior():
    layer = BayesianLinear(4, 3, bias_prior=dist.Normal(1.0, 1e-6), prior=dist.Normal(0.0, 1e-6))
    torch.testing.assert_close(layer(torch.ones(2, 4)), torch.ones(2, 3), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="bias_prior"):
        BayesianLinear(4, 3, bias=False, bias_prior=dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="bias_prior"):
        BayesianLinear(4, 3, bias_prior=dist.Normal(torch.zeros(4), 1.0))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: priors.Normal(0.0, 0.0), "scale"),
        (lambda: priors.Normal(float("nan"), 1.0), "loc"),
        (lambda: priors.Laplace(0.0, -1.0), "scale"),
        (lambda: priors.FanInNormal(0.0), "gain"),
        (lambda: priors.ScaleMixture(0.0), "prob"),
        (lambda: priors.ScaleMixture(0.5, -1.0), "scale1"),
        (lambda: priors.ScaleMixture(0.5, 1.0, 0.0), "scale2"),
    ],
)
def test_rules_reject(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


def test_wrong_width():
    with pytest.raises(ValueError, match="4 features"):
        BayesianLinear(4, 3)(torch.ones(2, 5))


def test_samples_one_weight_for_a_layer_used_twice():
    layer = BayesianLinear(4, 4)
    trace = poutine.trace(PyroModule[nn.Sequential](layer, layer)).get_trace(torch.ones(2, 4))
    assert len(trace.stochastic_nodes) == 2


@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
def test_padding_stays_zero(kind):
    """Whatever the draw, also after training, and without a gradient from the data."""
    layer = BayesianEmbedding(5, 3, padding_idx=-2)
    guide = kind.make(layer, init_scale=0.3)
    module = Standalone(layer, guide)
    x = torch.tensor([[0, 3], [3, 1]])
    for _ in range(3):
        out, kl = module(x)
        assert (out[x == 3] == 0).all()
        assert (out[x != 3] != 0).all()
        loc = guide["weight"].loc
        (gradient,) = torch.autograd.grad(out.square().sum(), loc, retain_graph=True)
        assert (gradient[3] == 0).all()
        assert (gradient[:2] != 0).all()
        (out.square().sum() + kl).backward()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    samples = Predictive(layer, guide=guide, num_samples=4, return_sites=["_RETURN"])(x)["_RETURN"]
    assert (samples[:, x == 3] == 0).all()


def test_an_embedding_rejects():
    with pytest.raises(ValueError, match="`sparse`"):
        BayesianEmbedding(5, 3, sparse=True)
    with pytest.raises(TypeError, match="pretrained"):
        BayesianEmbedding.from_pretrained(torch.ones(5, 3))
    with pytest.raises(ValueError, match="bias_prior"):
        BayesianEmbedding(5, 3, bias_prior=priors.Normal(0.0, 1.0))


@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
def test_signature_is_torchs_and_the_priors(row):
    shown = list(inspect.signature(row.make).parameters)
    expected = row.torch if not row.is_recurrent else nn.RNNBase
    left_out = {"mode", "_weight", "_freeze"}
    torchs = [name for name in inspect.signature(expected).parameters if name not in left_out]
    if row.torch is nn.RNN:
        torchs.insert(3, "nonlinearity")
    if row.torch in (nn.GRU, nn.RNN):
        torchs.remove("proj_size")
    assert shown[: len(torchs)] == torchs
    assert shown[len(torchs) :] == ["prior", "bias_prior"][: 1 if row.num_embeddings else 2]


@pytest.mark.parametrize(
    ("make", "args", "fan_ins"),
    [
        (BayesianConv2d, {"groups": 2, "kernel_size": 3}, {"weight": 18, "bias": 18}),
        (
            BayesianConvTranspose2d,
            {"groups": 2, "kernel_size": 4, "stride": 2},
            {"weight": 8, "bias": 8},
        ),
    ],
)
def test_fan_in(make, args, fan_ins):
    layer = make(4, 6, **args, prior=priors.FanInNormal(1.0), bias_prior=priors.FanInNormal(1.0))
    for name, fan_in in fan_ins.items():
        variance = getattr(layer, name + "_prior")().variance
        torch.testing.assert_close(variance, torch.full_like(variance, 1 / fan_in))
    lstm = BayesianLSTM(5, 3, num_layers=2, prior=priors.FanInNormal(1.0))
    for name, fan_in in (("weight_ih_l0", 5), ("weight_hh_l0", 3), ("weight_ih_l1", 3)):
        variance = getattr(lstm, name + "_prior")().variance
        torch.testing.assert_close(variance, torch.full_like(variance, 1 / fan_in))


def test_printing_draws_nothing():
    layer, unbiased = BayesianLinear(3, 2), BayesianLinear(3, 2, bias=False)
    before = torch.get_rng_state()
    assert "in_features=3, out_features=2, bias=True" in repr(layer)
    assert "bias=False" in repr(unbiased)
    assert torch.equal(torch.get_rng_state(), before)
