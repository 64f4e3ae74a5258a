"""The layers of bensemble: its interface, checkpoints and numbers, and finite KL divergences."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from bensemble.layers.conv import BayesianConv2d as TheirConv2d
from bensemble.layers.linear import BayesianLinear as TheirLinear
from models import within
from torch import nn

from pyro_bnn.compat import WithKL
from pyro_bnn.compat.bensemble import BaseBayesianLayer, BayesianConv2d, BayesianLinear

PAIRS = [
    (BayesianLinear, TheirLinear, (3, 2), (5, 3)),
    (BayesianConv2d, TheirConv2d, (3, 2, (2, 1), 2, 1, 1, 1), (5, 3, 6, 6)),
]
EACH = pytest.mark.parametrize(("make", "their", "args", "shape"), PAIRS)


@EACH
def test_arguments(make, their, args, shape):
    expected = inspect.signature(their).parameters
    shown = inspect.signature(make).parameters
    assert [n for n in shown if n != "options"] == list(expected)
    assert all(shown[n].default == p.default for n, p in expected.items())


@EACH
def test_checkpoints_load_both_ways(make, their, args, shape):
    x = torch.randn(shape)
    for source, target in [
        (their(*args), make(*args)),
        (make(*args), their(*args)),
    ]:
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(target.eval()(x), source.eval()(x))
        torch.testing.assert_close(target.kl_divergence(), source.kl_divergence())
        for t in (0.0, 0.83, 3.0):
            one, other = target.get_pruning_masks(t), source.get_pruning_masks(t)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("init", ["kaiming", "xavier", "normal"])
def test_starts_where_theirs_does(init):
    torch.manual_seed(0)
    their = TheirLinear(300, 200, 0.5, 0.2, init)
    layer = BayesianLinear(300, 200, 0.5, 0.2, init)
    assert layer.w_mu.std().item() == pytest.approx(their.w_mu.std().item(), rel=0.02)
    for name in ("b_mu", "w_rho", "b_rho"):
        torch.testing.assert_close(getattr(layer, name), getattr(their, name))
    assert F.softplus(layer.w_rho)[0, 0].item() == pytest.approx(0.2)


@EACH
def test_training_has_the_moments_of_the_posterior(make, their, args, shape):
    layer = make(*args, init_sigma=0.5)
    x = torch.randn(shape)[:1]
    outputs = torch.stack([layer(x) for _ in range(4000)])
    mean = copy.deepcopy(layer).eval()(x)
    assert within(outputs, mean)
    function = F.linear if make is BayesianLinear else lambda x, w, b: F.conv2d(x, w, b, 2, 1)
    sigma, sigma_b = F.softplus(layer.w_rho), F.softplus(layer.b_rho)
    assert within((outputs - mean).square(), function(x.square(), sigma.square(), sigma_b.square()))
    assert torch.isfinite(layer(torch.zeros(shape))).all()
    (layer(x).sum() + layer.kl_divergence()).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@EACH
def test_pruned_layers_keep_a_finite_kl(make, their, args, shape):
    other, layer = their(*args), make(*args)
    with torch.no_grad():
        other.b_mu.normal_()
    layer.load_state_dict(other.state_dict())
    full = layer.kl_divergence()
    assert layer.apply_pruning(3.0) == pytest.approx(other.apply_pruning(3.0))
    masks = layer.get_pruning_masks(0.0)
    assert 0 < sum(m.sum() for m in masks.values()) < sum(m.numel() for m in masks.values())
    assert torch.isinf(other.kl_divergence())
    kl = layer.kl_divergence()
    assert 0 < kl < full
    loaded = make(*args)
    loaded.load_state_dict(other.state_dict())
    torch.testing.assert_close(loaded.kl_divergence(), kl)
    for pruned in (layer, loaded, pickle.loads(pickle.dumps(layer))):
        x = torch.randn(shape)
        before = {n: p.detach().clone() for n, p in pruned.named_parameters()}
        optimizer = torch.optim.Adam(pruned.parameters(), lr=0.01)
        (pruned.train()(x).square().sum() + pruned.kl_divergence()).backward()
        optimizer.step()
        for name, parameter in pruned.named_parameters():
            assert torch.isfinite(parameter).all()
            kept = masks[name.replace("rho", "mu")].bool()
            assert torch.equal(parameter[~kept], before[name][~kept])
        torch.testing.assert_close(pruned.get_pruning_masks(0.0), masks)
        _, total = WithKL(pruned)(x)
        torch.testing.assert_close(total, pruned.kl_divergence())
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, pruned.parameters()))
        assert pruned.double().eval()(x.double()).dtype == torch.float64
        assert pruned.to("meta")._posteriors["weight"].kept.is_meta
    whole = make(*args)
    whole.load_state_dict(other.state_dict())
    torch.testing.assert_close(WithKL(whole)(torch.randn(shape))[1], kl)


def test_a_layer_of_your_own():
    class Scale(BaseBayesianLayer):
        def __init__(self):
            super().__init__(prior_sigma=0.5)
            self.s_mu = nn.Parameter(torch.ones(3))
            self.s_rho = nn.Parameter(torch.zeros(3))
            self.other_mu = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x * (self.s_mu + F.softplus(self.s_rho) * torch.randn_like(self.s_rho))

    layer = Scale()
    q = torch.distributions.Normal(torch.ones(3), F.softplus(torch.zeros(3)))
    p = torch.distributions.Normal(torch.zeros(3), 0.5)
    expected = torch.distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(layer.kl_divergence(), expected)
    assert list(layer.get_pruning_masks()) == ["s_mu"]


@EACH
def test_initialisations_of_torch_layers_pass_by(make, their, args, shape):
    layer = make(*args)
    before = layer.w_mu.clone()
    for m in nn.Sequential(layer).modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)) or hasattr(m, "weight"):
            nn.init.normal_(m.weight, 0, 5)
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    assert torch.equal(layer.w_mu, before)
    with pytest.raises(AttributeError, match="its mean is `b_mu`"):
        _ = layer.bias
    assert not list(layer.buffers())


def test_an_existing_loop_runs():
    torch.manual_seed(0)
    x = torch.rand(200, 2)
    y = x[:, :1] - x[:, 1:]
    net = nn.Sequential(BayesianLinear(2, 16), nn.Tanh(), BayesianLinear(16, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        kl = sum(m.kl_divergence() for m in net if isinstance(m, BaseBayesianLayer))
        (50 * F.mse_loss(net(x), y, reduction="sum") + kl).backward()
        optimizer.step()
    assert F.mse_loss(net.eval()(x), y) < 0.01


def test_refuses():
    with pytest.raises(ValueError, match=r"`prior_sigma` \(=0.0\) must be positive"):
        BayesianLinear(2, 2, prior_sigma=0.0)
    with pytest.raises(ValueError, match=r"`init_sigma` \(=-1.0\)"):
        BayesianConv2d(2, 2, 1, init_sigma=-1.0)
    with pytest.raises(ValueError, match=r"`weight_init` \(='he'\) must be one of"):
        BayesianLinear(2, 2, weight_init="he")
    with pytest.raises(ValueError, match=r"`in_features` \(=0\) must be positive"):
        BayesianLinear(0, 2)
    with pytest.raises(ValueError, match=r"`out_channels` \(=0\) must be positive"):
        BayesianConv2d(2, 0, 1)
    with pytest.raises(ValueError, match=r"`threshold` \(=-1\)"):
        BayesianLinear(2, 2).get_pruning_masks(-1)
