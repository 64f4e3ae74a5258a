"""What is said where inference would run on, and be wrong."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.importance import psis_diagnostic
from pyro.nn import PyroModule
from pyro.optim import Adam

from pyro_bnn import BNN, bayesianize, likelihoods
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear

X, Y = torch.randn(6, 3), torch.randn(6)
WEIGHTS = {
    "Importance": lambda *args: Importance(*args[:2], num_samples=2).run(*args[2:]),
    "RenyiELBO": lambda *args: RenyiELBO(num_particles=2).loss(*args),
    "RenyiELBO, steps": lambda *args: RenyiELBO(num_particles=2).loss_and_grads(*args),
    "an importance weight": lambda *args: psis_diagnostic(*args, num_particles=50),
    "TraceTailAdaptive_ELBO": lambda *args: TraceTailAdaptive_ELBO(
        num_particles=2, vectorize_particles=True
    ).loss_and_grads(*args),
}


def regression(net, size=None):
    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", size or len(x), subsample_size=len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("make", [AutoFlipout, AutoLRT])
def test_importance_weights_of_no_weight(make, name):
    net = BayesianLinear(3, 1, bias=False)
    model = regression(net)
    guide = make(model)
    if name == "Importance":
        guide["weight"].prune(torch.tensor([[True, False, True]]))
    with pytest.raises(ValueError, match=rf"{name.partition(',')[0]} .*guide.shared_draws\(\)"):
        WEIGHTS[name](model, guide, X, Y)
    Trace_ELBO().loss(model, guide, X, Y)
    with guide.shared_draws():
        WEIGHTS[name](model, guide, X, Y)


class TestNetworkInAPlate:
    def model(self, dim):
        net = BayesianLinear(3, 1)

        def model(x, y):
            with pyro.plate("outer", len(x), dim=dim):
                mean = net(x).squeeze(-1)
                with pyro.plate("data", len(x), dim=-1) if dim < -1 else warnings.catch_warnings():
                    pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

        return model

    def test_of_the_data(self):
        kernel = NUTS(self.model(-1), max_plate_nesting=1)
        with pytest.raises(ValueError, match=r"`weight`.* 6 elements.*before the plate"):
            MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True).run(X, Y)
        with pytest.raises(ValueError, match=r"`weight`.* 6 elements.*before the plate"):
            AutoNormal(self.model(-1))(X, Y)

    def test_one_for_each_element(self):
        kernel = NUTS(self.model(-2), max_plate_nesting=2)
        mcmc = MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True)
        mcmc.run(X, Y.expand(6, 6))
        assert mcmc.get_samples()["weight"].shape == (1, 6, 1, 1, 3)


@pytest.mark.parametrize("loss", [TraceKL_ELBO, Trace_ELBO, TraceMeanField_ELBO])
def test_a_step_without_data(loss):
    net = BayesianLinear(3, 1)
    guide = AutoReparameterization(net)
    svi = SVI(net, guide, Adam({"lr": 0.1}), loss())
    with pytest.warns(UserWarning, match=r"observes nothing.*KL divergence.*obs=y") as found:
        svi.step(X)
    assert {warning.filename for warning in found} == {__file__}
    loss()(net, guide)(X)  # the KL divergence, which one may want to know


class TestForgottenNumber:
    def train(self, model, batches, elbo=None):
        guide = AutoLRT(model)
        svi = SVI(model, guide, Adam({"lr": 0.01}), elbo or TraceKL_ELBO())
        guide(*batches[0])
        for batch in batches:
            svi.step(*batch)
        return guide

    def batches(self):
        return [(torch.randn(5, 3), torch.randn(5)) for _ in range(8)]

    @pytest.mark.parametrize("make", [regression, lambda net: BNN(net, likelihoods.Normal())])
    def test_of_data(self, make):
        with pytest.warns(UserWarning, match=r"each of them as all data.*num_data") as found:
            self.train(make(BayesianLinear(3, 1)), self.batches())
        assert [warning.filename for warning in found] == [__file__]

    def test_nothing_is_said_where_it_is_given(self):
        self.train(regression(BayesianLinear(3, 1), size=40), self.batches())
        self.train(BNN(BayesianLinear(3, 1), likelihoods.Normal(), num_data=40), self.batches())
        self.train(regression(BayesianLinear(3, 1)), self.batches(), TraceKL_ELBO(kl_weight=0.1))

    def test_nor_with_all_data_in_each_step(self):
        net = BayesianLinear(3, 1)
        self.train(regression(net), [(X, Y)] * 60)
        self.train(regression(net), [(X + 0.1 * torch.randn(6, 3), Y) for _ in range(8)])


class TestVectorizedParticles:
    """The likelihood of a draw is the same as in a loop, or refused."""

    FUNCTIONS = {
        "softmax": lambda h: torch.softmax(4 * h, dim=1),
        "normalize": torch.nn.functional.normalize,
        "cumsum": lambda h: h.cumsum(1),
        "statistics": torch.nn.BatchNorm1d(3),
    }

    def model(self, function, noise):
        net = BayesianLinear(2, 3)

        def model(x, y=None):
            mean = function(net(x))[..., 0]
            with pyro.plate("data", 9, subsample_size=len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

        return model

    def loss(self, function, guide=AutoLRT, init_scale=1e-4, noise=0.1):
        model = self.model(function, noise)
        guide = guide(model, init_scale=init_scale)
        x, y = torch.randn(3, 2), torch.randn(3)
        losses = []
        for vectorized in (False, True):
            elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=vectorized, kl_weight=0)
            losses.append(elbo.loss(model, guide, x, y))
        return losses

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_of_positive_dimensions(self, name):
        with pytest.raises(ValueError, match=r"`obs` is .*dim=-1.*vectorize_particles"):
            self.loss(self.FUNCTIONS[name])

    def test_of_a_small_difference(self):
        with pytest.raises(ValueError, match="vectorize_particles"):
            self.loss(self.FUNCTIONS["softmax"], noise=3.0)

    @pytest.mark.parametrize("in_list", [False, True])
    def test_of_draws_that_are_still_alike(self, in_list):
        layers = BayesianLinear(2, 3), torch.nn.Softmax(1), BayesianLinear(3, 1)
        model = BNN(PyroModule[torch.nn.Sequential](*layers), likelihoods.Normal())
        start = {"net.0.weight": torch.zeros(3, 2), "net.2.weight": torch.zeros(1, 3)}
        hidden = poutine.block(model, hide=["likelihood.scale"]) if in_list else model
        guide = AutoLRT(hidden, init_loc_fn=start, init_scale=1e-4)
        if in_list:
            guides = AutoGuideList(model)
            guides.append(guide)
            guides.append(AutoNormal(poutine.block(model, expose=["likelihood.scale"])))
            guide = guides
        elbo = TraceKL_ELBO(num_particles=3, vectorize_particles=True)
        for _ in range(2):  # a second try is refused, too
            with pytest.raises(ValueError, match="vectorize_particles"):
                elbo.loss(model, guide, X[:, :2], Y)

    @pytest.mark.parametrize("function", [lambda h: h.sum(1), lambda h: h[:, :1].squeeze(1)])
    def test_of_outputs_that_lose_their_rows(self, function):
        with pytest.raises(ValueError, match="Leave out `vectorize_particles`"):
            self.loss(lambda h: function(h)[:, None].expand(-1, 3))

    def test_of_a_plate_of_outputs(self):
        net = BayesianLinear(2, 3)

        def model(x, y):
            mean = net(x)
            with pyro.plate("outputs", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
                pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

        elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=True)
        with pytest.raises(ValueError, match=r"15 log likelihoods .*30 .*to_event\(1\)"):
            elbo.loss(model, AutoLRT(model), X[:5, :2], torch.ones(5, 3))

    @pytest.mark.parametrize("guide", [AutoFlipout, AutoLRT, AutoReparameterization])
    def test_of_dimensions_from_the_last(self, guide):
        one, many = self.loss(lambda h: torch.softmax(4 * h, dim=-1), guide)
        assert many == pytest.approx(one, rel=0.01)

    def test_once(self):
        calls = []
        model = self.model(lambda h: calls.append(h.shape) or torch.softmax(h, dim=-1), 0.1)
        guide = AutoLRT(model)
        elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        for expected in (range(3, 20), [1], [1]):
            calls.clear()
            elbo.loss(model, guide, torch.randn(3, 2), torch.randn(3))
            assert len(calls) in expected

    def test_of_particles_that_differ(self):
        self.loss(lambda h: torch.softmax(4 * h, dim=-1), AutoFlipout, init_scale=1.0)

    def test_networks_with_noise_of_their_own(self):
        self.loss(torch.nn.Dropout(0.5))
        self.loss(lambda h: h + torch.randn_like(h))


def test_derivatives_by_the_input_are_none_of_a_weight():
    net = BayesianLinear(3, 1)
    module = Standalone(net, AutoLRT(net, init_scale=0.3))
    x = torch.tensor([[2.0, 0.5, 0.1]], requires_grad=True)
    (by_loss,) = torch.autograd.grad(module(x)[0].sum(), x)
    assert by_loss.shape == x.shape
    with pytest.raises(ValueError, match=r"local reparameterization.*AutoFlipout"):
        torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    loss = lambda x: module(x)[0].sum()
    for slopes in (torch.func.grad(loss), torch.vmap(torch.func.grad(loss), randomness="same")):
        with pytest.raises(ValueError, match=r"`torch.func`.*AutoFlipout"):
            slopes(x.detach())
    of_parameters = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,))[0].sum())
    assert all(grad.any() for grad in of_parameters(dict(module.named_parameters())).values())
    with module.guide.shared_draws():
        (slope,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        torch.func.grad(loss)(x.detach())
    assert slope.requires_grad


class BothSides(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return torch.vmap(self.layer, randomness="different")(x), self.layer(x)


def test_flipout_inside_and_outside_of_vmap():
    net = bayesianize(BothSides())
    module = Standalone(net, AutoFlipout(net, init_scale=0.3))
    with pytest.raises(ValueError, match=r"inside of `torch.vmap`.*shared_draws"):
        module(X)
    with module.guide.shared_draws():
        inside, outside = module(X)[0]
    torch.testing.assert_close(inside, outside)
