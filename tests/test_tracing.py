"""What traces or transforms a network: compilers, fake tensors, derivatives by ``torch.func``."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_bnn import bayesianize, to_deterministic
from pyro_bnn.compat import Standalone, WithKL, bayesian_torch
from pyro_bnn.guides import AutoFlipout, AutoLRT

EACH = pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.name)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def net_of_means(module: Standalone) -> nn.Module:
    return to_deterministic(module.net, module.guide)


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.ConvTranspose1d(2, 2, 3), nn.Flatten())


@EACH
@pytest.mark.parametrize("sample", [True, False])
def test_export_for_any_number_of_examples(guide, sample):
    net = bayesianize(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)))
    module = Standalone(net, guide.make(net, init_scale=1e-7))
    module.sample = sample
    sizes = ({0: torch.export.Dim("examples")},)
    exported = torch.export.export(module, (torch.randn(4, 3),), dynamic_shapes=(sizes,)).module()
    for size in (3, 4, 500):
        x = torch.randn(size, 3)
        output, kl = exported(x)
        torch.testing.assert_close(output, net_of_means(module)(x))
        torch.testing.assert_close(kl, module(x)[1])


@EACH
def test_an_exported_network_draws_its_weights(guide):
    torch.manual_seed(0)
    net = bayesianize(nn.Sequential(nn.Linear(2, 1, bias=False)))
    start = {"0.weight": torch.zeros(1, 2)}
    module = Standalone(net, guide.make(net, init_loc_fn=start, init_scale=0.5))
    module.eval()
    x = torch.tensor([[1.0, 2.0]]).repeat(8, 1)
    exported = torch.export.export(module, (x,)).module()
    with torch.no_grad():
        mine, theirs = (torch.stack([f(x)[0] for _ in range(600)]) for f in (module, exported))
    # The same variance, within 5 standard errors of its logarithm by 600 calls each.
    ratio = theirs.var(0).mean() / mine.var(0).mean()
    assert abs(ratio.log()) < 5 * (4 / 600) ** 0.5
    # Examples differ where the guide gives each a weight of its own.
    assert (theirs[:, 0] == theirs[:, 1]).all() == guide.is_shared


@EACH
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # is deprecated, and Pyro's own
def test_jit(guide):
    """A compiled ELBO is one that is not, in its mean."""
    torch.manual_seed(0)
    net = bayesianize(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    x = torch.randn(6, 2)

    def model(x):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", 6):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=x.sum(1))

    guide = guide.make(model, init_scale=0.1)
    guide(x)
    compiled, plain = JitTrace_ELBO(ignore_jit_warnings=True), Trace_ELBO()
    losses = [
        torch.tensor([loss(model, guide, x) for _ in range(100)])
        for loss in (compiled.loss_and_grads, plain.loss)
    ]
    assert losses[0].unique().numel() > 90
    error = math.hypot(*(float(x.std()) / 10 for x in losses))
    assert abs(losses[0].mean() - losses[1].mean()) < 5 * error
    assert all(p.grad is not None and p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("make", [AutoFlipout, AutoLRT])
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), lambda n: torch.randn(n, 3)),
        (convolutions(), lambda n: torch.randn(n, 1, 5)),
        (Tied(), lambda n: torch.randint(5, (n, 2))),
    ],
    ids=["linear", "convolution", "tied"],
)
def test_compiled_once_for_all_numbers_of_examples(net, x, make):
    net = bayesianize(net)
    module = Standalone(net, make(net))
    with torch.no_grad():
        for name in module.guide:
            module.guide[name].scale = torch.full_like(module.guide[name].scale, 1e-9)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in range(2, 14):
        examples = x(size)
        torch.testing.assert_close(compiled(examples), module(examples))
    torch.compiler.reset()
    assert len(graphs) <= 3


def test_layers_of_other_libraries_compile_for_all_numbers_of_examples():
    net = WithKL(nn.Sequential(bayesian_torch.LinearFlipout(3, 2), nn.ReLU()))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for size in range(2, 14):
        assert compiled(torch.randn(size, 3))[0].shape == (size, 2)
    torch.compiler.reset()
    assert len(graphs) <= 3


def networks() -> list[tuple[nn.Module, torch.Tensor]]:
    return [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3)),
        (nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)), torch.ones(2, 4, dtype=torch.long)),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), torch.ones(2, 1, 4, 4)),
        (nn.LSTM(3, 2), torch.ones(5, 2, 3)),
        (nn.Linear(100, 90), torch.ones(2, 100)),
    ]


@EACH
def test_meta_device(guide):
    large = nn.Embedding(3000, 3), torch.tensor([0, 2])  # of which only rows in use are drawn
    for net, x in [*networks(), large]:
        expected = net(x)
        net = bayesianize(net.to("meta"))
        module = Standalone(net, guide.make(net))
        output, kl = module(x.to("meta"))
        output, expected = (t if isinstance(t, torch.Tensor) else t[0] for t in (output, expected))
        (output.sum() + kl).backward()
        assert output.is_meta
        assert output.shape == expected.shape
        for parameter in module.parameters():
            assert parameter.grad.is_meta


@EACH
def test_fake_tensors(guide):
    for net, x in networks():
        net = bayesianize(net)
        module = Standalone(net, guide.make(net))
        expected, _ = module(x)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            output, kl = module(mode.from_tensor(x))
            output = output if isinstance(output, torch.Tensor) else output[0]
            gradients = torch.autograd.grad(output.sum() + kl, list(module.parameters()))
        expected = expected if isinstance(expected, torch.Tensor) else expected[0]
        assert output.shape == expected.shape
        assert [g.shape for g in gradients] == [p.shape for p in module.parameters()]
