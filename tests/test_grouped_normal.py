"""Normals with a scale for each group of weights, and priors whose scales are learned."""

from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from models import check_gradients_with_graph, within
from sklearn.datasets import load_digits
from test_hierarchical import VARIANTS, ids, make_layer
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import BNN, bayesianize, fit, kernels, likelihoods, priors
from pyro_bnn.distributions import GroupedNormal, NormalMixture, Radial, mixture_kl_bound
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import TraceKL_ELBO, diagnose, kl
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import MixturePosterior, NormalPosterior, RadialPosterior

DIMS = pytest.mark.parametrize("group_dims", [(), (0,), (1,), (0, 2)])


def make(group_dims, loc=0.3, scale=None):
    """A prior of a weight of shape (4, 3), and the Normals of its entries."""
    view = (2, 2, 3) if 2 in group_dims else (4, 3)
    shape = [view[d] for d in group_dims]
    if scale is None:
        scale = torch.linspace(0.5, 2.0, math.prod(shape), dtype=torch.double).view(shape)
    p = GroupedNormal((4, 3), scale, loc, group_dims=group_dims, view=view)
    ones = [n if d in group_dims else 1 for d, n in enumerate(view)]
    whole = scale.reshape(ones).expand(view).reshape(4, 3)
    return p, dist.Normal(torch.as_tensor(loc).to(whole).expand(4, 3), whole)


def posterior(kind):
    torch.manual_seed(0)
    loc, scale = torch.randn(4, 3).double(), (torch.rand(4, 3) + 0.2).double()
    if kind == "Radial":
        return Radial(loc, scale, 2)
    if kind == "Mixture":
        pair = torch.stack([loc, loc + 0.5], -1)
        weight = torch.tensor([0.4, 0.6]).double()
        return NormalMixture(weight, pair, scale.unsqueeze(-1)).to_event(2)
    return dist.Normal(loc, scale).to_event(2)


@DIMS
def test_it_is_the_normal_of_its_entries(group_dims):
    p, entries = make(group_dims)
    expected = entries.to_event(2)
    w = torch.randn(5, 4, 3).double()
    torch.testing.assert_close(p.log_prob(w), expected.log_prob(w))
    torch.testing.assert_close(p.mean, expected.mean)
    torch.testing.assert_close(p.variance, expected.variance)
    torch.testing.assert_close(p.entries.scale, entries.scale)
    torch.manual_seed(0)
    draws = p.expand((2,)).sample((20_000,))
    assert draws.shape == (20_000, 2, 4, 3)
    assert within(draws, expected.mean)
    assert within((draws - 0.3).square(), expected.variance)


@DIMS
@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("kind", ["Normal", "Radial", "Mixture"])
def test_kl_is_that_from_the_normal_of_its_entries(kind, is_plain, group_dims):
    q = posterior(kind)
    p, entries = make(group_dims)
    expected = kl_divergence(q, entries.to_event(2))
    with kernels.enabled(not is_plain):
        torch.testing.assert_close(kl_divergence(q, p), expected)
    if kind == "Mixture":
        expected = mixture_kl_bound(q.base_dist, entries).sum()
        torch.testing.assert_close(kl_divergence(q, p), expected)
    assert kl(q, p).kind == ("bound" if kind == "Mixture" else "exact")


@DIMS
@pytest.mark.parametrize("is_radial", [False, True])
def test_gradients(group_dims, is_radial):
    q = posterior("Radial" if is_radial else "Normal")
    q = q if is_radial else q.base_dist
    p, _ = make(group_dims)
    inputs = [q.loc, q.scale, torch.tensor(0.3).double(), p.scale.clone()]
    inputs = [x.requires_grad_() for x in inputs]

    def function(loc, scale, prior_loc, group_scale):
        prior, _ = make(group_dims, prior_loc, group_scale)
        made = Radial(loc, scale, 2) if is_radial else dist.Normal(loc, scale).to_event(2)
        return kl_divergence(made, prior)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    check_gradients_with_graph(function, inputs)
    mapped = torch.vmap(function, in_dims=(0, None, None, None))(
        torch.stack([inputs[0]] * 2), *inputs[1:]
    )
    torch.testing.assert_close(mapped, function(*inputs).expand(2))


@pytest.mark.parametrize("kind", [NormalPosterior, RadialPosterior, MixturePosterior])
def test_pruned_weights_do_not_count(kind):
    torch.manual_seed(2)
    pruned = kind(torch.randn(4, 3), 0.3).double()
    pruned.prune(torch.rand(4, 3) < 0.7)
    p, entries = make((1,))
    found = kl_divergence(pruned.distribution(), p)
    expected = kl_divergence(pruned.distribution(), entries.to_event(2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learnable_scale", ["input", "output"])
@pytest.mark.parametrize("is_converted", [False, True])
@pytest.mark.parametrize(("row", "variant"), VARIANTS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_groups_are_those_of_hierarchical_priors(row, variant, is_converted, learnable_scale):
    rule = priors.Normal(0.3, 0.5, learnable_scale=learnable_scale)
    layer = make_layer(row, variant, rule, is_converted)
    other = make_layer(row, variant, priors.HierarchicalNormal(learnable_scale), is_converted)
    for name in layer._pyro_samples:
        p, hierarchical = (getattr(m, name + "_prior")() for m in (layer, other))
        if hierarchical.group_shape:
            assert torch.equal(ids(p), ids(hierarchical))
            assert p.scale.requires_grad
            assert p.scale.shape == p.group_shape
        else:
            assert p.base_dist.scale.shape == p.event_shape  # one scale, expanded
        torch.testing.assert_close(p.mean, torch.full_like(p.mean, 0.3))
        torch.testing.assert_close(p.variance, torch.full_like(p.variance, 0.25))


@pytest.mark.parametrize("is_converted", [False, True])
@pytest.mark.parametrize(("row", "variant"), VARIANTS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_each_entry_has_a_scale(row, variant, is_converted):
    layer = make_layer(row, variant, priors.Normal(0.3, 0.5, learnable_scale="entry"), is_converted)
    for name in layer._pyro_samples:
        prior = getattr(layer, name + "_prior")
        assert prior.scale.shape == prior.shape
        prior.scale = torch.rand(prior.shape) + 0.1
        torch.testing.assert_close(prior().stddev, prior.scale)
        torch.testing.assert_close(prior().mean, torch.full_like(prior.scale, 0.3))


@pytest.mark.parametrize("groups", ["tensor", "input", "output", "entry"])
def test_learned_scales_are_those_of_the_posterior(groups):
    r"""At the optimum :math:`s_g^2` is the mean of :math:`(\mu - m)^2 + \sigma^2` in its group."""
    torch.manual_seed(0)
    rule = priors.FanInNormal(learnable_scale=groups)
    layer = BayesianLinear(4, 3, bias=False, prior=rule, dtype=torch.double)
    (parameter,) = layer.parameters()
    assert parameter.shape == {"tensor": (), "input": (4,), "output": (3,)}.get(groups, (3, 4))
    q = dist.Normal(torch.randn(3, 4).double(), 0.3).to_event(2)
    optimizer = torch.optim.Adam([parameter], 0.05)
    for _ in range(500):
        optimizer.zero_grad()
        kl_divergence(q, layer.weight_prior()).backward()
        optimizer.step()
    squares = q.mean.square() + q.variance
    if groups != "entry":
        dims = {"tensor": (0, 1), "input": (0,), "output": (1,)}[groups]
        squares = squares.mean(dims, keepdim=True)
    expected = squares.expand(3, 4)
    torch.testing.assert_close(layer.weight_prior().variance, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("num_hidden", [7, 100])  # few entries, and more than a joint one has
@pytest.mark.parametrize("groups", ["tensor", "input", "output", "entry"])
def test_kl_of_networks_and_its_gradient(groups, num_hidden):
    torch.manual_seed(0)
    rule = {"prior": priors.Normal(0.2, 0.7, learnable_scale=groups)}
    net = bayesianize(
        nn.Sequential(nn.Linear(num_hidden, num_hidden), nn.Linear(num_hidden, 2)).double(), **rule
    )
    guide = AutoLRT(net, init_scale=0.4)
    scales = [p for name, p in net.named_parameters() if "scale" in name]
    leaves = [*guide.parameters(), *scales]
    with torch.no_grad():
        for leaf in leaves:
            leaf.add_(0.3 * torch.randn_like(leaf))
    x = torch.zeros(0, num_hidden).double()
    found = TraceKL_ELBO().differentiable_loss(net, guide, x)
    expected = torch.zeros(())
    for name, q in ((name, guide[name].base()) for name in guide):
        prior = net.get_submodule(f"{name}_prior")()
        entries = prior.entries if isinstance(prior, GroupedNormal) else prior.base_dist
        expected = expected + kl_divergence(q, entries).sum()
    torch.testing.assert_close(found, expected)
    both = [torch.autograd.grad(value, leaves) for value in (found, expected)]
    torch.testing.assert_close(*both)


def test_copies_and_checkpoints():
    layer = BayesianLinear(4, 3, prior=priors.Normal(learnable_scale="input"))
    layer.weight_prior.scale = torch.tensor([0.1, 0.2, 0.3, 0.4])
    w = torch.randn(3, 4)
    expected = layer.weight_prior().log_prob(w)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other.weight_prior().log_prob(w), expected)
    target = BayesianLinear(4, 3, prior=priors.Normal(learnable_scale="input"))
    target.load_state_dict(layer.state_dict())
    torch.testing.assert_close(target.weight_prior().log_prob(w), expected)
    wide = copy.deepcopy(layer).double().weight_prior()
    torch.testing.assert_close(wide.log_prob(w.double()), expected.double())


def test_few_images_train_to_more_than_a_constant_prediction():
    rows = 50
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[:rows] / 16, dtype=torch.float), torch.tensor(y[:rows])
    net = nn.Sequential(
        nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    model = BNN(net, likelihoods.Categorical())
    guide = AutoLRT(model)
    fit(model, guide, (x, y), epochs=1200, seed=0, progress=False)
    found = diagnose(model, guide, (x, y))
    constant = -torch.special.entr(torch.bincount(y) / rows).sum().item()
    assert found.trivial == pytest.approx(constant * rows)
    assert found.elbo > found.trivial + 0.3 * rows


@pytest.mark.parametrize(
    "prior", [priors.Normal(learnable_scale="input"), priors.HierarchicalNormal(learnable_loc=True)]
)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_guides_are_copied_and_pickled(prior, is_frozen):
    net = BayesianLinear(4, 3, prior=prior).requires_grad_(not is_frozen)
    guide = AutoLRT(net)
    guide(torch.ones(2, 4))
    pair = net, guide
    for _, other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        torch.testing.assert_close(other["weight"].loc, guide["weight"].loc)


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(4, 3, bias=False),
        nn.Sequential(nn.Conv2d(4, 3, 2, bias=False), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.PReLU()),
    ],
)
def test_networks_without_biases_have_default_priors(net):
    model = BNN(net, likelihoods.Normal())
    assert isinstance(AutoLRT(model)[next(iter(AutoLRT(model)))], NormalPosterior)
    assert [name for name, _ in model.net.named_parameters() if "scale_unconstrained" in name]


def test_diagnosis_counts_weights_that_equal_a_learned_prior():
    net = bayesianize(nn.Linear(4, 3), prior=priors.Normal(0.0, 0.5, learnable_scale="input"))
    model = BNN(net, likelihoods.Normal())
    guide = AutoLRT(model, init_scale=0.5)
    with torch.no_grad():
        guide["net.weight"].loc_unconstrained.zero_()
    data = torch.randn(6, 4), torch.randn(6, 3)
    assert diagnose(model, guide, data, num_samples=25).collapsed["net.weight"] == 1


@pytest.mark.parametrize("rule", [priors.Normal, priors.FanInNormal, priors.Laplace])
def test_bad_rules(rule):
    with pytest.raises(ValueError, match=r"`learnable_scale` \(='row'\) must be True, False"):
        rule(learnable_scale="row")


def test_laplace_has_one_scale():
    message = r"`learnable_scale` \(='input'\) must be True, False or \"entry\""
    with pytest.raises(ValueError, match=message):
        priors.Laplace(learnable_scale="input")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1.0}, r"`scale` \(=-1.0\) must be positive"),
        ({"scale": torch.ones(3)}, r"`scale` of shape \(3,\) must be a scalar, or .* shape \(2,\)"),
        ({"loc": torch.ones(5)}, r"`loc` of shape \(5,\) must broadcast"),
    ],
)
def test_bad_distributions(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupedNormal((2, 3), **arguments, group_dims=(0,))
