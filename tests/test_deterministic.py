"""A Bayesian network as a plain one: the same output, no Pyro, and ready to export."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES, LAYERS
from models import Regression, data, torch_mlp
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_bnn import bayesianize, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.nn import BayesianEmbedding, BayesianLinear

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
ALL = pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)


def is_plain(net):
    return not any(
        isinstance(module, PyroModule) or any(name.startswith("_pyro") for name in vars(module))
        for module in net.modules()
    )


@EACH
@ALL
def test_has_the_output_of_means_and_of_draws(kind, row):
    net = row.make(**row.args)
    guide = kind.make(net, init_scale=0.3)
    x = row.x(4)
    plain = to_deterministic(net, guide)
    assert is_plain(plain)
    assert type(plain) is row.torch
    mean = row.output(Standalone(net, guide, sample=False)(x)[0])
    torch.testing.assert_close(row.output(plain(x)), mean)
    draw = guide(x)
    values = {name: value + 0 for name, value in draw.items()}
    expected = row.output(poutine.condition(net, values)(x))
    drawn = to_deterministic(net, guide, draw)
    torch.testing.assert_close(row.output(drawn(x)), expected)
    assert (row.output(drawn(x)) != mean).any()
    assert all(p.requires_grad for p in plain.parameters())
    pickle.dumps(copy.deepcopy(plain))


def test_leaves_the_network_alone_and_shares_nothing_with_it():
    net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval())
    guide = AutoReparameterization(net)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    plain = to_deterministic(net, guide)
    assert not plain.training
    net.train()[1].eval()
    assert [m.training for m in to_deterministic(net, guide)] == [True, False, True]
    with torch.no_grad():
        for tensor in [*plain.parameters(), *plain.buffers()]:
            tensor.add_(1)
    assert all(torch.equal(guide.state_dict()[name], value) for name, value in before.items())
    assert net[1].weight.tolist() == [1.0] * 4
    assert net[1].num_batches_tracked == 0
    assert list(AutoLRT(net)) == list(guide)


def test_shared_weights_stay_shared():
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5))
    net[1].weight = net[0].weight
    converted = bayesianize(net)
    plain = to_deterministic(converted, AutoLRT(converted))
    assert plain[1].weight is plain[0].weight
    assert plain.state_dict().keys() == net.state_dict().keys()


def test_padding_stays_what_it_is():
    net = BayesianEmbedding(5, 3, padding_idx=1)
    plain = to_deterministic(net, AutoLRT(net))
    assert plain.weight[1].tolist() == [0.0] * 3
    assert not list(plain.buffers())
    old = nn.Embedding.from_pretrained(torch.ones(5, 3), freeze=False, padding_idx=1)
    net = bayesianize(old)
    assert net(torch.tensor([1])).tolist() == [[1.0] * 3]
    guide = AutoLRT(net, init_loc_fn=lambda site: torch.zeros(5, 3))
    assert to_deterministic(net, guide)(torch.tensor([0, 1])).tolist() == [[0.0] * 3, [1.0] * 3]


def test_a_part_of_a_model():
    model = Regression(torch_mlp(3, 4, 1), noise=None)
    guide, (x, y) = AutoReparameterization(model), data()
    guide(x, y)
    plain = to_deterministic(model.net, guide)
    assert is_plain(plain)
    torch.testing.assert_close(plain(x), Standalone(model.net, guide, sample=False)(x)[0])
    with pytest.raises(TypeError, match="`net`, a Regression, has its forward in a PyroModule"):
        to_deterministic(model, guide)


def test_constrained_attributes():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.scale * self.gain

    net = PyroModule[Scaled](2, 2)
    net.scale = PyroSample(dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    net.gain = PyroParam(torch.tensor(2.0), dist.constraints.positive)
    guide = AutoReparameterization(net)
    plain = to_deterministic(net, guide)
    assert plain.scale.tolist() == guide["scale"].median().tolist()
    assert plain.gain.item() == pytest.approx(2.0)
    x = torch.randn(3, 2)
    torch.testing.assert_close(plain(x), Standalone(net, guide, sample=False)(x)[0])


class Changed(BayesianLinear):
    def forward(self, x):
        return -super().forward(x)


def test_refuses():
    net = bayesianize(nn.Sequential(nn.Linear(3, 2)))
    guide = AutoLRT(net)
    with pytest.raises(ValueError, match=r"`draw` has no value for the site `0.bias`"):
        to_deterministic(net, guide, {"0.weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"shape \(7, 2, 3\) for `0.weight`.*take one draw"):
        to_deterministic(net, guide, {"0.weight": torch.ones(7, 2, 3), "0.bias": torch.ones(2)})
    with pytest.raises(TypeError, match=r"`guide` .*must be one of pyro_bnn.guides"):
        to_deterministic(net, lambda x: None)
    with pytest.raises(ValueError, match="no random weights"):
        to_deterministic(nn.Linear(1, 1), guide)
    with pytest.raises(ValueError, match="no posteriors for the sites"):
        to_deterministic(bayesianize(nn.Linear(3, 2)), guide)
    changed = Changed(3, 2)
    with pytest.raises(TypeError, match="`net`, a Changed, has its forward in a PyroModule"):
        to_deterministic(changed, AutoLRT(changed))
    twice = PyroModule[nn.Linear](2, 2)
    twice.bias = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    twice.weight = PyroSample(lambda self: self.bias.diag())
    with pytest.raises(TypeError, match=r"functions of draws, \['weight'\]"):
        to_deterministic(twice, AutoLRT(twice))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


EXPORTED = {
    "convolutional": (convolutional, (2, 1, 6, 6)),
    "attention": (attention, (2, 3, 8)),
    "recurrent": (Last, (2, 5, 3)),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")  # as of any nn.LSTM
@pytest.mark.parametrize(("make", "shape"), EXPORTED.values(), ids=EXPORTED)
def test_torch_export(make, shape):
    net = bayesianize(make().eval())
    guide = AutoLRT(net)
    x = torch.randn(shape)
    expected = Standalone(net, guide, sample=False)(x)[0]
    plain = to_deterministic(net, guide)
    exported = torch.export.export(plain, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    assert exported.state_dict.keys() == plain.state_dict().keys()


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
@pytest.mark.parametrize(("make", "shape"), EXPORTED.values(), ids=EXPORTED)
def test_onnx_export(make, shape, tmp_path):
    from onnx.reference import ReferenceEvaluator

    net = bayesianize(make().eval())
    guide = AutoLRT(net)
    x = torch.randn(shape)
    expected = Standalone(net, guide, sample=False)(x)[0]
    path = tmp_path / "net.onnx"
    torch.onnx.export(to_deterministic(net, guide), (x,), path, dynamo=True, verbose=False)
    session = ReferenceEvaluator(str(path))
    (output,) = session.run(None, {session.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-5)
