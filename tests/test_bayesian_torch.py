"""The layers of bayesian-torch: its interface and checkpoints, and the right numbers."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from models import within
from torch import nn
from torch.distributions import Independent, kl_divergence

from pyro_bnn.compat import WithKL, bayesian_torch
from pyro_bnn.compat.bayesian_torch import (
    BaseMixtureLayer_,
    BaseVariationalLayer_,
    Conv2dFlipout,
    ConvTranspose2dFlipout,
    LinearFlipout,
    LinearMixture,
    LinearReparameterization,
    LSTMFlipout,
    dnn_to_bnn,
    get_kl_loss,
)
from pyro_bnn.distributions import NormalMixture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bayesian_torch.layers as theirs
    from bayesian_torch.models.dnn_to_bnn import get_kl_loss as their_kl_loss

KINDS = [
    "Linear",
    *(f"{kind}{space}d" for kind in ("Conv", "ConvTranspose") for space in (1, 2, 3)),
    "LSTM",
]
ESTIMATORS = ["Reparameterization", "Flipout", "Radial", "Mixture"]
NAMES = [kind + estimator for kind in KINDS for estimator in ESTIMATORS]
SHIPPED = [kind + estimator for kind in KINDS for estimator in ESTIMATORS[:2]]
LAYERS = pytest.mark.parametrize("name", NAMES)
DEFAULTS = {
    "prior_mean": 0,
    "prior_variance": 1,
    "posterior_mu_init": 0,
    "posterior_rho_init": -3.0,
}
PARAMETERS = {
    "prior_mu": 0.0,
    "prior_sigma": 2.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "type": "Flipout",
    "moped_enable": False,
    "moped_delta": 0.2,
}


def split(name):
    estimator = next(e for e in ESTIMATORS if name.endswith(e))
    return name.removesuffix(estimator), estimator


def make(name, module=bayesian_torch, num_out=3, **kwargs):
    args = (2, num_out) if split(name)[0] in ("Linear", "LSTM") else (2, num_out, 2)
    return getattr(module, name)(*args, **kwargs)


def inputs(name, *, dtype=torch.float):
    kind, _ = split(name)
    shape = {"Linear": (), "LSTM": (5,)}.get(kind)
    if shape is None:
        return torch.randn(4, 2, *[5] * int(kind[-2]), dtype=dtype)
    return torch.randn(4, *shape, 2, dtype=dtype)


def first(result):
    return result[0] if isinstance(result, tuple) else result


def test_has_all_layers():
    kinds = tuple(KINDS)
    assert set(NAMES) == {n for n in bayesian_torch.__all__ if n.startswith(kinds)}
    assert len(NAMES) == 32


@LAYERS
def test_arguments(name):
    kind, estimator = split(name)
    signature = inspect.signature(getattr(bayesian_torch, name))
    expected: dict = {
        "in_features": inspect.Parameter.empty,
        "out_features": inspect.Parameter.empty,
    }
    if kind not in ("Linear", "LSTM"):
        empty = inspect.Parameter.empty
        expected = {"in_channels": empty, "out_channels": empty, "kernel_size": empty}
        expected |= {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if estimator == "Mixture" and kind != "LSTM":
        order = [("prior", ("mean", "variance")), ("posterior", ("mu_init", "rho_init"))]
        expected |= {
            f"{who}_{what}_{k}": DEFAULTS[f"{who}_{what}"]
            for who, whats in order
            for k in (1, 2)
            for what in whats
        }
    else:
        expected |= DEFAULTS
    expected["bias"] = True
    shown = {
        n: p.default
        for n, p in signature.parameters.items()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    assert shown == expected
    assert list(shown) == list(expected)
    assert inspect.getdoc(getattr(bayesian_torch, name))


def test_positional_arguments_are_theirs_but_where_the_page_of_migration_says_so():
    names = lambda module, name: list(inspect.signature(getattr(module, name)).parameters)
    differ = {n for n in SHIPPED if names(theirs, n) != names(bayesian_torch, n)[:-2]}
    transposed = {n for n in SHIPPED if n.startswith("ConvTranspose")}
    assert differ == {"Conv3dReparameterization", *transposed}
    assert all("output_padding" in names(theirs, n) for n in transposed)


def test_constructors_of_subclasses():
    class Square(LinearFlipout):
        def __init__(self, features, **options):
            super().__init__(features, features, 0.5, 4.0, **options)

    assert list(inspect.signature(Square).parameters) == ["features", "options"]
    layer = Square(3, bias=False, dtype=torch.float64)
    assert layer.mu_weight.shape == (3, 3)
    assert (layer.prior_weight_mu == 0.5).all()
    assert (layer.prior_weight_sigma == 2.0).all()
    with pytest.raises(TypeError, match="out_features"):
        LinearFlipout(3)
    with pytest.raises(TypeError, match="no_such_argument"):
        LinearFlipout(3, 3, no_such_argument=1)


@pytest.mark.parametrize("bias", [True, False])
@LAYERS
def test_output_and_kl(name, bias):
    layer = make(name, bias=bias)
    x = inputs(name)
    result = layer(x)
    kl = result[-1]
    assert kl.shape == ()
    assert kl.item() == pytest.approx(layer.kl_loss().item())
    without = layer(x, return_kl=False)
    kind = split(name)[0]
    plain = getattr(nn, kind)(*((2, 3) if kind in ("Linear", "LSTM") else (2, 3, 2)), bias=bias)
    if kind == "LSTM":
        hidden, (h, c) = without
        assert hidden.shape == h.shape == c.shape == (4, 5, 3)
        assert len(result) == 3
    else:
        assert without.shape == result[0].shape == plain(x).shape
    (first(result).sum() + kl).backward()
    for parameter in layer.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()
    assert not torch.equal(first(layer(x)), first(layer(x)))


@pytest.mark.parametrize("name", [n for n in NAMES if split(n)[1] in ESTIMATORS[:2]])
def test_kl_is_the_closed_form(name):
    layer = make(name, prior_mean=0.3, prior_variance=4.0)
    parameters = dict(layer.named_parameters())
    expected = 0.0
    for key, mu in parameters.items():
        if ".mu_" in f".{key}":
            sigma = F.softplus(parameters[key.replace("mu_", "rho_")])
            error = sigma.square() + (mu - 0.3).square()
            expected += ((2 / sigma).log() + error / (2 * 4) - 0.5).sum()
    torch.testing.assert_close(layer.kl_loss(), expected)


def test_kl_of_radial_and_mixture_posteriors():
    for name in ("LinearRadial", "LinearMixture"):
        layer = make(name)
        q, p = layer._posteriors["weight"].distribution(), layer._prior("weight")
        expected = kl_divergence(q, Independent(p, 2))
        q, p = layer._posteriors["bias"].distribution(), layer._prior("bias")
        assert layer.kl_loss().item() == pytest.approx(
            (expected + kl_divergence(q, Independent(p, 1))).item()
        )


# Checkpoints of the real package.


def pair(name):
    """Their layer and ours."""
    # The priors of some of theirs fit only as many outputs as inputs.
    num_out = 2 if re.match("ConvTranspose.*Flipout", name) else 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(name, theirs, num_out, **DEFAULTS), make(name, num_out=num_out)


def without_noise(layer):
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "rho" in key:
                parameter.fill_(-40.0)
    return layer


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoints_load_both_ways(name):
    assert len(SHIPPED) == 16
    x = inputs(name)
    for source, target in [pair(name), pair(name)[::-1]]:
        without_noise(source)
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(first(target(x)), first(source(x)))
    if name.startswith("LSTM"):
        ours, other = source(x)[1], target(x)[1]
        for one, two in zip(ours, other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", SHIPPED)
def test_their_number_is_a_mean(name):
    their, total = pair(name)
    total.load_state_dict(their.state_dict())
    layer = copy.deepcopy(total)
    layer.kl_reduction = "mean"
    torch.testing.assert_close(layer.kl_loss(), their.kl_loss())
    means = [
        (q.distribution(), Independent(total._prior(k), q.event_dim))
        for k, q in total._posteriors.items()
    ]
    expected = sum(kl_divergence(q, p) / q.event_shape.numel() for q, p in means)
    torch.testing.assert_close(their.kl_loss(), expected)
    assert total.kl_loss() > 4 * their.kl_loss()


def test_a_large_layer_has_a_kl_ten_thousand_times_theirs():
    their = theirs.LinearReparameterization(100, 100, bias=False)
    layer = LinearReparameterization(100, 100, bias=False)
    layer.load_state_dict(their.state_dict())
    assert (layer.kl_loss() / their.kl_loss()).item() == pytest.approx(10_000, rel=1e-4)


# What is right here.


def test_prior_variance_is_a_variance():
    layer = LinearReparameterization(3, 2, prior_variance=4.0)
    assert layer.prior_weight_sigma.flatten()[0] == 2.0
    assert layer.prior_bias_sigma[0] == 2.0
    conv = Conv2dFlipout(1, 1, 1, prior_variance=0.25)
    assert conv.prior_weight_sigma.item() == 0.5


@pytest.mark.parametrize(
    "name", ["LSTMReparameterization", "LSTMFlipout", "LSTMRadial", "LSTMMixture"]
)
def test_lstm_draws_once_for_a_sequence(name):
    layer = make(name, posterior_rho_init=0.0)
    drawn = []
    output = layer._output
    layer._output = lambda values, *args: drawn.append(values) or output(values, *args)
    x = inputs(name)
    hidden, (_, c), kl = layer(x)
    assert len(drawn) == 1
    if name != "LSTMFlipout":
        plain = nn.LSTM(2, 3, batch_first=True)
        with torch.no_grad():
            for key, value in drawn[0].items():
                plain.get_parameter(key).copy_(value)
        expected, (_, last) = plain(x)
        torch.testing.assert_close(hidden, expected)
        torch.testing.assert_close(c[:, -1], last[0])
    assert kl.item() == pytest.approx(layer.kl_loss().item())


@pytest.mark.parametrize("name", ["LSTMReparameterization", "LSTMFlipout"])
def test_lstm_goes_on_from_its_states(name):
    layer = without_noise(make(name))
    x = inputs(name)
    whole, (_, cells), _ = layer(x)
    start = layer(x[:, :2], return_kl=False)[1]
    rest, (_, later), _ = layer(x[:, 2:], start)
    torch.testing.assert_close(rest, whole[:, 2:])
    torch.testing.assert_close(later, cells[:, 2:])
    flat = tuple(state[:, -1] for state in start)
    torch.testing.assert_close(layer(x[:, 2:], flat)[0], rest)


def test_lstm_by_flipout_keeps_the_weights_of_an_example():
    layer = LSTMFlipout(2, 3, posterior_rho_init=1.0)
    x = torch.randn(1, 4, 2).expand(4, 4, 2)  # all examples alike
    hidden, (_, cells), _ = layer(x)
    assert (hidden[0] != hidden[1]).any()
    o = (hidden / cells.tanh()).clamp(0, 1)
    assert torch.isfinite(o).all()
    torch.testing.assert_close(o * cells.tanh(), hidden)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("Linear", "Conv2d", "LSTM"))])
def test_several_forwards_before_one_backward(name):
    layer, x = (
        make(name, posterior_rho_init=0.0) if "Mixture" not in name else make(name),
        inputs(name),
    )

    def gradients(*seeds):
        layer.zero_grad()
        total = 0.0
        for seed in seeds:
            torch.manual_seed(seed)
            total = total + first(layer(x)).square().sum()
        total.backward()
        return [p.grad.clone() for p in layer.parameters()]

    both = gradients(1, 2)
    for one, other, sum_ in zip(gradients(1), gradients(2), both, strict=True):
        torch.testing.assert_close(one + other, sum_, rtol=1e-4, atol=1e-5)


def test_flipout_signs_are_per_channel():
    layer = Conv2dFlipout(2, 3, 2, posterior_rho_init=0.0)
    x = torch.randn(6, 2, 1, 1).expand(6, 2, 5, 5)  # images of one colour
    out = layer(x, return_kl=False)
    assert (out - out[..., :1, :1]).abs().max() < 1e-5  # one weight for all pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their = theirs.Conv2dFlipout(2, 3, 2, posterior_rho_init=0.0)
    out = their(x, return_kl=False)
    assert (out - out[..., :1, :1]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["LinearMixture", "Conv2dMixture"])
def test_components_start_where_they_are_told(name):
    layer = make(
        name,
        posterior_mu_init_1=-1.0,
        posterior_mu_init_2=2.0,
        posterior_rho_init_1=-2.0,
        posterior_rho_init_2=0.0,
    )
    q = layer._posteriors["weight"].base()
    assert (q.loc[..., 0] + 1).abs().max() < 0.5
    assert (q.loc[..., 1] - 2).abs().max() < 0.5
    rho = q.scale.expm1().log()
    assert (rho[..., 0] + 2).abs().max() < 0.5
    assert rho[..., 1].abs().max() < 0.5


def test_components_of_an_lstm_are_given_the_same_start_and_prior():
    start = {"posterior_mu_init": 1.0, "posterior_rho_init": -2.0}
    layer = make("LSTMMixture", prior_mean=0.5, prior_variance=4.0, **start)
    for key, posterior in layer._posteriors.items():
        q, p = posterior.base(), layer._prior(key)
        assert (q.loc - 1).abs().max() < 0.5
        assert (q.scale.expm1().log() + 2).abs().max() < 0.5
        assert (p.loc == 0.5).all()
        assert (p.scale == 2).all()


def test_flipout_has_the_moments_of_the_posterior():
    layer = LinearFlipout(3, 2, posterior_rho_init=0.0)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    outputs = torch.stack([layer(x, return_kl=False)[0] for _ in range(5000)])
    mean = F.linear(x, layer.mu_weight, layer.mu_bias)[0]
    sigma, sigma_b = F.softplus(layer.rho_weight), F.softplus(layer.rho_bias)
    assert within(outputs, mean)
    variance = F.linear(x.square(), sigma.square(), sigma_b.square())[0]
    assert within((outputs - mean).square(), variance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_arguments_of_torch(estimator):
    conv = getattr(bayesian_torch, f"Conv2d{estimator}")(
        2, 4, 3, 2, 1, 1, 2, bias=False, padding_mode="circular", dtype=torch.float64
    )
    assert conv(inputs("Conv2dFlipout", dtype=torch.float64))[0].shape == (4, 4, 3, 3)
    transposed = getattr(bayesian_torch, f"ConvTranspose2d{estimator}")(
        2, 3, 3, stride=2, output_padding=1
    )
    assert transposed(inputs("Conv2dFlipout"))[0].shape == (4, 3, 12, 12)


# As bayesian-torch, no instances of torch's layers: what sets the weights of those passes by.


def set_weights(net):
    for m in net.modules():
        if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LSTM)):
            nn.init.normal_(m.weight, 0, 5)
        if isinstance(m, nn.modules.conv._ConvTransposeNd):
            m.weight.data.normal_(0, 5)
        if hasattr(m, "weight"):
            nn.init.kaiming_normal_(m.weight)
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()


@LAYERS
def test_initialisations_of_torch_layers_pass_by(name):
    layer = make(name)
    before = {n: p.clone() for n, p in layer.state_dict().items()}
    set_weights(nn.Sequential(layer))
    assert all(torch.equal(p, before[n]) for n, p in layer.state_dict().items())
    with pytest.raises(AttributeError, match=r"has no `weight\w*` outside of its forward"):
        getattr(layer, "weight" if not name.startswith("LSTM") else "weight_hh_l0")


@pytest.mark.parametrize("name", SHIPPED)
def test_attributes_are_theirs(name):
    for bias in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            their = make(name, theirs, 2, **DEFAULTS, bias=bias)
        layer = make(name, num_out=2, bias=bias)
        assert str(layer) == (str(their) if "LSTM" not in name else name + "()")
        assert bool(layer.bias) == getattr(their, "bias", bias) == bias
        for kept in ("in_features", "out_features", "in_channels", "out_channels", "groups"):
            if hasattr(their, kept):
                assert getattr(layer, kept) == getattr(their, kept)
        ours = dict(layer.named_buffers())
        for key, prior in their.named_buffers():
            if "prior" in key and prior.shape == prior.squeeze().shape:
                assert ours[key].shape == prior.shape
                assert torch.equal(ours[key], prior)
        if "LSTM" not in name and not bias:
            for absent in ("mu_bias", "rho_bias", "prior_bias_mu", "prior_bias_sigma"):
                assert getattr(layer, absent) is None
        assert list(layer.state_dict()) == list(their.state_dict())


@LAYERS
def test_starts_afresh(name):
    layer, other = make(name), make(name)
    held = dict(layer.named_parameters())
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            tensor.add_(3.0)
    for each in (layer, other):
        torch.manual_seed(0)
        each.init_parameters()
    assert all(p is held[n] for n, p in layer.named_parameters())
    torch.testing.assert_close(layer.state_dict(), other.state_dict())
    torch.testing.assert_close(dict(layer.named_buffers()), dict(other.named_buffers()))
    torch.testing.assert_close(layer.kl_loss(), other.kl_loss())


def test_starts_afresh_where_its_attributes_say():
    layer = LinearReparameterization(100, 100, posterior_mu_init=0.5)
    layer.posterior_rho_init, layer.prior_mean, layer.prior_variance = -1.0, 0.3, 4.0
    layer.init_parameters()
    assert within(layer.mu_weight.detach().flatten(), torch.tensor(0.5))
    assert within(layer.rho_weight.detach().flatten(), torch.tensor(-1.0))
    assert (layer.prior_weight_mu == 0.3).all()
    assert (layer.prior_bias_sigma == 2.0).all()


# Buffers that others write into.


@LAYERS
def test_buffers_can_be_written(name):
    layer = make(name)
    assert all(b.is_contiguous() and b._base is None for b in layer.buffers())
    for buffer in layer.buffers():
        buffer.mul_(1.0)
    average = torch.optim.swa_utils.AveragedModel(layer, use_buffers=True)
    for _ in range(2):
        average.update_parameters(layer)
    torch.testing.assert_close(average.module.kl_loss(), layer.kl_loss())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_distributed(estimator, process_group):
    layer = getattr(bayesian_torch, f"Linear{estimator}")(4, 20)
    net = nn.parallel.DistributedDataParallel(layer)
    for _ in range(2):  # buffers are broadcast before each pass
        out, kl = net(torch.ones(3, 4))
        (out.sum() + kl).backward()
    assert all(p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("size", [3, 100])  # too small to be compared, and compared
def test_priors_that_someone_has_written(size):
    layer = LinearReparameterization(size, size, prior_variance=4.0, dtype=torch.float64)

    def expected():
        q = layer._posteriors["weight"].base()
        p = torch.distributions.Normal(layer.prior_weight_mu, layer.prior_weight_sigma)
        b = torch.distributions.Normal(layer.prior_bias_mu, layer.prior_bias_sigma)
        kl = kl_divergence(torch.distributions.Normal(q.loc, q.scale), p).sum()
        q = layer._posteriors["bias"].base()
        return kl + kl_divergence(torch.distributions.Normal(q.loc, q.scale), b).sum()

    def check():
        gradients = torch.autograd.grad(expected(), list(layer.parameters()))
        torch.testing.assert_close(layer.kl_loss(), expected())
        torch.testing.assert_close(WithKL(layer)(torch.ones(1, size).double())[1], expected())
        found = torch.autograd.grad(layer.kl_loss(), list(layer.parameters()))
        torch.testing.assert_close(found, gradients)

    check()
    layer.prior_weight_mu.data[-1, -1] = 2.0  # which no version of a tensor tells
    check()
    layer.prior_weight_sigma[0, 0] = 0.5
    check()
    layer.prior_weight_mu = torch.randn(size, size, dtype=torch.float64)
    check()
    layer.prior_weight_sigma = layer.prior_weight_sigma.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(layer.kl_loss(), layer.prior_weight_sigma),
        torch.autograd.grad(expected(), layer.prior_weight_sigma),
    )


# Whole networks.


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", bias=False)
        self.up = nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1, dtype=torch.float32)
        self.again = self.conv
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(self.up(self.again(self.conv(x).relu()))).mean((-2, -1))
        return self.head(x)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dnn_to_bnn(estimator):
    net = Block().double()
    modules = dict(net.named_modules(remove_duplicate=False))
    assert dnn_to_bnn(net, PARAMETERS | {"type": estimator}) is None
    assert dict(net.named_modules(remove_duplicate=False)) == modules
    assert type(net.conv).__name__ == f"Conv2d{estimator}"
    assert net.conv is net.again
    assert net.conv.padding_mode == "reflect"
    assert net.up.output_padding == (1, 1)
    assert net.norm.weight.dtype == torch.float64
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    out = net(x)
    assert out.shape == (4, 2)
    kl = get_kl_loss(net)
    layers = [net.conv, net.up, net.head]
    torch.testing.assert_close(kl, sum(layer.kl_loss() for layer in layers))
    assert net.head.prior_bias_sigma.flatten()[0] == 2.0 if estimator != "Mixture" else True
    (out.square().sum() + kl).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_dnn_to_bnn_of_a_root_layer_and_an_lstm():
    net = nn.Linear(3, 2)
    dnn_to_bnn(net, PARAMETERS | {"kl_reduction": "mean"})
    assert net.kl_reduction == "mean"
    net = nn.Linear(3, 2)
    dnn_to_bnn(net, PARAMETERS)
    assert net.kl_reduction == "sum"
    assert isinstance(net, LinearFlipout)
    assert net(torch.ones(4, 3)).shape == (4, 2)
    net = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    dnn_to_bnn(net, PARAMETERS)
    hidden, (_, c) = net(torch.ones(4, 5, 3))
    assert hidden.shape == c.shape == (4, 5, 4)
    once = get_kl_loss(net)
    torch.testing.assert_close(once, net[0].kl_loss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their = nn.Sequential(theirs.LSTMReparameterization(3, 4))
    # Theirs counts the layers inside once more.
    torch.testing.assert_close(their_kl_loss(their), 2 * their[0].kl_loss())


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_moped_sets_posterior_and_prior(estimator):
    net = Block()
    with torch.no_grad():
        net.head.bias[0] = 0.0
    trained = {n: p.detach().clone() for n, p in net.named_parameters()}
    dnn_to_bnn(net, PARAMETERS | {"type": estimator, "moped_enable": True})
    w = trained["head.weight"]
    assert torch.equal(net.head.mu_weight, w)
    assert torch.equal(net.head.prior_weight_mu, w)
    torch.testing.assert_close(F.softplus(net.head.rho_weight), (0.2 * w.abs()).clamp(min=1e-4))
    assert F.softplus(net.head.rho_bias)[0].item() == pytest.approx(1e-4)
    assert torch.equal(net.conv.mu_kernel, trained["conv.weight"])
    assert torch.equal(net.conv.prior_weight_mu, trained["conv.weight"])
    error = net.head.kl_loss() - net.head.kl_div(w, F.softplus(net.head.rho_weight), w, 2.0)
    assert torch.isfinite(error)
    lstm = nn.LSTM(3, 4, batch_first=True)
    weight = lstm.weight_hh_l0.detach().clone()
    dnn_to_bnn(lstm, PARAMETERS | {"type": estimator, "moped_enable": True})
    assert torch.equal(lstm.hh.mu_weight, weight)


class Odd(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("net", "changes", "error", "message"),
    [
        (lambda: nn.ReLU(), {}, ValueError, "no linear, convolutional or LSTM layers"),
        (lambda: nn.Sequential(Odd(2, 2)), {}, TypeError, "`0`, a Odd, is a subclass of"),
        (
            lambda: nn.LSTM(2, 2, 2, batch_first=True),
            {},
            TypeError,
            "`m`, a LSTM, is not one layer",
        ),
        (lambda: nn.LSTM(2, 2), {}, TypeError, "batch_first=True"),
        (lambda: nn.MultiheadAttention(4, 2), {}, TypeError, "`out_proj`, a NonDynamically"),
        (tied, {}, TypeError, "`0.weight` is also `1.weight`"),
        (lambda: nn.Linear(2, 2), {"type": "LRT"}, ValueError, r"`type` \(='LRT'\) must be one"),
        (lambda: nn.Linear(2, 2), {"sigma": 1}, ValueError, r"unknown \['sigma'\]"),
        (lambda: nn.Linear(2, 2), {"prior_mu": torch.ones(3)}, ValueError, "`prior_mu` has shape"),
        (lambda: nn.Linear(2, 2), {"prior_mu": math.inf}, ValueError, r"`prior_mu` \(=inf\)"),
        (lambda: nn.Linear(2, 2), {"prior_sigma": 0.0}, ValueError, r"`prior_sigma` \(=0.0\)"),
        (
            lambda: nn.Linear(2, 2),
            {"type": "Radial", "moped_enable": True},
            TypeError,
            "cannot have a posterior of this `type` with `moped_enable`",
        ),
    ],
)
def test_dnn_to_bnn_refuses(net, changes, error, message):
    net = net()
    types = [type(m) for m in net.modules()]
    with pytest.raises(error, match=message):
        dnn_to_bnn(net, PARAMETERS | changes)
    assert [type(m) for m in net.modules()] == types


def test_refuses():
    with pytest.raises(ValueError, match=r"`prior_variance` \(=-1.0\) must be positive"):
        LinearFlipout(2, 2, prior_variance=-1)
    with pytest.raises(ValueError, match=r"`prior_variance_2` \(=0.0\) must be positive"):
        LinearMixture(2, 2, prior_variance_2=0)
    with pytest.raises(ValueError, match=r"`kl_reduction` \(='max'\)"):
        LinearFlipout(2, 2, kl_reduction="max")
    for name in NAMES:
        is_conv = "Conv" in name
        for argument in (
            ("in_channels", "out_channels") if is_conv else ("in_features", "out_features")
        ):
            sizes = {"in_channels": 2, "out_channels": 2, "kernel_size": 2}
            sizes = sizes if is_conv else {"in_features": 2, "out_features": 2}
            with pytest.raises(ValueError, match=rf"`{argument}` \(=0\) must be positive"):
                getattr(bayesian_torch, name)(**sizes | {argument: 0})
            with pytest.raises(TypeError, match=rf"`{argument}` \(=2.5\) must be an integer"):
                getattr(bayesian_torch, name)(**sizes | {argument: 2.5})
    for argument, wrong in [
        ("kernel_size", 0),
        ("kernel_size", (2, -1)),
        ("stride", 0),
        ("dilation", (0, 1)),
        ("groups", 0),
    ]:
        arguments = {"kernel_size": 2} | {argument: wrong}
        with pytest.raises(ValueError, match=rf"`{argument}` \(={re.escape(str(wrong))}\) must be"):
            Conv2dFlipout(2, 2, **arguments)
    with pytest.raises(
        ValueError, match=r"`out_channels` \(=3\) must be divisible by `groups` \(=2"
    ):
        Conv2dFlipout(2, 3, 1, groups=2)
    nan = float("nan")
    for argument in ("prior_mean", "posterior_mu_init", "posterior_rho_init"):
        with pytest.raises(ValueError, match=rf"`{argument}` \(=nan\) must be finite"):
            LinearFlipout(2, 2, **{argument: nan})
        with pytest.raises(ValueError, match=rf"`{argument}_2` \(=nan\) must be finite"):
            LinearMixture(2, 2, **{f"{argument}_2": nan})
    with pytest.raises(TypeError, match=r"`prior_variance` \(=\[None\]\) must be a number"):
        LinearFlipout(2, 2, prior_variance=[None])
    with pytest.raises(ValueError, match=r"`prior_mean` has shape \(3,\)"):
        LinearFlipout(2, 2, prior_mean=torch.zeros(3))
    with pytest.raises(ValueError, match=r"`X` has shape \(3, 2\)"):
        LSTMFlipout(2, 2)(torch.ones(3, 2))
    with pytest.raises(ValueError, match="no Bayesian layers"):
        get_kl_loss(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no layers of `pyro_bnn.compat`"):
        WithKL(nn.Linear(2, 2))


def test_base_classes():
    class Own(BaseVariationalLayer_):
        def __init__(self):
            super().__init__()
            self.mu = nn.Parameter(torch.ones(3))

        def kl_loss(self):
            return self.kl_div(self.mu, torch.full((3,), 0.5), 0.0, torch.tensor(2.0))

    own = Own()
    expected = 3 * (math.log(4) + (0.25 + 1) / 8 - 0.5)
    assert own.kl_loss().item() == pytest.approx(expected)
    assert get_kl_loss(nn.Sequential(own, nn.ReLU())).item() == pytest.approx(expected)
    layer = BaseMixtureLayer_()
    w = torch.randn(4)
    ones = torch.ones(4)
    kl = layer.mixture_kl_div(
        0 * ones, ones, ones, 0.5 * ones, 0.0, 1.0, 1.0, 2.0, torch.tensor([0.3, 0.7]), w
    )
    q = NormalMixture(torch.tensor([0.3, 0.7]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5]))
    p = NormalMixture(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(kl, (q.log_prob(w) - p.log_prob(w)).sum())


@LAYERS
def test_copies_pickles_and_moves(name):
    layer = make(name)
    x = inputs(name)

    def run(other):
        torch.manual_seed(0)
        return first(other(x))

    expected = run(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(run(other), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert (run(other) != expected).any()
    torch.testing.assert_close(run(layer), expected)
    other = make(name)
    other.load_state_dict(layer.state_dict(), assign=True)
    torch.testing.assert_close(run(other), expected)
    double = copy.deepcopy(layer).double()
    assert first(double(x.double())).dtype == torch.float64
    assert double.kl_loss().dtype == torch.float64
    assert repr(layer).startswith(name + "(")
    for key, q in layer._posteriors.items():  # the very same parameters, under other names
        q.loc_unconstrained = nn.Parameter(torch.ones_like(q.loc_unconstrained))
        assert (layer._get(layer._name(key, "mu")) == 1).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_functional_calls(estimator):
    layer = getattr(bayesian_torch, f"Linear{estimator}")(3, 2)
    values = {name: p.detach() + 10 * ("mu" in name) for name, p in layer.named_parameters()}
    moved = torch.func.functional_call(layer, values, (torch.ones(4, 3),))[0]
    assert (moved > 20).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiles_in_one_graph(estimator):
    kinds = (getattr(bayesian_torch, kind + estimator) for kind in ("Conv2d", "Linear"))
    conv, linear = kinds
    net = WithKL(nn.Sequential(conv(1, 2, 3), nn.ReLU(), nn.Flatten(), linear(18, 2)))
    x = torch.randn(4, 1, 5, 5)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    out, kl = compiled(x)
    assert out.shape == (4, 2)
    torch.testing.assert_close(kl, net(x)[1])
    (out.sum() + kl).backward()
    assert all(p.grad is not None for p in net.parameters())
    torch.compiler.reset()


def test_transposed_layers_of_flipout_run():
    layer = ConvTranspose2dFlipout(2, 3, 3, stride=2, padding=1)
    assert layer(torch.randn(4, 2, 5, 5))[0].shape == (4, 3, 9, 9)


def test_an_existing_loop_runs():
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    y = (x.sum(-1) > 0).long()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = LinearReparameterization(
                in_features=3,
                out_features=16,
                prior_mean=0.0,
                prior_variance=1.0,
                posterior_mu_init=0.0,
                posterior_rho_init=-3.0,
            )
            self.second = LinearFlipout(16, 2)

        def forward(self, x):
            x, kl_first = self.first(x)
            x, kl_second = self.second(torch.relu(x))
            return x, kl_first + kl_second

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        logits, kl = net(x)
        loss = F.cross_entropy(logits, y) + kl / len(x)
        loss.backward()
        optimizer.step()
    logits = torch.stack([net(x)[0] for _ in range(20)]).softmax(-1).mean(0)
    assert (logits.argmax(-1) == y).float().mean() > 0.9
