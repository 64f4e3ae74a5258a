"""Operations with a backward of their own, against what autograd makes of the formulas."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from models import check_gradients_with_graph
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone
from pyro_bnn.distributions import NormalMixture, mixture_kl_bound
from pyro_bnn.distributions._joint import Joint, as_one
from pyro_bnn.distributions._mixture_kl import summed_mixture_kl_bound
from pyro_bnn.distributions._normal import normal_kl, trusted_normal
from pyro_bnn.guides import AutoMixture, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.kernels import MAX_SIZE, exact_sum, gaussian_kl, random_signs, square, with_noise
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import MixturePosterior
from pyro_bnn.priors import ScaleMixture


def doubles(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.rand(s, dtype=torch.double).add_(0.1).requires_grad_() for s in shapes]


@pytest.mark.parametrize("prior_shape", [(), (3, 2)])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_kl_has_the_gradients_of_its_formula(share, prior_shape):
    inputs = doubles((3, 2), (3, 2), prior_shape, prior_shape)

    def f(loc, scale, prior_loc, prior_scale):
        prior = (t.expand(3, 2) for t in (prior_loc, prior_scale))
        return gaussian_kl(loc, scale, *prior, share)

    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)
    loc, scale, *_ = inputs
    expected = terms(*inputs, share)
    torch.testing.assert_close(f(*inputs), expected.sum())
    by_row = torch.func.vmap(torch.func.grad(f), (0, 0, None, None))
    many = (loc.detach().expand(4, 3, 2), scale.detach().expand(4, 3, 2))
    with torch.no_grad():
        transformed = by_row(*many, *(t.detach() for t in inputs[2:]))[2]
    torch.testing.assert_close(transformed, torch.autograd.grad(f(*inputs), loc)[0])


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_kl_from_a_fixed_scalar_prior(center):
    prior = torch.tensor(center, dtype=torch.double), torch.tensor(0.5, dtype=torch.double)

    def f(loc, scale):
        return gaussian_kl(loc, scale, *prior, constant=2.0)

    inputs = doubles((3, 2), (3, 2))
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)
    loc, scale = inputs
    expected = terms(loc, scale, *prior)
    torch.testing.assert_close(f(*inputs), expected.sum() + 2)


def weights(kind, size):
    """Means and scales that are alike, that differ, that are near to a prior N(m, 0.3), or both."""
    torch.manual_seed(0)
    noise = torch.randn(size)
    return {
        "constant": lambda: (torch.full((size,), 0.123), torch.full((size,), 0.0377)),
        "a bit narrower": lambda: (torch.zeros(size), torch.full((size,), 0.27)),
        "random": lambda: (noise, torch.rand(size) + 0.01),
        "trained": lambda: (0.05 * noise, 0.01 * torch.rand(size) + 1e-3),
        "collapsed": lambda: (1e-3 * noise, 0.3 * (1 + 1e-2 * torch.rand(size))),
        "mixed": lambda: (noise * (noise > 0), torch.where(noise > 0, 1e-6, 0.3)),
        "tiny": lambda: (noise, torch.full((size,), 1e-37)),
    }[kind]()


WEIGHTS = ["constant", "a bit narrower", "random", "trained", "collapsed", "mixed", "tiny"]


def terms(loc, scale, prior_loc, prior_scale, share=1.0):
    """What cancels in the KL divergence of each entry, in double precision."""
    loc, scale, prior_loc, prior_scale = (
        torch.as_tensor(t).double() for t in (loc, scale, prior_loc, prior_scale)
    )
    return torch.stack(
        [
            (prior_scale / scale).log(),
            0.5 * share * ((scale / prior_scale).square() - 1),
            0.5 * ((loc - prior_loc) / prior_scale).square(),
        ]
    )


@pytest.mark.parametrize("share", [1.0, 1e-3])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("size", [100, 20_000, 300_001])
def test_kl_keeps_its_digits(kind, size, share):
    """Also where all entries are rounded to the same side, and sums are of terms that cancel."""
    loc, scale = weights(kind, size)
    for prior_loc, prior_scale in (
        (torch.tensor(0.0), torch.tensor(0.3)),
        (torch.tensor(0.1), torch.tensor(1.0)),
        (0.1 * loc, torch.linspace(0.2, 0.4, size)),
    ):
        prior = prior_loc.expand(size), prior_scale.expand(size)
        kl = gaussian_kl(loc, scale, *prior, share)
        exact = terms(loc, scale, prior_loc, prior_scale, share)
        assert kl.dtype == torch.float32
        assert abs(kl.item() - exact.sum()) < 5e-7 * exact.abs().sum()


@pytest.mark.parametrize("scale", [0.9, 0.0377, 0.3])
def test_kl_of_many_weights_keeps_its_digits(scale):
    parameters = [torch.tensor(t) for t in (0.0377, scale, 0.1, 1.0)]
    many = [t.expand(10_000_000) for t in parameters]
    exact = 10_000_000 * terms(*parameters)
    kl = gaussian_kl(*(t.contiguous() for t in many[:2]), *many[2:])
    assert abs(kl.item() - exact.sum()) < 5e-7 * exact.abs().sum()
    assert kl.item() == pytest.approx(exact.sum().item(), rel=1e-6)


@pytest.mark.parametrize("in_dim", [0, 1])
def test_sums_of_many_entries_under_transforms(in_dim):
    x = torch.rand(3, 70_001, dtype=torch.double)  # not a multiple of the length of a row
    sums = torch.vmap(exact_sum, in_dim)(x.movedim(0, in_dim).contiguous())
    torch.testing.assert_close(sums, x.sum(1))
    gradient = torch.func.grad(lambda x: exact_sum(x.square()))(x.T)
    torch.testing.assert_close(gradient, 2 * x.T)


@pytest.mark.parametrize("size", [100, 20_000, 10_000_000])
def test_equal_distributions_have_no_kl(size):
    for loc, scale in ((0.0, 0.1), (0.3, 0.0377)):
        q = trusted_normal(torch.full((size,), loc), torch.full((size,), scale))
        p = Normal(torch.tensor(loc).expand(size), torch.tensor(scale).expand(size))
        assert normal_kl(q, p) == 0
    q = Normal(torch.randn(20_000), torch.rand(20_000) + 0.01)
    assert normal_kl(q, q) == 0


@pytest.mark.parametrize("make", [AutoReparameterization, AutoRadial, AutoMixture])
@pytest.mark.parametrize("prior", [dist.Normal(0.3, 0.7), ScaleMixture(0.4, 1.0, 0.1)])
@pytest.mark.parametrize("is_pruned", [False, True])
def test_kl_of_a_network_keeps_its_digits(make, prior, is_pruned):
    """A large weight and small ones, of which all entries are alike."""
    if make is AutoRadial and isinstance(prior, ScaleMixture):
        prior = dist.Normal(0.0, 1.0)
    sizes = (700, 300), (300, 9), (9, 9), (9, 9)
    net = bayesianize(nn.Sequential(*(nn.Linear(*size) for size in sizes)), prior, prior)
    guide = make(net, init_loc_fn=lambda s: torch.zeros(s["fn"].shape()), init_scale=0.5)
    if is_pruned:
        for name in guide:
            shape = guide[name].median().shape
            guide[name].prune((torch.arange(shape.numel()) % 3 > 0).view(shape))

    def model(x):
        pyro.sample("obs", dist.Normal(0 * net(x).sum(), 1.0), obs=x.new_zeros(()))

    x = torch.zeros(1, 700)
    with torch.no_grad():
        kl = Standalone(net, guide)(x)[1].item()
        loss = TraceKL_ELBO().loss(model, guide, x) - 0.5 * math.log(2 * math.pi)
        exact = Standalone(net.double(), guide.double())(x.double())[1].item()
    error = 1e-6 * (exact + sum(guide[name].median().numel() for name in guide))
    assert abs(kl - exact) < error
    assert abs(loss - exact) < error


@pytest.mark.parametrize("make", [AutoReparameterization, AutoRadial, AutoMixture])
def test_compiled_kls_are_summed_in_double_precision(make):
    """What torch compiles for a CPU adds one term after the other, and would lose digits."""
    net = BayesianLinear(30, 20, bias=False)
    sums = []

    def record(graph, inputs):
        nodes = (node for node in graph.graph.nodes if node.target == "sum")
        values = lambda node: node.meta["example_value"].numel()
        sums.extend(n for n in nodes if values(n) == 1 and values(n.args[0]) > 1)
        return graph

    model = torch.compile(Standalone(net, make(net)), fullgraph=True, backend=record)
    assert model(torch.zeros(1, 30))[1].dtype == torch.float32
    assert sums
    assert all(node.kwargs["dtype"] == torch.float64 for node in sums)


@pytest.mark.parametrize("size", [1_000, 1_000_000])
@pytest.mark.parametrize("wants_grad", [False, True])
def test_bound_on_mixtures_keeps_its_digits(size, wants_grad):
    parameters = {
        "near": ([0.1, -0.1], [0.05, 0.0377]),
        "far": ([2.0, -2.0], [0.1, 0.1]),
        "spike": ([0.0, 0.0], [1.0, 0.0025]),
    }

    def mixture(kind, size, dtype):
        logits, loc, scale = (
            torch.tensor(t).to(dtype).repeat(size, 1) for t in ([0.3, -0.2], *parameters[kind])
        )
        return NormalMixture(logits=logits, loc=loc, scale=scale)

    for q, p in (("near", "near"), ("near", "spike"), ("spike", "near"), ("far", "spike")):
        own = mixture(q, size, torch.float32)
        own.loc.requires_grad_(wants_grad)
        bound = summed_mixture_kl_bound(own, mixture(p, size, torch.float32)).item()
        single = mixture_kl_bound(mixture(q, 1, torch.double), mixture(p, 1, torch.double))
        assert abs(bound / size - single.item()) < 1e-6 * (single.item() + 1)
    far = mixture("far", size, torch.float32)
    far.loc.requires_grad_(wants_grad)
    assert abs(summed_mixture_kl_bound(far, far)) < 1e-9 * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_in_low_precision_is_that_of_the_rounded_parameters(dtype):
    torch.manual_seed(0)
    loc, scale = torch.randn(1000).to(dtype), (torch.rand(1000) + 0.01).to(dtype)
    loc.requires_grad_()
    prior = Normal(torch.zeros(1000, dtype=dtype), torch.ones(1000, dtype=dtype))
    kl = normal_kl(trusted_normal(loc, scale), prior)
    exact = kl_divergence(Normal(loc.double(), scale.double()), Normal(0.0, 1.0)).sum()
    assert kl.dtype == torch.float32
    assert abs(kl / exact - 1) < 1e-6
    (grad,) = torch.autograd.grad(kl, loc)
    assert grad.dtype == dtype
    assert torch.equal(grad, loc)


def test_scaled_noise_has_the_gradient_of_the_root():
    noise, (mean, variance) = torch.randn(4, 3, dtype=torch.double), doubles((4, 3), (4, 3))
    assert gradcheck(lambda m, v: with_noise(m, noise, v), [mean, variance])
    assert gradgradcheck(lambda m, v: with_noise(m, noise, v), [mean, variance])
    more = noise.expand(2, 4, 3)
    assert gradcheck(lambda m, v: with_noise(m, more, v), [mean, variance[:1]])
    torch.testing.assert_close(
        with_noise(mean, noise, variance), (mean + noise * variance.sqrt(), variance.sqrt())
    )
    product_of_both = lambda m, v: math.prod(with_noise(m, noise, v))
    assert gradcheck(product_of_both, [mean, variance])
    inputs, scales = torch.zeros(5, 3), torch.full((3,), 0.1)
    for tensor in (inputs, scales):
        tensor.requires_grad_()
    zero = torch.zeros(5)
    output, _ = with_noise(zero, torch.randn(5), inputs.square() @ scales.square())
    assert output.abs().max() < 1e-18
    for grad in torch.autograd.grad(1e6 * output.sum(), [inputs, scales]):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("is_rho", [False, True])
@pytest.mark.parametrize("quantity", ["value", "noise", "variance"])
def test_joint_has_the_draws_kl_and_gradients_of_its_parts(quantity, is_rho):
    shapes = [(3, 2), (2,), (), (0, 4)]
    locs, scales = doubles(*shapes), doubles(*shapes)

    def f(*params):
        torch.manual_seed(1)
        joint = Joint(quantity, params[:4], params[4:], is_rho)
        return (joint.normal.loc, joint.normal.scale, *joint.drawn[:3])

    assert gradcheck(f, [*locs, *scales])
    assert gradgradcheck(f, [*locs, *scales])
    squares = lambda *params: sum(t.square().sum() for t in f(*params))
    check_gradients_with_graph(squares, [*locs, *scales])
    torch.manual_seed(1)
    joint = Joint(quantity, locs, scales, is_rho)
    torch.manual_seed(1)
    noises = iter(torch.randn(9, dtype=torch.double).split([t.numel() for t in locs]))
    prior = dist.Normal(torch.tensor(0.5).double(), 2.0)
    expected = 0.0
    parts = joint.split()
    for part, loc, raw in zip(parts, locs, scales, strict=True):
        scale = F.softplus(raw) if is_rho else raw
        torch.testing.assert_close(part.scale, scale)
        expected = expected + kl_divergence(Normal(loc, scale), prior).sum()
        drawn = part.take(torch.Size())
        if quantity == "variance":
            torch.testing.assert_close(drawn, scale**2)
        else:
            center = loc if quantity == "value" else 0.0
            torch.testing.assert_close(drawn, center + scale * next(noises).view(loc.shape))
        assert part.take(torch.Size()) is None
        assert type(part.expand((5, *loc.shape))) is dist.Normal
    priors = [prior.expand(loc.shape) for loc in locs]
    torch.testing.assert_close(normal_kl(as_one(parts), as_one(priors)), expected)
    # Parts of a joint, but not all of them.
    torch.testing.assert_close(
        normal_kl(as_one(parts[:2]), as_one(priors[:2])),
        sum(kl_divergence(d, prior).sum() for d in parts[:2]),
    )
    own, others = torch.autograd.grad(joint.drawn[1].sum(), [scales[1], scales[0]])
    assert own.all()
    assert not others.any()


@pytest.mark.parametrize("shape", [(1, 1), (128, 400), (7, 13)])
def test_random_signs_are_fair_and_independent(shape):
    torch.manual_seed(0)
    like = torch.zeros((), dtype=torch.double)
    signs = torch.stack([random_signs(*shape, like)[0] for _ in range(2000)])
    assert signs.shape[1:] == shape
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    # Of as many means, the largest of 50,000 is beyond 5 standard errors once in 35 trials.
    assert signs.mean(0).abs().max() < 5.5 / 2000**0.5
    flat = signs.flatten(1)[:, :256]
    products = flat.T @ flat / 2000 - torch.eye(flat.shape[1], dtype=torch.double)
    assert products.abs().max() < 5.5 / 2000**0.5


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), ScaleMixture()(torch.Size(), 1)])
def test_bound_on_mixtures_is_the_same_in_blocks(prior, monkeypatch):
    torch.manual_seed(0)
    q = MixturePosterior(torch.randn(7, 5), 0.3)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    p = prior.expand((7, 5)).to_event(2)

    def kl_and_gradients():
        kl = kl_divergence(q.distribution(), p)
        return kl, torch.autograd.grad(3 * kl, list(q.parameters()))

    expected = kl_and_gradients()
    torch.testing.assert_close(expected[0], mixture_kl_bound(q.base(), p.base_dist).sum())
    monkeypatch.setattr("pyro_bnn.kernels._mixture_kl._BLOCK", 8)
    torch.testing.assert_close(kl_and_gradients(), expected)
    with torch.no_grad():
        torch.testing.assert_close(kl_divergence(q.distribution(), p), expected[0])


def test_square_has_the_gradients_of_its_formula():
    inputs = doubles((3, 2))
    assert gradcheck(square, inputs)
    assert gradgradcheck(square, inputs)


def test_kl_of_small_and_large_weights_together():
    torch.manual_seed(0)
    net = bayesianize(nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 3), nn.Linear(3, 3)))
    guide = AutoReparameterization(net)
    x = torch.zeros(2, 100)
    guide(x)
    priors = {name: site["fn"] for name, site in guide.prototype_trace.iter_stochastic_nodes()}
    expected = sum(
        kl_divergence(Normal(q.loc, q.scale), p.base_dist).sum().item()
        for q, p in ((guide[name], priors[name]) for name in guide)
    )
    assert max(guide[name].loc.numel() for name in guide) > MAX_SIZE
    _, kl = Standalone(net, guide)(x)
    assert kl.item() == pytest.approx(expected, rel=1e-5)
    assert TraceKL_ELBO()(net, guide)(x).item() == pytest.approx(expected, rel=1e-5)
