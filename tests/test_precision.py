"""Low precision and memory formats pass through layers as they do through torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from kinds import GUIDES
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT, AutoMixture
from pyro_bnn.infer import kl
from pyro_bnn.nn import BayesianConv2d, BayesianEmbedding, BayesianLinear, BayesianLSTM
from pyro_bnn.priors import HierarchicalNormal, Normal, ScaleMixture


def network(guide):
    torch.manual_seed(0)
    layers = (BayesianConv2d(3, 8, 3, padding=1), nn.ReLU(), BayesianConv2d(8, 4, 3, padding=1))
    net = PyroModule[nn.Sequential](*layers)
    return Standalone(net, guide.make(net, init_scale=0.1))


@pytest.mark.parametrize("guide", GUIDES)
def test_bfloat16_by_autocast_is_close_to_float32(guide):
    model = network(guide)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    expected, kl = model(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        output, kl_by_autocast = model(x)
        loss = output.float().square().sum() + kl_by_autocast
    loss.backward()
    assert output.dtype == torch.bfloat16
    # The format has 8 bits of precision, and each of the two layers rounds a few times.
    assert (output - expected).norm() < 4 * 2**-8 * expected.norm()
    assert kl_by_autocast.dtype == torch.float32
    torch.testing.assert_close(kl_by_autocast, kl)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    for y in (expected, output):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("guide", GUIDES)
def test_recurrent_layers_run_under_autocast(guide):
    net = PyroModule[nn.Sequential](BayesianLSTM(3, 4))
    model = Standalone(net, guide.make(net))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(3, 4)(torch.randn(4, 5, 3))
    except RuntimeError as error:  # of oneDNN, on processors without AVX-512
        pytest.skip(f"torch's own LSTM does not run in bfloat16 here: {error}")
    with torch.autocast("cpu", torch.bfloat16):
        (outputs, _), kl = model(torch.randn(4, 5, 3))
        (outputs.float().sum() + kl).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("guide", GUIDES)
def test_float32_is_close_to_float64(guide):
    model = network(guide).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        model.sample = False
        expected, kl = model(x)
        output, kl_in_float32 = model.float()(x.float())
    assert (output - expected).norm() < 1e-6 * expected.norm()
    assert abs(kl_in_float32 / kl - 1) < 1e-6


def one_layer(size, scale):
    net = PyroModule[nn.Sequential](BayesianLinear(size, 3))
    start = {"0.weight": torch.zeros(3, size), "0.bias": torch.zeros(3)}
    return Standalone(net, AutoLRT(net, init_loc_fn=start, init_scale=scale))


@pytest.mark.parametrize("by_autocast", [True, False])
@pytest.mark.parametrize(("value", "scale"), [(1.0, 0.1), (300.0, 0.1), (2e4, 0.1), (1.0, 1e-5)])
def test_lrt_has_the_right_noise_in_float16(by_autocast, value, scale):
    """Neither squares of large inputs nor those of small scales are numbers of float16."""
    torch.manual_seed(0)
    model = one_layer(4, scale)
    x = torch.full((2000, 4), value, requires_grad=True)
    if by_autocast:
        with torch.autocast("cpu", torch.float16):
            output = model(x)[0]
    else:
        model = model.half()
        scale = F.softplus(model.guide["0.weight"].scale_unconstrained[0, 0]).item()
        output = model(x.half())[0]
    assert output.dtype == torch.float16
    # Outputs are Normal, their log density half their squares: 5 standard errors of 6,000 of them.
    z = output.double() / (scale * math.sqrt(4 * value**2 + 1))
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / z.numel())
    loss = z.float().square().mean()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("make", [BayesianConv2d, BayesianEmbedding], ids=["conv", "embedding"])
def test_lrt_of_other_maps_in_float16(make):
    torch.manual_seed(0)
    if make is BayesianConv2d:
        layer, x = BayesianConv2d(1, 2, 2, bias=False), torch.full((2000, 1, 2, 2), 1e3)
        factor = 2e3
    else:
        layer, x = BayesianEmbedding(3, 4), torch.zeros(2000, 1, dtype=torch.long)
        factor = 1.0
    net = PyroModule[nn.Sequential](layer)
    scale = 1e-5 if factor == 1.0 else 0.1
    start = {"0.weight": torch.zeros_like(layer.weight)}
    model = Standalone(net, AutoLRT(net, init_loc_fn=start, init_scale=scale)).half()
    rho = model.guide["0.weight"].scale_unconstrained.flatten()[0]
    output = model(x.half() if x.is_floating_point() else x)[0]
    assert output.dtype == torch.float16
    z = output.double() / (factor * F.softplus(rho).item())
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / z.numel())


def test_a_second_use_of_a_weight_in_float16_sees_the_same_weight():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x), self.layer(x), self.layer(2 * x)

    net = bayesianize(Twice())
    model = Standalone(net, AutoLRT(net, init_scale=1.0)).half()
    first, second, doubled = model(torch.full((50, 4), 400.0).half())[0]
    assert first.isfinite().all()
    # Biases are a four-hundredth of the outputs; float16 has 11 bits.
    assert (second - first).abs().max() < 2**-10 * first.abs().max()
    assert (doubled - 2 * first).abs().max() < 2e-2 * first.abs().max()


@pytest.mark.parametrize("prior", [Normal(), HierarchicalNormal(), ScaleMixture()])
@pytest.mark.parametrize("make", [AutoLRT, AutoMixture])
def test_kl_divergences_of_many_weights_do_not_overflow_in_float16(make, prior):
    divergences = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(0)
        layer = BayesianLinear(300, 300, prior=prior, dtype=dtype)
        posterior = make(layer)["weight"].distribution(shared=True)
        divergences.append(kl(posterior, layer.weight_prior()).value.sum())
    half, single = divergences
    assert half.dtype == torch.float32
    assert single > torch.finfo(torch.float16).max
    assert half.item() == pytest.approx(single.item(), rel=0.01)
