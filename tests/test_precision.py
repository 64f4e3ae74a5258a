"""Low precision and memory formats pass through layers as they do through torch's."""

from __future__ import annotations

import pytest
import torch
from kinds import GUIDES
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn.compat import Standalone
from pyro_bnn.nn import BayesianConv2d, BayesianLSTM


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
