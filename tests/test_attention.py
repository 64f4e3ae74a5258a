"""Torch's attention, whose weights have priors, trains under every guide."""

from __future__ import annotations

import pyro
import pytest
import torch
from kinds import GUIDES
from models import Regression, with_priors
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout
from pyro_bnn.infer import Predictive, TraceKL_ELBO

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
ROWWISE = pytest.mark.parametrize(
    "kind", [k for k in GUIDES if not k.is_shared], ids=lambda k: k.name
)


class SelfAttention(PyroModule):
    def __init__(self, **kwargs):
        super().__init__()
        self.attention = with_priors(nn.MultiheadAttention(8, 2, batch_first=True, **kwargs))

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def encoder_layer(**kwargs):
    return with_priors(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, **kwargs))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    return with_priors(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


NETS = {
    "self-attention": SelfAttention,
    "no biases": lambda: SelfAttention(bias=False),
    "layer": encoder_layer,
    "layer, normalised first": lambda: encoder_layer(norm_first=True),
    "layer with GELU": lambda: encoder_layer(activation="gelu"),
    "encoder": encoder,
}
EACH_NET = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


class Mean(PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[..., 0].mean(-1)


@EACH
@EACH_NET
def test_trains_and_predicts(kind, net):
    model, x, y = Regression(Mean(net())), torch.randn(6, 5, 8), torch.randn(6)
    guide = kind.make(model)
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    for _ in range(3):
        assert svi.step(x, y) > 0
    assert all((p != before[n]).any() for n, p in guide.named_parameters())
    model.eval()
    draws = Predictive(model, guide=guide, num_samples=4)(x)
    assert draws["obs"].shape == (4, 6)
    weights = {name: draws[name].reshape(4, *guide[name].median().shape) for name in guide}
    results = [
        Predictive(model.net, weights, return_sites=["_RETURN"], parallel=parallel)(x)["_RETURN"]
        for parallel in (True, False)
    ]
    torch.testing.assert_close(*results)


@EACH
@EACH_NET
def test_every_parameter_gets_a_gradient_also_without_pyro(kind, net):
    net = Mean(net())
    module = Standalone(net, kind.make(net))
    out, kl = module(torch.randn(6, 5, 8))
    (out.square().sum() + kl).backward()
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


@ROWWISE
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_fused_attention_gets_one_shared_draw(kind, training, grad):
    net = SelfAttention().train(training)
    guide = kind.make(net, init_scale=0.3)
    x = torch.randn(6, 5, 8)
    with torch.set_grad_enabled(grad):
        draws = guide(x)
        output = poutine.condition(net, draws)(x)
        values = {name: torch.as_tensor(draw + 0) for name, draw in draws.items()}
        torch.testing.assert_close(output, poutine.condition(net, values)(x))
        for name, value in values.items():
            assert (value != guide[name].median()).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_rest_of_a_layer_follows_the_estimator(training):
    """Its two linear layers give each example a weight of its own."""
    net = encoder_layer().train(training)
    net.dropout.p = net.dropout1.p = net.dropout2.p = net.self_attn.dropout = 0.0
    guide = AutoFlipout(net, init_scale=0.3)
    x = torch.randn(1, 5, 8).expand(4, 5, 8)
    with torch.no_grad():
        draws = guide(x)
        output = poutine.condition(net, draws)(x)
    assert not torch.allclose(output[0], output[1])
    linear = {name: draw for name, draw in draws.items() if name.startswith("linear")}
    rest = {name: torch.as_tensor(d + 0) for name, d in draws.items() if name not in linear}
    with torch.no_grad():
        torch.testing.assert_close(poutine.condition(net, {**linear, **rest})(x), output)
