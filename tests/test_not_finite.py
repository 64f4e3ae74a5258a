"""A loss or gradient that is not finite raises before it changes a parameter."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from models import Regression, bayesian_mlp, data
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn import BNN, bayesianize, fit, likelihoods
from pyro_bnn.compat import Standalone, WithKL, bensemble
from pyro_bnn.guides import AutoLRT, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO


class Trained:
    """A network of one hidden layer in one of the forms of training."""

    def __init__(self, form):
        self.form = form
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        if form == "with_kl":
            layers = bensemble.BayesianLinear(3, 4), nn.Tanh(), bensemble.BayesianLinear(4, 1)
            self.module = WithKL(nn.Sequential(*layers))
            self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.01)
            return
        self.model = Regression(bayesianize(self.net))
        self.guide = AutoReparameterization(self.model)
        self.module = {
            "svi": lambda: self.guide,
            "fit": lambda: self.guide,
            "elbo": lambda: TraceKL_ELBO()(self.model, self.guide),
            "standalone": lambda: Standalone(self.model.net, self.guide),
        }[form]()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.01)
        if form == "svi":
            optim = pyro.optim.Adam({"lr": 0.01})
            self.svi = SVI(self.model, self.guide, optim, TraceKL_ELBO())

    def loss(self, x, y):
        if self.form == "elbo":
            return self.module(x, y)
        output, kl = self.module(x)
        return (output.squeeze(-1) - y).square().sum() + kl

    def step(self, x, y):
        if self.form == "svi":
            self.svi.step(x, y)
        elif self.form == "fit":
            fit(self.model, self.guide, (x, y), 1, progress=False)
        else:
            self.optimizer.zero_grad()
            self.loss(x, y).backward()
            self.optimizer.step()

    def state(self):
        return copy.deepcopy(dict(self.module.named_parameters()))


FORMS = pytest.mark.parametrize("form", ["svi", "elbo", "standalone", "with_kl", "fit"])


@FORMS
@pytest.mark.parametrize("where", ["input", "target"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinite_data_change_no_parameter(form, where, value):
    """An infinite input saturates the hidden units: the loss is finite, its gradient is not."""
    pyro.enable_validation(False)
    trained = Trained(form)
    x, y = data()
    trained.step(x, y)
    before = trained.state()
    bad = {"input": x.clone(), "target": y.clone()}
    bad[where].view(-1)[4] = value
    with pytest.raises(ValueError, match="no parameter was changed"):
        trained.step(bad["input"], bad["target"])
    assert all(torch.equal(p, before[n]) for n, p in trained.module.named_parameters())
    trained.step(x, y)  # what is left of the gradients does not spoil the next step
    assert all(p.isfinite().all() for p in trained.module.parameters())
    assert not any(torch.equal(p, before[n]) for n, p in trained.module.named_parameters())


@pytest.mark.parametrize("form", ["svi", "elbo"])
def test_the_argument_is_named(form):
    pyro.enable_validation(False)
    trained = Trained(form)
    x, y = data()
    x[1, 1] = float("inf")
    with pytest.raises(ValueError, match=r"gradients of \[.*infinite values in .*`x` \(1 of 60"):
        trained.step(x, y)
    x, y = data()
    y[3] = float("inf")
    with pytest.raises(ValueError, match=r"'obs'\] is -inf \(infinite values in .*`y` \(1 of 20"):
        trained.step(x, y)


@pytest.mark.parametrize("form", ["svi", "elbo", "standalone"])
def test_a_root_at_zero_in_front_of_what_is_deterministic(form):
    """Finite data, a finite loss, and a gradient of NaN in a part that has no posterior."""

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.deterministic = nn.Linear(3, 3, bias=False)
            self.head = bayesian_mlp(3, 1)

        def forward(self, x):
            return self.head(self.deterministic(x).square().sqrt())

    x, y = data()
    x[0] = 0.0
    net = Net()
    model = Regression(net)
    guide = AutoLRT(model)
    elbo = TraceKL_ELBO()
    before = copy.deepcopy([*net.parameters(), *guide.parameters()])
    loss = {
        "svi": lambda: None,
        "elbo": lambda: elbo(model, guide)(x, y),
        "standalone": lambda: sum(value.square().sum() for value in Standalone(net, guide)(x)),
    }[form]()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    with pytest.raises(ValueError, match=r"deterministic.weight'\] are not finite"):
        svi.step(x, y) if loss is None else loss.backward()
    assert all(map(torch.equal, before, [*net.parameters(), *guide.parameters()]))


def test_an_infinite_loss_may_be_evaluated():
    pyro.enable_validation(False)
    trained = Trained("svi")
    x, y = data()
    y[3] = float("inf")
    assert trained.svi.evaluate_loss(x, y) == float("inf")


@pytest.mark.parametrize("form", ["elbo", "standalone", "with_kl"])
def test_a_scaler_skips_steps_itself(form):
    trained = Trained(form)
    x, y = data()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = trained.state()
    scaler.scale(trained.loss(x, y)).backward()
    scaler.step(trained.optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(p, before[n]) for n, p in trained.module.named_parameters())
    while scaler.get_scale() > 2.0**60:
        trained.optimizer.zero_grad()
        scaler.scale(trained.loss(x, y)).backward()
        scaler.step(trained.optimizer)
        scaler.update(max(scaler.get_scale() / 2**8, 2.0**60))
    assert not any(torch.equal(p, before[n]) for n, p in trained.module.named_parameters())
    assert all(p.isfinite().all() for p in trained.module.parameters())


def test_large_gradients_are_finite():
    """Their sum is not."""
    trained = Trained("standalone")
    output, kl = trained.module(torch.ones(2, 3))
    for parameter in trained.module.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    (0 * output.sum() + 0 * kl).backward()
    assert all(p.grad.sum().isinf() or p.numel() == 1 for p in trained.module.parameters())


def test_masks_of_attention_are_infinite():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x, mask):
            return self.head(self.attention(x, x, x, attn_mask=mask)[0]).mean(1)

    x, y = torch.randn(6, 5, 4), torch.randn(6)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    assert mask.min() == -float("inf")
    model = BNN(bayesianize(Net()), likelihoods.Normal())
    guide = AutoReparameterization(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    svi.step({"x": x, "mask": mask}, y)
    module = Standalone(model.net, guide)
    output, kl = module(x, mask)
    (output.square().sum() + kl).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_gradients_without_a_backward_pass():
    """Parameters that a functional call puts in place are not taken for those of the module."""
    trained = Trained("standalone")
    x, y = data()
    parameters = dict(trained.module.named_parameters())
    copies = {n: p.detach().requires_grad_() for n, p in parameters.items()}
    output, kl = torch.func.functional_call(trained.module, copies, (x,))
    (output.square().sum() + kl).backward()
    grads = torch.autograd.grad(trained.loss(x, y), list(parameters.values()), create_graph=True)
    assert sum(g.square().sum() for g in grads).requires_grad

    def loss(values, x):
        output, kl = torch.func.functional_call(trained.module, values, (x,))
        return output.square().sum() + kl

    detached = {n: p.detach() for n, p in parameters.items()}
    each = torch.func.grad(loss)(detached, x)
    assert all(g.isfinite().all() for g in each.values())
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")
    assert all(g.shape[0] == 20 for g in rows(detached, x.unsqueeze(1)).values())
    with pytest.raises(ValueError, match="not finite"):
        (float("inf") * trained.loss(x, y)).backward()


def test_a_copy_checks_its_own_gradients():
    trained = Trained("standalone")
    x, y = data()
    trained.step(x, y)
    copied = copy.deepcopy(trained.module)
    x[0, 0] = float("inf")
    output, kl = copied(x)
    with pytest.raises(ValueError, match="not finite"):
        (output.sum() + kl).backward()


def test_sparse_gradients():
    net = bayesianize(nn.Sequential(nn.Linear(3, 1)))
    module = Standalone(net, AutoReparameterization(net))
    extra = nn.Embedding(5, 3, sparse=True)
    module.extra = extra
    output, kl = module(extra(torch.tensor([1, 2])))
    (output.sum() + kl).backward()
    assert extra.weight.grad.is_sparse
    output, kl = module(extra(torch.tensor([1, 2])))
    with pytest.raises(ValueError, match=r"extra\.weight"):
        (float("inf") * output.sum() + kl).backward()
