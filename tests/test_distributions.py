from __future__ import annotations

import itertools
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from kinds import DISTRIBUTIONS
from models import within
from scipy.integrate import quad
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    GroupedNormal,
    HierarchicalNormal,
    NormalMixture,
    Radial,
    kl_quadrature,
    mixture_kl_bound,
)

ROWS = pytest.mark.parametrize(
    ("make", "dtype"),
    list(itertools.product(DISTRIBUTIONS.values(), [torch.float32, torch.float64])),
    ids=lambda x: getattr(x, "__name__", str(x)),
)


@ROWS
def test_shapes_and_dtypes(make, dtype):
    d = make(dtype)
    value = d.rsample((5,))
    assert value.dtype == dtype
    assert value.shape == (5, *d.batch_shape, *d.event_shape)
    assert d.log_prob(value).shape == (5, *d.batch_shape)
    assert d.log_prob(value).dtype == dtype
    assert d.mean.shape == d.variance.shape == d.batch_shape + d.event_shape
    assert d.support.check(value).all()
    assert d.sample().requires_grad is False


@ROWS
def test_moments(make, dtype):
    d = make(dtype)
    samples = d.sample((40_000,))
    assert within(samples, d.mean)
    assert within((samples - d.mean).square(), d.variance)


@ROWS
def test_expand_to_event_and_mask(make, dtype):
    d = make(dtype)
    value = d.sample()
    expanded = d.expand((4, *d.batch_shape))
    assert type(expanded) is type(d)
    assert expanded.rsample().shape == (4, *d.batch_shape, *d.event_shape)
    torch.testing.assert_close(expanded.log_prob(value), d.log_prob(value).expand(4, -1))
    torch.testing.assert_close(d.to_event(1).log_prob(value), d.log_prob(value).sum(-1))
    mask = torch.tensor([True, False])
    masked = d.mask(mask).log_prob(value)
    torch.testing.assert_close(masked, d.log_prob(value) * mask)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (Radial, {"loc": (2, 3), "scale": (2, 3), "event_dim": 2}),
        (Radial, {"loc": (4, 1, 3), "scale": (2, 1), "event_dim": 1}),
        (Radial, {"loc": (2, 3), "scale": (), "event_dim": 0}),
        (Radial, {"loc": (), "scale": (5,), "event_dim": 1}),
        (NormalMixture, {"probs": (3, 2), "loc": (2,), "scale": ()}),
        (NormalMixture, {"logits": (2,), "loc": (4, 3, 2), "scale": (3, 1)}),
        (HierarchicalNormal, {"shape": (2, 3), "loc": (3,)}),
        (GroupedNormal, {"shape": (2, 3), "scale": ()}),
    ],
)
def test_shapes_from_those_of_arguments(kind, args):
    given = ("shape", "event_dim")
    values = {n: v if n in given else torch.full(v, 0.5) for n, v in args.items()}
    d = kind(**values)
    assert kind.infer_shapes(**args) == (d.batch_shape, d.event_shape)
    assert d.shape((7,)) == d.sample((7,)).shape
    assert not d.has_enumerate_support


def test_radial_needs_its_event_dim_for_shapes():
    with pytest.raises(NotImplementedError, match="`event_dim`"):
        Radial.infer_shapes(loc=(2, 3), scale=(2, 3), event_dim=())


@ROWS
def test_pickles(make, dtype):
    d = make(dtype)
    value = d.sample()
    torch.testing.assert_close(pickle.loads(pickle.dumps(d)).log_prob(value), d.log_prob(value))


@ROWS
def test_validates_values(make, dtype):
    d = make(dtype)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.full_like(d.sample(), math.nan))


class TestRadial:
    @pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0)])
    def test_rejects_parameters(self, loc, scale):
        with pytest.raises(ValueError, match=r"loc|scale"):
            Radial(torch.tensor([loc]), torch.tensor([scale]), 1, validate_args=True)

    @pytest.mark.parametrize("event_dim", [-1, 2])
    def test_rejects_event_dim(self, event_dim):
        with pytest.raises(ValueError, match="event_dim"):
            Radial(torch.zeros(3), torch.ones(3), event_dim)

    @pytest.mark.parametrize("event_dim", [0, 1])
    def test_one_entry_is_normal(self, event_dim):
        loc, scale = torch.tensor([0.3]), torch.tensor([0.7])
        value = torch.tensor([[-1.0], [0.3], [2.0]])
        actual = Radial(loc, scale, event_dim).log_prob(value)
        expected = dist.Normal(loc, scale).log_prob(value)
        torch.testing.assert_close(actual.flatten(), expected.flatten())

    def test_density_integrates_to_one(self):
        scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
        d = Radial(torch.zeros(2, dtype=torch.float64), scale, 1)

        def ring(radius: float) -> float:  # trapezoids are exact on a circle
            angle = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
            e = radius * torch.stack([angle.cos(), angle.sin()], -1)
            density = d.log_prob(e * scale).exp().mean().item() * scale.prod().item()
            return 2 * math.pi * radius * density

        assert quad(ring, 0, 12)[0] == pytest.approx(1, abs=1e-9)

    def test_length(self):
        d = Radial(torch.zeros(50), torch.ones(50), 1)
        assert within(d.sample((20_000,)).norm(dim=-1), math.sqrt(2 / math.pi))

    @pytest.mark.parametrize("size", [1, 5, 50])
    def test_entropy(self, size):
        d = Radial(torch.zeros(size), torch.linspace(0.5, 2, size), 1)
        assert within(-d.log_prob(d.sample((40_000,))), d.entropy())

    # The distributions behind the figures of the table are standard ones.
    @pytest.mark.parametrize(("size", "event_dim"), [(1, 1), (5, 1), (50, 1), (6, 2)])
    def test_kl_to_normal(self, size, event_dim):
        shape = (size,) if event_dim == 1 else (2, size // 2)
        loc, scale = torch.randn(shape), torch.rand(shape) + 0.1
        q = Radial(loc, scale, event_dim)
        p = dist.Normal(torch.randn(shape), torch.rand(shape) + 0.5).to_event(event_dim)
        value = q.sample((40_000,))
        assert within(q.log_prob(value) - p.log_prob(value), kl_divergence(q, p))

    def test_kl_under_independent(self):
        loc, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.1
        p = dist.Normal(torch.zeros(4, 3), 2.0)
        each = kl_divergence(Radial(loc, scale, 1), p.to_event(1))
        assert each.shape == (4,)
        both = kl_divergence(Radial(loc, scale, 1).to_event(1), p.to_event(2))
        torch.testing.assert_close(both, each.sum())
        single = kl_divergence(Radial(loc, scale, 0), p)
        torch.testing.assert_close(single, kl_divergence(dist.Normal(loc, scale), p))

    def test_kl_needs_the_same_event(self):
        with pytest.raises(NotImplementedError):
            kl_divergence(Radial(torch.zeros(3), torch.ones(3), 1), dist.Normal(0.0, 1.0))
        with pytest.raises(NotImplementedError):
            kl_divergence(
                Radial(torch.zeros(3), torch.ones(3), 1),
                dist.Laplace(0.0, 1.0).expand([3]).to_event(1),
            )

    def test_gradient_of_the_density_of_a_draw(self):
        """In float32 and a million dimensions, where the two large terms must not be added."""
        loc = torch.zeros(1_000_000, requires_grad=True)
        rho = torch.full((1_000_000,), 0.01, requires_grad=True)
        d = Radial(loc, rho, 1)
        d.log_prob(d.rsample()).backward()
        assert loc.grad is None or (loc.grad == 0).all()
        torch.testing.assert_close(rho.grad, -1 / rho.detach(), rtol=1e-6, atol=0)

    def test_total_gradient_equals_the_gradient_of_the_formula(self):
        loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
        scale = (torch.rand(4, dtype=torch.float64) + 0.5).requires_grad_()
        d = Radial(loc, scale, 1)
        value = d.rsample()
        fast = torch.autograd.grad(d.log_prob(value), [loc, scale], allow_unused=True)
        full = torch.autograd.grad(d.log_prob(value + 0), [loc, scale])
        torch.testing.assert_close(full[0], torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(fast[1], full[1])

    @pytest.mark.parametrize("detach", ["detach", "sample"])
    def test_detached_draws_have_the_score(self, detach):
        loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
        d = Radial(loc, torch.ones(4, dtype=torch.float64), 1)
        value = d.rsample().detach() if detach == "detach" else d.sample()
        (score,) = torch.autograd.grad(d.log_prob(value), loc)
        e = value - loc.detach()
        torch.testing.assert_close(score, e + 3 * e / e.square().sum())

    def test_repeated_draws(self):
        d = Radial(torch.zeros(3, requires_grad=True), torch.ones(3), 1)
        first, second = d.rsample(), d.rsample()
        torch.testing.assert_close(d.log_prob(first), d.log_prob(first.detach()))
        torch.testing.assert_close(d.log_prob(second), d.log_prob(second.detach()))


class TestNormalMixture:
    def test_logits_and_probs(self):
        loc, probs = torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.8])
        a = NormalMixture(probs, loc, 0.5)
        b = NormalMixture(logits=probs.log(), loc=loc, scale=0.5)
        value = torch.linspace(-2, 2, 9)
        torch.testing.assert_close(a.log_prob(value), b.log_prob(value))
        torch.testing.assert_close(a.probs, b.probs)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"loc": 0.0, "scale": 1.0},
            {"probs": torch.ones(2), "logits": torch.ones(2), "loc": 0.0, "scale": 1.0},
            {"probs": torch.ones(2), "loc": 0.0},
            {"probs": torch.tensor([-0.1, 1.1]), "loc": 0.0, "scale": 1.0},
            {"probs": torch.ones(2), "loc": 0.0, "scale": torch.tensor([1.0, 0.0])},
            {"probs": torch.tensor(1.0), "loc": 0.0, "scale": 1.0},
        ],
    )
    def test_rejects(self, kwargs):
        with pytest.raises(ValueError, match=r"probs|loc|scale|weights"):
            NormalMixture(**kwargs, validate_args=True)

    def test_cdf_and_icdf(self):
        d = DISTRIBUTIONS["NormalMixture"](torch.float64)
        probs = torch.linspace(0.001, 0.999, 41, dtype=torch.float64).unsqueeze(-1)
        torch.testing.assert_close(d.cdf(d.icdf(probs)), probs.expand(-1, 2))
        with pytest.raises(ValueError, match="value"):
            d.icdf(torch.tensor(1.5))

    def test_density_is_the_derivative_of_the_cdf(self):
        d = DISTRIBUTIONS["NormalMixture"](torch.float64)
        x = torch.linspace(-3, 3, 31, dtype=torch.float64).unsqueeze(-1).requires_grad_()
        (density,) = torch.autograd.grad(d.cdf(x.expand(-1, 2)).sum(), x)
        torch.testing.assert_close(density, d.log_prob(x).exp().sum(-1, keepdim=True).detach())

    @pytest.mark.parametrize(
        "f", [lambda w: w, lambda w: w.square(), torch.tanh], ids=["w", "w2", "tanh"]
    )
    def test_pathwise_gradients(self, f):
        """Each draw's gradient is an unbiased estimate of that of E[f(w)]."""
        logits = torch.tensor([-0.3, 0.4, 0.1], dtype=torch.float64)
        loc = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
        scale = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)

        def expectation(logits, loc, scale):
            total = 0.0
            nodes = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
            values = f(loc + scale * nodes.unsqueeze(-1))
            normal = dist.Normal(0.0, 1.0).log_prob(nodes).exp().unsqueeze(-1)
            total = torch.trapezoid(values * normal, nodes, dim=0)
            return (logits.softmax(-1) * total).sum()

        expected = torch.autograd.functional.jacobian(expectation, (logits, loc, scale))
        size = 50_000
        leaves = [t.expand(size, 3).clone().requires_grad_() for t in (logits, loc, scale)]
        q = NormalMixture(logits=leaves[0], loc=leaves[1], scale=leaves[2])
        gradients = torch.autograd.grad(f(q.rsample()).sum(), leaves)
        for gradient, exact in zip(gradients, expected, strict=True):
            assert gradient.std() > 0
            assert within(gradient, exact)


# math.md's table: weights, means and scales of q and of p, the KL divergence, and the bound.
TABLE = [
    (
        [0.5, 0.5],
        [0.1, -0.1],
        [0.05, 0.05],
        [0.5, 0.5],
        [0, 0],
        [1, math.exp(-6)],
        2.48484,
        2.62891,
    ),
    ([0.5, 0.5], [2, -2], [0.1, 0.1], [0.5, 0.5], [2, -2], [0.1, 0.1], 0.0, 0.0),
    ([0.5, 0.5], [0, 0], [0.3, 0.3], [0.5, 0.5], [0, 0], [1, 0.5], 0.42712, 0.43145),
    ([0.3, 0.7], [0.3, -0.3], [0.3, 0.2], [0.5, 0.5], [0, 0], [1, 0.1], 0.73451, 1.48787),
    ([0.9, 0.1], [0.4, 0], [0.05, 0.05], [0.5, 0.5], [0, 0], [1, 0.1], 2.69499, 2.70589),
]


def mixture(weights, loc, scale, kind=NormalMixture):
    weights, loc, scale = (torch.tensor(t, dtype=torch.float64) for t in (weights, loc, scale))
    if kind is NormalMixture:
        return NormalMixture(weights, loc, scale)
    module = dist if kind == "pyro" else torch.distributions
    return module.MixtureSameFamily(module.Categorical(weights), module.Normal(loc, scale))


class TestMixtureKL:
    @pytest.mark.parametrize("row", TABLE)
    @pytest.mark.parametrize("kind", [NormalMixture, "torch", "pyro"])
    def test_table(self, row, kind):
        q, p = mixture(*row[:3]), mixture(*row[3:6], kind=kind)
        exact = kl_quadrature(q, p)
        assert exact.kl.item() == pytest.approx(row[6], abs=6e-6)
        assert exact.error.item() < 1e-6
        assert kl_divergence(q, p).item() == pytest.approx(row[7], abs=6e-6)

    def test_quadrature_against_scipy(self):
        q, p = mixture(*TABLE[3][:3]), mixture(*TABLE[3][3:6])

        def integrand(x: float) -> float:
            log_q, log_p = q.log_prob(torch.tensor(x)), p.log_prob(torch.tensor(x))
            return (log_q.exp() * (log_q - log_p)).item()

        expected, _ = quad(integrand, -4, 4, points=[-0.3, 0, 0.3], limit=200)
        assert kl_quadrature(q, p).kl.item() == pytest.approx(expected, abs=1e-7)

    def test_quadrature_against_monte_carlo_for_another_prior(self):
        q = mixture(*TABLE[3][:3]).expand([2, 3]).to_event(1)
        p = dist.StudentT(3.0).expand([2, 3]).to_event(1)
        value = q.sample((40_000,))
        kl, _ = kl_quadrature(q, p)
        assert kl.shape == (2,)
        assert within(q.log_prob(value) - p.log_prob(value), kl)

    def test_quadrature_of_no_weights(self):
        q = dist.Normal(torch.zeros(0), torch.ones(0)).to_event(1)
        assert kl_quadrature(q, q).kl.item() == 0

    def test_quadrature_rejects(self):
        q = dist.Normal(0.0, 1.0)
        with pytest.raises(ValueError, match="num_nodes"):
            kl_quadrature(q, q, num_nodes=3)
        with pytest.raises(ValueError, match="event"):
            kl_quadrature(q, q.expand([2]).to_event(1))
        with pytest.raises(NotImplementedError):
            kl_quadrature(dist.Laplace(0.0, 1.0), q)

    def test_is_a_bound(self):
        for _ in range(50):
            q, p = (
                mixture(
                    torch.rand(k).tolist(),
                    torch.randn(k).tolist(),
                    (torch.rand(k) + 0.05).tolist(),
                )
                for k in (3, 2)
            )
            assert kl_divergence(q, p) >= kl_quadrature(q, p).kl - 1e-6

    def test_pairs_with_a_normal(self):
        normal, other = dist.Normal(0.3, 0.5), dist.Normal(-0.2, 1.5)
        one, another = (mixture([1.0], [d.loc.item()], [d.scale.item()]) for d in (normal, other))
        expected = kl_divergence(normal, other).double()
        for q, p in [(one, other), (normal, another), (one, another)]:
            torch.testing.assert_close(kl_divergence(q, p).double(), expected)
        assert mixture_kl_bound(normal, mixture(*TABLE[0][3:6])).shape == ()

    def test_broadcasts_and_sums_under_independent(self):
        q = mixture(*TABLE[2][:3]).expand([4, 3])
        p = mixture(*TABLE[2][3:6])
        each = kl_divergence(q, p)
        assert each.shape == (4, 3)
        total = kl_divergence(q.to_event(2), p.expand([4, 3]).to_event(2))
        torch.testing.assert_close(total, each.sum())

    def test_other_components_have_no_formula(self):
        p = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Laplace(torch.zeros(2), torch.ones(2))
        )
        with pytest.raises(NotImplementedError):
            kl_divergence(dist.Normal(0.0, 1.0), p)
