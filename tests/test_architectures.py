"""Networks of a model library convert as they are, and train under every guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from pyro.infer import SVI
from pyro.nn import PyroModule

from pyro_bnn import bayesianize, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.infer import TraceKL_ELBO

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = SIZES | {"vocab_size": 30, "max_position_embeddings": 16}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


def bert():
    config = transformers.BertConfig(num_labels=3, **TEXT)
    return transformers.BertForSequenceClassification(config)


def masked_bert():
    """Its decoder is tied to its embedding, which has padding."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))


def gpt():
    """Its linear layers are the library's own, and its decoder is tied to its embedding."""
    config = transformers.GPT2Config(
        vocab_size=30,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    """Its normalisation layers are the library's own."""
    config = transformers.LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **TEXT)
    return transformers.LlamaForCausalLM(config)


NETS = {make.__name__: make for make in (resnet, vit, bert, masked_bert, gpt, llama)}
EACH_NET = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


class Classifier(PyroModule):
    """Classifies by the last of what may be a sequence of logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        logits = self.net(x).logits
        logits = logits[:, -1] if logits.dim() == 3 else logits
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def trained(make):
    """A network whose biases are not zero, at which some gradients would vanish."""
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def inputs(make):
    if make in (resnet, vit):
        return torch.randn(4, 3, 16, 16)
    return torch.randint(1, 30, (4, 7))


def normalisations(net):
    return {
        f"{path}.{name}"
        for path, module in net.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__
    }


@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
@EACH_NET
def test_trains(kind, make):
    net, x, y = trained(make), inputs(make), torch.randint(3, (4,))
    model = Classifier(bayesianize(net))
    guide = kind.make(model)
    names = {f"net.{name}" for name, _ in net.named_parameters()}
    assert set(guide) == names - {f"net.{name}" for name in normalisations(net)}
    elbo = TraceKL_ELBO()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    assert all(torch.isfinite(torch.tensor(svi.step(x, y))) for _ in range(3))
    guide.zero_grad()
    elbo.differentiable_loss(model, guide, x, y).backward()
    for name, parameter in guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@EACH_NET
def test_there_and_back(make):
    net, x = trained(make).eval(), inputs(make)
    converted = bayesianize(net)
    guide = GUIDES[0].make(converted)
    expected = net(x).logits
    with torch.no_grad():
        torch.testing.assert_close(
            Standalone(converted, guide, sample=False)(x)[0].logits, expected
        )
        plain = to_deterministic(converted, guide)
        torch.testing.assert_close(plain(x).logits, expected)
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert not any(isinstance(m, PyroModule) for m in plain.modules())
