"""The hierarchical Normal: its density, groups and KL bound."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES, LAYERS
from models import Regression, bayesian_mlp, check_gradients_with_graph, within
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from scipy.integrate import quad
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import bayesianize, kernels, priors
from pyro_bnn.compat import Standalone
from pyro_bnn.distributions import HierarchicalNormal, NormalMixture, Radial
from pyro_bnn.distributions._joint_grouped import is_alike
from pyro_bnn.estimators import Shared
from pyro_bnn.estimators._estimator import Estimated, small_pair
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.infer._kl import joint_kl, total_kl
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import MixturePosterior, NormalPosterior, RadialPosterior

GROUPS = pytest.mark.parametrize("groups", ["tensor", "input", "output"])


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def normal(loc, scale):
    loc, scale = torch.broadcast_tensors(
        torch.as_tensor(loc, dtype=torch.double), torch.as_tensor(scale, dtype=torch.double)
    )
    return dist.Normal(loc, scale).to_event(loc.dim())


# The table of the paper's bound: mean; scale; hyperparameters; exact KL divergence; bound.
TABLE = [
    ([0.5], [0.3], (0.5, 0.01), 1.38735, 1.8641),
    ([0.0], [1.0], (2.0, 2.0), 0.04627, 0.1197),
    ([-1 + 2 * i / 19 for i in range(20)], [0.2] * 20, (0.5, 0.01), 25.8267, 25.9236),
    ([0.0] * 20, [1.0] * 20, (2.0, 2.0), 0.5174, 0.9303),
]


@pytest.mark.parametrize(("loc", "scale", "hyperparameters", "exact", "bound"), TABLE)
def test_the_bound_lies_above_the_exact_kl(loc, scale, hyperparameters, exact, bound):
    q, size = normal(loc, scale), len(loc)
    p = HierarchicalNormal((size,), *double(*hyperparameters))
    torch.testing.assert_close(kl_divergence(q, p).item(), bound, atol=1e-4, rtol=0)
    # The density depends on the squared length alone, a noncentral chi-squared variable.
    a, b = hyperparameters
    noncentrality = max(sum((m / scale[0]) ** 2 for m in loc), 1e-12)
    length = stats.ncx2(size, noncentrality)

    def log_p(x):
        c = a + size / 2
        return (
            math.lgamma(c)
            - math.lgamma(a)
            + a * math.log(b)
            - size / 2 * math.log(2 * math.pi)
            - c * math.log(b + scale[0] ** 2 * x / 2)
        )

    mean, sd = length.mean(), length.std()
    edges = [0, *(mean + k * sd for k in (-3, -1, 0, 1, 3, 10, 40) if mean + k * sd > 0)]
    expected = sum(
        quad(lambda x: length.pdf(x) * log_p(x), low, high, epsabs=1e-10)[0]
        for low, high in itertools.pairwise(edges)
    )
    quadrature = -q.entropy().item() - expected
    tolerance = 1e-5 if size == 1 else 5 * (0.005 if exact > 1 else 0.0009)
    assert abs(quadrature - exact) < tolerance
    torch.manual_seed(0)
    draws = q.sample((20_000,))
    assert within(q.log_prob(draws) - p.log_prob(draws), quadrature)


def test_the_bound_of_unequal_scales():
    q = normal([0.5, -0.2, 0.1], [0.3, 0.2, 0.1])
    p = HierarchicalNormal((3,), *double(0.5, 0.01))
    torch.testing.assert_close(kl_divergence(q, p).item(), 3.5516, atol=1e-4, rtol=0)
    torch.manual_seed(0)
    draws = q.sample((100_000,))
    assert within(q.log_prob(draws) - p.log_prob(draws), 2.9657)


@pytest.mark.parametrize("group_dims", [(), (0,), (1,), (0, 1)])
def test_density_is_the_integral_over_the_variance(group_dims):
    a, b, m = 0.7, 0.3, 0.2
    w = torch.linspace(-1, 1, 6, dtype=torch.double).view(2, 3)
    p = HierarchicalNormal((2, 3), *double(a, b, m), group_dims=group_dims)
    groups = {(): [w], (0,): [*w], (1,): [*w.T], (0, 1): [*w.reshape(-1, 1)]}[group_dims]
    expected = 0.0
    for group in groups:

        def integrand(t, group=group):  # the variance is exp(t)
            log = stats.invgamma(a, scale=b).logpdf(math.exp(t)) + t
            return math.exp(log + stats.norm(m, math.exp(t / 2)).logpdf(group).sum())

        expected += math.log(quad(integrand, -12, 25, epsabs=1e-13, limit=200)[0])
    torch.testing.assert_close(p.log_prob(w).item(), expected, atol=0, rtol=1e-7)
    batch = p.expand((4,))
    torch.testing.assert_close(batch.log_prob(w), double(expected).expand(4))
    assert batch.rsample((5,)).shape == (5, 4, 2, 3)
    student = dist.MultivariateStudentT(2 * a, torch.zeros(6) + m, math.sqrt(b / a) * torch.eye(6))
    if not group_dims:
        torch.testing.assert_close(
            p.log_prob(w).float(), student.log_prob(w.flatten().float()), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("group_dims", [(), (1,)])
def test_marginal_density_of_some_weights(group_dims):
    kept = torch.tensor([[True, True, False], [False, True, False]])
    p = HierarchicalNormal((2, 3), *double(0.7, 0.3, 0.2), group_dims=group_dims)
    w = double(0.5).expand(2, 3) * torch.arange(6).view(2, 3)
    groups = [w[kept]] if not group_dims else [w[:1, 0], w[:, 1]]
    parts = (HierarchicalNormal(g.shape, *double(0.7, 0.3, 0.2)).log_prob(g) for g in groups)
    torch.testing.assert_close(p.log_prob(w, kept), sum(parts))
    torch.testing.assert_close(p.log_prob(w, torch.ones_like(kept)), p.log_prob(w))


def weights(kind, shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return {
        "constant": (torch.full(shape, 0.123), torch.full(shape, 0.0377)),
        "a bit narrower": (torch.zeros(shape), torch.full(shape, 0.9)),
        "random": (noise, noise.sigmoid() + 0.01),
        "collapsed": (1e-3 * noise, 0.3 + 1e-3 * noise),
        "mixed": (noise.relu(), torch.where(noise > 0, 1e-6, 0.3)),
    }[kind]


@pytest.mark.parametrize("kind", ["constant", "a bit narrower", "random", "collapsed", "mixed"])
@pytest.mark.parametrize("group_dims", [(), (0,), (1,)])
@pytest.mark.parametrize("shape", [(10, 10), (200, 1001), (2, 500_000)])
def test_the_bound_keeps_its_digits(kind, group_dims, shape):
    loc, scale = weights(kind, shape)
    p = HierarchicalNormal(shape, group_dims=group_dims)
    found = kl_divergence(dist.Normal(loc, scale).to_event(2), p)
    loc, scale, b = loc.double(), scale.double(), p.rate.double()
    half = 0.5 * (loc.square() + scale.square()).sum([d for d in (0, 1) if d not in group_dims])
    c = 0.5 + 0.5 * loc.numel() / half.numel()
    constant = math.lgamma(c) - math.lgamma(0.5) + 0.5 * math.log(b) + 0.5 * (2 * c - 1)
    logs, densities = -scale.log(), c * (b + half).log()
    exact = logs.sum() + densities.sum() - constant * half.numel()
    assert found.dtype == torch.float32
    terms = logs.abs().sum() + densities.abs().sum() + loc.numel()
    assert abs(found - exact) < 1e-6 * terms


@pytest.mark.parametrize("group_dims", [(), (0,), (1,), (0, 2)])
def test_draws_have_a_variance_for_each_group(group_dims):
    torch.manual_seed(0)
    p = HierarchicalNormal(
        (4, 3), 6.0, 5.0, group_dims=group_dims, view=(2, 2, 3) if 2 in group_dims else None
    )
    w = p.sample((20_000,))
    squares = w.square().flatten(1)
    labels = p.spread(torch.arange(p.group_shape.numel()).view(p.group_shape)).flatten()
    for i, j in [(0, 1), (0, 3), (0, 6), (2, 5), (4, 7)]:
        # Within a group E[w^4] factors are E[tau^2], between groups E[tau]^2.
        same = labels[i] == labels[j]
        expected = 25 / (5 * 4) if same else 1.0
        assert within(squares[:, i] * squares[:, j], expected)
    assert within(w, p.mean)
    assert within(w.square(), p.variance)


def test_moments_exist_where_they_do():
    def make(a):
        return HierarchicalNormal((2,), a, 3.0, 0.5)

    assert make(0.5).mean.isnan().all()
    assert make(0.5).variance.isnan().all()
    assert (make(0.75).mean == 0.5).all()
    assert make(1.0).variance.isposinf().all()
    assert (make(2.5).variance == 2.0).all()


def ids(p):
    """The number of its group for each entry."""
    number = torch.arange(p.group_shape.numel(), dtype=torch.double).view(p.group_shape)
    return p.spread(number).long()


VARIANTS = [
    pytest.param(row, variant, id=f"{row.name}-{variant}")
    for row in LAYERS
    for variant in [{}, *row.variants]
    if "dtype" not in variant and "device" not in variant and "max_norm" not in variant
]


def make_layer(row, variant, prior, is_converted):
    if not is_converted:
        return row.make(
            **row.args | variant, prior=prior, bias_prior=prior if has_bias(row, variant) else None
        )
    return bayesianize(
        row.torch(**row.args | variant), prior, prior if has_bias(row, variant) else None
    )


def has_bias(row, variant):
    return variant.get("bias", True) and not row.num_embeddings


@pytest.mark.parametrize("is_converted", [False, True])
@pytest.mark.parametrize(("row", "variant"), VARIANTS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_groups_are_inputs_and_outputs(row, variant, is_converted):
    """What one input alone, or one output alone, has to do with is its group."""
    for groups in ("input", "output"):
        layer = make_layer(row, variant, priors.HierarchicalNormal(groups), is_converted)
        torch.manual_seed(0)
        names = [n for n in layer._pyro_samples if "weight_ih_l0" in n or n == "weight"]
        values = {n: getattr(layer, n + "_prior")().sample() for n in layer._pyro_samples}
        values = {n: torch.rand_like(v) for n, v in values.items()}  # a ReLU lets it pass
        for name in names:
            if name.endswith("reverse"):
                continue
            p = getattr(layer, name + "_prior")()
            number = ids(p)
            weight = values[name].requires_grad_()
            given = pyro.poutine.condition(layer, values)
            padding = getattr(layer, "padding_idx", None)
            channel = -1 if row.is_recurrent else 1
            count = p.group_shape.numel()
            for k in range(count):
                if row.num_embeddings:
                    x = torch.full((1, 2), k) if groups == "input" else row.x(4)
                    y = given(x) if groups == "input" else given(x)[..., k]
                    if padding is not None and groups == "input" and k == padding % count:
                        continue
                else:
                    x = row.x(2).abs()
                    if row.is_recurrent:
                        x = x[:, :1]  # from the second step on, units depend on each other
                    if groups == "input":
                        only = torch.zeros_like(x)
                        only.select(channel, k).copy_(x.select(channel, k))
                        y = row.output(given(only))
                    elif row.is_recurrent:
                        _, states = given(x)
                        state = states[1] if isinstance(states, tuple) else states
                        y = state[0][..., k]
                    else:
                        y = given(x).select(1, k)
                (grad,) = torch.autograd.grad(y.square().sum(), weight)
                assert set(number[grad != 0].tolist()) == {k}


@GROUPS
def test_vectors_are_one_group(groups):
    prior = priors.HierarchicalNormal(groups)
    layer = BayesianLinear(3, 2, prior=prior, bias_prior=prior)
    assert layer.bias_prior().group_shape == ()
    assert layer.weight_prior().group_shape == {"tensor": (), "input": (3,), "output": (2,)}[groups]
    net = bayesianize(nn.Sequential(nn.Linear(3, 2), nn.PReLU()), prior)
    assert net[1].weight_prior().group_shape == ()
    assert prior(torch.Size((2, 3)), 3).group_shape == layer.weight_prior().group_shape


def test_units_of_recurrent_cells_have_all_their_gates():
    net = bayesianize(nn.LSTMCell(3, 4), priors.HierarchicalNormal("output"))
    assert ids(net.weight_hh_prior())[:, 0].tolist() == [0, 1, 2, 3] * 4


POSTERIORS = {
    "Normal": lambda: NormalPosterior(torch.randn(3, 4), 0.3),
    "Radial": lambda: RadialPosterior(torch.randn(3, 4), 0.3),
    "Mixture": lambda: MixturePosterior(torch.randn(3, 4), 0.3),
}


def expected_log_prior(p, square, kept=...):
    """With concentration 1.5 and rate 0.4, from the mean squares of the weights that are kept."""
    total = 0.0
    for group in range(p.group_shape.numel()):
        x = square[kept][ids(p)[kept] == group]
        c = 1.5 + len(x) / 2
        total += math.lgamma(c) - math.lgamma(1.5) + 1.5 * math.log(0.4)
        total -= len(x) / 2 * math.log(2 * math.pi) + c * (0.4 + 0.5 * x.sum()).log()
    return total


@GROUPS
@pytest.mark.parametrize("kind", POSTERIORS)
def test_the_bound_of_each_posterior(kind, groups):
    torch.manual_seed(1)
    posterior = POSTERIORS[kind]().double()
    prior = priors.HierarchicalNormal(groups, 1.5, 0.4, 0.3)
    layer = BayesianLinear(4, 3, prior=prior, dtype=torch.double)
    q, p = posterior.distribution(), layer.weight_prior()
    bound = kl_divergence(q, p)
    assert bound.shape == ()
    # By the formula, from moments and entropy.
    base = posterior.base()
    if kind == "Mixture":
        entropy = -kl_divergence(base, dist.Normal(double(0.0), 1.0)) + 0.5 * math.log(2 * math.pi)
        entropy = (entropy + 0.5 * (base.mean.square() + base.variance)).sum()
    else:
        entropy = base.entropy().sum()
    square = (base.mean - 0.3).square() + base.variance
    expected = -entropy - expected_log_prior(p, square)
    torch.testing.assert_close(bound, expected)
    draws = q.sample((4_000,))
    estimates = q.log_prob(draws) - p.log_prob(draws)
    assert bound > estimates.mean() - 5 * estimates.std() / math.sqrt(len(estimates))
    # The same on every path: with a batch in front, and with all weights kept.
    batched = kl_divergence(q.expand((2,)), p.expand((2,)))
    torch.testing.assert_close(batched, bound.expand(2))
    posterior.prune(torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(kl_divergence(posterior.distribution(), p), bound)


@GROUPS
@pytest.mark.parametrize("kind", POSTERIORS)
def test_pruned_weights_do_not_count(kind, groups):
    torch.manual_seed(2)
    posterior = POSTERIORS[kind]().double()
    kept = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1]], dtype=torch.bool)
    posterior.prune(kept)
    prior = priors.HierarchicalNormal(groups, 1.5, 0.4, 0.3)
    p = BayesianLinear(4, 3, prior=prior, dtype=torch.double).weight_prior()
    bound = kl_divergence(posterior.distribution(), p)
    q = posterior.distribution()
    if kind == "Radial":
        entropy = q.base_dist.entropy()
    else:
        full = posterior.base()
        one = kl_divergence(full, dist.Normal(double(0.0), 1.0)) if kind == "Mixture" else None
        cross = 0.5 * math.log(2 * math.pi) + 0.5 * (full.mean.square() + full.variance)
        entropy = (full.entropy() if one is None else cross - one)[kept].sum()
    square = (q.base_dist.mean - 0.3).square() + q.base_dist.variance
    expected = -entropy - expected_log_prior(p, square, kept)
    torch.testing.assert_close(bound, expected)
    of = list(posterior.parameters())
    torch.testing.assert_close(torch.autograd.grad(bound, of), torch.autograd.grad(expected, of))


@pytest.mark.parametrize("group_dims", [(), (1,), (0, 2)])
@pytest.mark.parametrize("is_radial", [False, True])
def test_gradients_of_the_bound(group_dims, is_radial):
    torch.manual_seed(0)
    view = (2, 2, 3) if 2 in group_dims else None
    inputs = [
        torch.randn(4, 3).double().requires_grad_(),
        (torch.rand(4, 3) + 0.2).double().requires_grad_(),
        torch.tensor(0.3).double().requires_grad_(),
    ]

    def bound(loc, scale, prior_loc, concentration=0.7, rate=0.2):
        p = HierarchicalNormal(
            (4, 3), concentration, rate, prior_loc, group_dims=group_dims, view=view
        )
        q = Radial(loc, scale, 2) if is_radial else dist.Normal(loc, scale).to_event(2)
        return kl_divergence(q, p)

    assert torch.autograd.gradcheck(bound, inputs)
    assert torch.autograd.gradgradcheck(bound, inputs)
    check_gradients_with_graph(bound, inputs)
    learned = [*inputs, *(double(0.7, 0.2).requires_grad_().unbind())]
    assert torch.autograd.gradcheck(bound, learned)
    torch.testing.assert_close(bound(*learned), bound(*inputs))
    mapped = torch.vmap(bound, in_dims=(0, None, None))(torch.stack([inputs[0]] * 2), *inputs[1:])
    torch.testing.assert_close(mapped, bound(*inputs).expand(2))


@pytest.mark.parametrize("is_first_normal", [False, True])
@pytest.mark.parametrize("prior_loc", [0.0, 0.4])
def test_several_weights_in_one_operation(prior_loc, is_first_normal):
    torch.manual_seed(0)
    fixed = double(prior_loc)[0]
    mean = double(prior_loc)[0].requires_grad_(prior_loc != 0)
    hierarchical = [
        HierarchicalNormal((4, 3), *double(0.7, 0.2), mean, group_dims=(1,)),
        HierarchicalNormal((2, 3), *double(0.5, 0.01), mean),
        HierarchicalNormal((4, 3), *double(2, 3), mean, group_dims=(0, 2), view=(2, 2, 3)),
        HierarchicalNormal((2, 3), *double(1, 1), fixed + torch.arange(3).double()),
    ]
    known = dist.Normal(fixed, double(1.5)[0]).expand((5,)).to_event(1)
    each_known = dist.Normal(fixed, torch.rand(2).double() + 0.5).to_event(1)
    known_entry = dist.Normal(fixed, double(0.7)[0]).expand((1,)).to_event(1)
    ps = (
        [known, *hierarchical, known_entry, each_known]
        if is_first_normal
        else [*hierarchical, each_known]
    )
    locs = [torch.randn(p.event_shape).double().requires_grad_() for p in ps]
    scales = [(torch.rand(p.event_shape) + 0.1).double().requires_grad_() for p in ps]
    inputs = [*locs, *scales, *([mean] if mean.requires_grad else [])]

    def joint(*_):
        pairs = zip(locs, scales, ps, strict=True)
        sites = [(Estimated(dist.Normal(a, b), a.dim(), Shared()), p) for a, b, p in pairs]
        pairs = [small_pair(*site) for site in sites]
        assert all(pair is not None for pair in pairs)
        kls = joint_kl(pairs)
        assert len(kls) == 2  # the last is of a prior whose entries differ
        torch.testing.assert_close(total_kl(sites), sum(kls))
        return sum(kls)

    expected = sum(kl_divergence(normal(a, b), p) for a, b, p in zip(locs, scales, ps, strict=True))
    torch.testing.assert_close(joint(), expected)
    grads = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(torch.autograd.grad(joint(), inputs), grads)
    check_gradients_with_graph(joint, inputs)
    assert torch.autograd.gradgradcheck(joint, inputs)


def test_which_weights_are_joined():
    q = Estimated(dist.Normal(torch.zeros(5), 0.1 * torch.ones(5)), 1, Shared())
    learned = torch.tensor(0.5, requires_grad=True)
    assert small_pair(q, HierarchicalNormal((5,))) is not None
    assert small_pair(q, HierarchicalNormal((5,), learned)) is None
    assert small_pair(q, HierarchicalNormal((5,), rate=learned)) is None
    with kernels.enabled(False):
        assert small_pair(q, HierarchicalNormal((5,))) is None
    large = dist.Normal(torch.zeros(kernels.MAX_SIZE + 1), 1.0)
    assert small_pair(Estimated(large, 1, Shared()), large.to_event(1)) is None
    known = dist.Normal(0.0, 1.0).expand((5,)).to_event(1)
    assert len(joint_kl([small_pair(q, HierarchicalNormal((5,))), small_pair(q, known)])) == 1
    assert all(is_alike(dist.Normal(0.0, 1.0).expand((n,))) for n in (1, 2))
    assert not is_alike(dist.Normal(0.0, torch.ones(2)))
    assert not is_alike(dist.Normal(0.0, learned).expand((2,)))


def test_joined_weights_under_transforms():
    loc, ps = torch.randn(6).double(), [HierarchicalNormal((3,)), HierarchicalNormal((3,), 2.0)]

    def total(loc):
        qs = [dist.Normal(part, torch.full_like(part, 0.1)) for part in loc.split(3)]
        return total_kl([(Estimated(q, 1, Shared()), p) for q, p in zip(qs, ps, strict=True)])

    expected = torch.autograd.functional.jacobian(total, loc)
    torch.testing.assert_close(torch.func.grad(total)(loc), expected)
    torch.testing.assert_close(torch.vmap(total)(torch.stack([loc, loc]))[1], total(loc))


def test_float32_is_exact_for_several_weights():
    # The entries of a group are alike, so that single precision would round all to the same side.
    ps = [HierarchicalNormal((8192,), rate=1e-4) for _ in range(40)]
    qs = [dist.Normal(torch.full((8192,), 0.1), torch.full((8192,), 0.0137)) for _ in ps]
    (found,) = joint_kl(zip(qs, ps, strict=True))
    exact = dist.Normal(qs[0].loc.double(), qs[0].scale.double()).to_event(1)
    expected = 40 * kl_divergence(exact, HierarchicalNormal((8192,), *double(0.5, 1e-4)))
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("group_dims", [(), (0,), (1,)])
@pytest.mark.parametrize("kind", ["normal", "radial", "mixture"])
def test_float32_is_exact_for_ten_million_weights(kind, group_dims):
    torch.manual_seed(0)
    shape = (2_000, 5_000) if kind != "mixture" else (500, 1_000)
    loc = 0.02 * torch.randn(shape)
    scale = 0.005 + 0.01 * torch.rand(shape)

    def bound(dtype):
        p = HierarchicalNormal(
            shape, *torch.tensor([0.5, 0.01], dtype=dtype), group_dims=group_dims
        )
        mean, sd = loc.to(dtype), scale.to(dtype)
        if kind == "mixture":
            pair = torch.stack([mean, mean + 0.02], -1)
            q = NormalMixture(torch.tensor([0.4, 0.6], dtype=dtype), pair, sd.unsqueeze(-1))
            return kl_divergence(q.to_event(2), p), p.log_prob(mean)
        q = Radial(mean, sd, 2) if kind == "radial" else dist.Normal(mean, sd).to_event(2)
        return kl_divergence(q, p), p.log_prob(mean)

    with torch.no_grad():
        for x, y in zip(bound(torch.float), bound(torch.double), strict=True):
            assert x.dtype == torch.float
            torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=0)


@GROUPS
@pytest.mark.parametrize("guide", GUIDES)
def test_trains_in_every_form(guide, groups):
    torch.manual_seed(0)
    prior = priors.HierarchicalNormal(groups, loc=0.1, learnable_loc=True)
    x, y = torch.randn(20, 3), torch.randn(20)
    for elbo in (Trace_ELBO(), TraceKL_ELBO(), TraceMeanField_ELBO()):
        pyro.clear_param_store()
        model = Regression(bayesian_mlp(3, 4, 1, prior=prior, bias_prior=prior))
        svi = SVI(model, guide.make(model), pyro.optim.Adam({"lr": 0.01}), elbo)
        assert all(math.isfinite(svi.step(x, y)) for _ in range(3))
        assert all((m.loc < 0) or (m.loc > 0) for m in model.modules() if hasattr(m, "loc"))
    net = bayesian_mlp(3, 4, 1, prior=prior, bias_prior=prior)
    model = Standalone(net, guide.make(net))
    out, kl = model(x)
    (out.square().sum() + kl).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    expected = sum(
        kl_divergence(model.guide[n].distribution(), net.get_submodule(n + "_prior")())
        for n in model.guide
    )
    torch.testing.assert_close(kl, expected)


def test_markov_chains_find_the_posterior():
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    net = BayesianLinear(1, 1, bias=False, prior=priors.HierarchicalNormal("input", 2.0, 1.0))
    x = torch.linspace(-1, 1, 8).unsqueeze(-1)
    y = 0.8 * x.squeeze(-1) + 0.1

    def model():
        pyro.sample("obs", dist.Normal(net(x).squeeze(-1), 1.0).to_event(1), obs=y)

    mcmc = MCMC(NUTS(model), 400, 100, disable_progbar=True)
    mcmc.run()
    w = mcmc.get_samples()["weight"].flatten().double()

    def density(w):
        log = stats.t(4.0, scale=math.sqrt(0.5)).logpdf(w)
        return math.exp(log - 0.5 * ((y - w * x.squeeze(-1)) ** 2).sum().item())

    total = quad(density, -8, 8)[0]
    mean = quad(lambda w: w * density(w), -8, 8)[0] / total
    square = quad(lambda w: w * w * density(w), -8, 8)[0] / total
    effective = mcmc.diagnostics()["weight"]["n_eff"].item()
    assert abs(w.mean() - mean) < 5 * w.std() / math.sqrt(effective)
    assert abs((w**2).mean() - square) < 5 * (w**2).std() / math.sqrt(effective)


def test_predictions_from_the_prior():
    torch.manual_seed(0)
    net = BayesianLinear(3, 1, bias=False, prior=priors.HierarchicalNormal("input", 6.0, 5.0))
    predictive = Predictive(net, num_samples=4_000, return_sites=("weight",))
    draws = predictive(torch.ones(2, 3))["weight"]
    assert within(draws.square(), torch.ones(1, 3))


def test_buffers_and_copies():
    prior = priors.HierarchicalNormal("input", 3.0, 2.0, 0.5)
    layer = BayesianLinear(4, 3, prior=prior)
    buffers = dict(layer.weight_prior.named_buffers())
    assert {k: v.shape for k, v in buffers.items()} == dict.fromkeys(
        ["loc", "concentration", "rate"], ()
    )
    assert all(b.is_contiguous() for b in buffers.values())
    w = torch.randn(3, 4)
    expected = layer.weight_prior().log_prob(w)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other.weight_prior().log_prob(w), expected)
    wide = copy.deepcopy(layer).to(torch.float64)
    assert wide.weight_prior().sample().dtype == torch.float64
    torch.testing.assert_close(wide.weight_prior().log_prob(w.double()), expected.double())
    target = BayesianLinear(4, 3, prior=priors.HierarchicalNormal("input"))
    target.load_state_dict(layer.state_dict())
    torch.testing.assert_close(target.weight_prior().log_prob(w), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@GROUPS
def test_other_dtypes(groups, dtype):
    layer = BayesianLinear(3, 4, prior=priors.HierarchicalNormal(groups)).to(dtype)
    x = torch.ones(5, 3, dtype=dtype)
    assert layer(x).dtype == dtype
    output, kl = Standalone(layer, AutoLRT(layer))(x)
    assert output.dtype == dtype
    kl.backward()
    assert kl.isfinite()


def test_a_learned_mean_takes_any_sign():
    layer = BayesianLinear(4, 3, bias=False, prior=priors.HierarchicalNormal(learnable_loc=True))
    (parameter,) = layer.parameters()
    assert parameter.shape == ()
    q = dist.Normal(torch.full((3, 4), -0.7), 0.1).to_event(2)
    optimizer = torch.optim.Adam([parameter], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        kl_divergence(q, layer.weight_prior()).backward()
        optimizer.step()
    torch.testing.assert_close(parameter.item(), -0.7, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": "row"}, r"`groups` \(='row'\) must be \"tensor\", \"input\" or \"output\""),
        ({"concentration": 0.0}, r"`concentration` \(=0.0\) must be positive"),
        ({"rate": -1.0}, r"`rate` \(=-1.0\) must be positive"),
        ({"rate": math.nan}, r"`rate` \(=nan\) must be positive"),
        ({"loc": math.inf}, r"`loc` \(=inf\) must be finite"),
    ],
)
def test_bad_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        priors.HierarchicalNormal(**arguments)


@pytest.mark.parametrize(
    ("rule", "arguments", "name"),
    [
        (priors.HierarchicalNormal, {"learnable_loc": "False"}, "learnable_loc"),
        (priors.HierarchicalNormal, {"loc": "0"}, "loc"),
        (priors.Normal, {"loc": None}, "loc"),
        (priors.Laplace, {"loc": "x"}, "loc"),
        (priors.ScaleMixture, {"prob": "a"}, "prob"),
    ],
)
def test_arguments_of_a_wrong_type(rule, arguments, name):
    with pytest.raises(TypeError, match=f"`{name}`"):
        rule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concentration": -1.0}, r"`concentration` \(=-1.0\) must be positive"),
        ({"rate": torch.tensor(-1.0)}, "rate"),
        ({"rate": torch.ones(3)}, r"`rate` must be a scalar.*\(3,\)"),
        ({"loc": torch.ones(5)}, r"`loc` of shape \(5,\) must broadcast"),
        (
            {"group_dims": (2,)},
            r"`group_dims` \(=\(2,\)\) must be dimensions of the shape \(2, 3\)",
        ),
        ({"view": (7,)}, r"`view` \(=\(7,\)\) must have as many entries as `shape` \(=\(2, 3\)\)"),
    ],
)
def test_bad_distributions(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalNormal((2, 3), **arguments)
