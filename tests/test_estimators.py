from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import within
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch.distributions import kl_divergence

from pyro_bnn import bayesianize
from pyro_bnn.compat import Standalone
from pyro_bnn.distributions import NormalMixture, Radial
from pyro_bnn.estimators import (
    Draw,
    Estimated,
    Flipout,
    LocalReparameterization,
    Shared,
    linear,
)
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoReparameterization
from pyro_bnn.nn import (
    BayesianConv1d,
    BayesianConv2d,
    BayesianConv3d,
    BayesianConvTranspose2d,
    BayesianEmbedding,
    BayesianLinear,
    BayesianLSTM,
)

ESTIMATORS = [Shared(), Flipout(), LocalReparameterization()]
EACH = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def posterior(estimator, *shape, kind=dist.Normal, dtype=torch.float64, requires_grad=False):
    loc = torch.randn(shape, dtype=dtype, requires_grad=requires_grad)
    scale = (torch.rand(shape, dtype=dtype) + 0.1).requires_grad_(requires_grad)
    base = dist.Normal(loc, scale) if kind is dist.Normal else Radial(loc, scale, len(shape))
    return Estimated(base, len(shape), estimator)


def weight_of_each_example(weight, size: int, num_in: int):
    """What a draw does to the unit vectors is its weight, example by example."""
    columns = [
        F.linear(torch.eye(num_in, dtype=weight.dtype)[i].expand(size, -1), weight)
        for i in range(num_in)
    ]
    return torch.stack(columns, -1)


class TestFlipout:
    @pytest.mark.parametrize("kind", [dist.Normal, Radial])
    @pytest.mark.parametrize("bias", [None, "draw", "tensor"])
    @given(lead=st.lists(st.integers(1, 4), max_size=3), data=st.data())
    @settings(max_examples=15, deadline=None)
    def test_one_example_one_weight(self, kind, bias, lead, data):
        num_in, num_out = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        q = posterior(Flipout(), num_out, num_in, kind=kind)
        weight = q.rsample()
        b = {
            None: None,
            "draw": posterior(Flipout(), num_out, kind=kind).rsample(),
            "tensor": torch.randn(num_out, dtype=torch.float64),
        }[bias]
        x = torch.randn(*lead, num_in, dtype=torch.float64)
        y = F.linear(x, weight, b)
        size = lead[0] if lead else 1
        each = weight_of_each_example(weight, size, num_in)
        biases = F.linear(torch.zeros(size, num_in, dtype=torch.float64), weight, b)
        rows = x.reshape(size, -1, num_in)
        expected = rows @ each.mT + biases.unsqueeze(1)
        torch.testing.assert_close(y.reshape(size, -1, num_out), expected)

        # Each weight is the perturbation with the signs of one row and one column flipped.
        noise = torch.Tensor(weight.sample.value) - q.mean
        flips = (each - q.mean) / noise
        torch.testing.assert_close(flips.abs(), torch.ones_like(flips))
        rank_one = flips[:, :1, :] * flips[:, :, :1] * flips[:, :1, :1]
        torch.testing.assert_close(flips, rank_one)

    def test_examples_have_independent_weights(self):
        q = posterior(Flipout(), 3, 2)
        weights = torch.stack(
            [weight_of_each_example(q.rsample(), 2, 2) - q.mean for _ in range(5_000)]
        )
        assert within(weights, 0.0)
        assert within(weights[:, 0] * weights[:, 1], 0.0)
        assert within(weights.square(), q.variance)

    def test_weight_used_twice_also_transposed(self):
        weight = posterior(Flipout(), 3, 4).rsample()
        each = weight_of_each_example(weight, 6, 4)
        x, z = (torch.randn(6, n, dtype=torch.float64) for n in (4, 3))
        for forward in (F.linear(x, weight), x @ weight.T, torch.matmul(x, weight.t())):
            torch.testing.assert_close(forward, (each @ x.unsqueeze(-1)).squeeze(-1))
        for back in (z @ weight, F.linear(z, weight.mT), torch.mm(z, weight)):
            torch.testing.assert_close(back, (each.mT @ z.unsqueeze(-1)).squeeze(-1))

    def test_bias_keeps_its_sign_with_another_weight(self):
        first, second = (posterior(Flipout(), 2, 3).rsample() for _ in range(2))
        bias = posterior(Flipout(), 2).rsample()
        zero = torch.zeros(5, 3, dtype=torch.float64)
        y = F.linear(zero, first, bias)
        torch.testing.assert_close(F.linear(zero, second, bias), y)
        torch.testing.assert_close(F.linear(zero, torch.ones_like(first), bias), y)

    @pytest.mark.parametrize("function", [F.linear, F.conv1d])
    def test_examples_are_the_rows_of_a_sample(self, function):
        shape = (3, 4) if function is F.linear else (3, 4, 1)
        weight = posterior(Flipout(), *shape).rsample((5, 1))
        x = torch.randn(5, 1, *shape[1:], dtype=torch.float64).expand(5, 6, *shape[1:])
        for sample in function(x, weight):
            assert len(sample.flatten(1).unique(dim=0)) > 1

    def test_needs_symmetric_noise(self):
        q = NormalMixture(torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2, 2))
        with pytest.raises(ValueError, match=r"NormalMixture is none: use `Shared\(\)`"):
            Estimated(q, 1, Flipout()).rsample()


class TestLRT:
    @pytest.mark.parametrize("bias", [None, "draw", "flipout", "tensor"])
    @pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)])
    def test_moments(self, bias, lead):
        """Those of the weights' own distribution, example by example."""
        q = posterior(LocalReparameterization(), 3, 4)
        kind = Flipout() if bias == "flipout" else LocalReparameterization()
        b = posterior(kind, 3)
        x = torch.randn(*lead, 4, dtype=torch.float64)
        fixed = torch.randn(3, dtype=torch.float64)

        def sample():
            drawn = {None: None, "draw": b, "flipout": b, "tensor": fixed}[bias]
            drawn = drawn.rsample() if isinstance(drawn, Estimated) else drawn
            return F.linear(x, q.rsample(), drawn)

        y = torch.stack([sample() for _ in range(4_000)])
        mean, variance = F.linear(x, q.mean), F.linear(x.square(), q.variance)
        if bias == "tensor":
            mean = mean + fixed
        elif bias is not None:
            mean, variance = mean + b.mean, variance + b.variance
        assert within(y, mean)
        assert within((y - mean).square(), variance)
        if lead and lead[0] > 1 and bias != "flipout":
            noise = y - mean
            assert within(noise[:, 0] * noise[:, 1], 0.0)

    @pytest.mark.parametrize("bias", [False, True])
    def test_weight_used_several_times(self, bias):
        """The outputs of three uses have the covariance that one weight gives them."""
        q, b = posterior(LocalReparameterization(), 2, 4), posterior(LocalReparameterization(), 2)
        xs = torch.randn(3, 5, 4, dtype=torch.float64)

        def sample():
            weight, drawn = q.rsample(), b.rsample() if bias else None
            return torch.stack([F.linear(x, weight, drawn) for x in xs])

        noise = torch.stack([sample() for _ in range(4_000)])
        noise = noise - F.linear(xs, q.mean, b.mean if bias else None)
        for i in range(3):
            for j in range(3):
                covariance = F.linear(xs[i] * xs[j], q.variance)
                if bias:
                    covariance = covariance + b.variance
                assert within(noise[:, i] * noise[:, j], covariance)

    def test_uses_of_a_weight_with_several_biases(self):
        """What a bias adds to the covariance is that of the uses that have it."""
        torch.manual_seed(0)
        q = posterior(LocalReparameterization(), 2, 4)
        one, other = (posterior(LocalReparameterization(), 2) for _ in range(2))
        xs = torch.randn(3, 5, 4, dtype=torch.float64)
        order = (0, 1, 0)  # of the biases

        def sample():
            weight, biases = q.rsample(), (one.rsample(), other.rsample())
            return torch.stack(
                [F.linear(x, weight, biases[i]) for x, i in zip(xs, order, strict=True)]
            )

        noise = torch.stack([sample() for _ in range(3_000)])
        noise = noise - F.linear(xs, q.mean)
        noise = noise - torch.stack([(one, other)[i].mean for i in order]).unsqueeze(1)
        for i in range(3):
            for j in range(3):
                covariance = F.linear(xs[i] * xs[j], q.variance)
                if order[i] == order[j]:
                    covariance = covariance + (one, other)[order[i]].variance
                assert within(noise[:, i] * noise[:, j], covariance)

    def test_bias_keeps_its_noise_with_weights_that_are_no_draws(self):
        bias = posterior(LocalReparameterization(), 3).rsample()
        zero, weight = torch.zeros(5, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
        first = F.linear(zero, weight, bias)
        torch.testing.assert_close(F.linear(zero, 2 * weight, bias), first)
        assert (first[0] != first[1]).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_same_input_gives_the_same_output(self, dtype):
        q = posterior(LocalReparameterization(), 30, 40, dtype=dtype, requires_grad=True)
        weight, x = q.rsample(), torch.randn(50, 40, dtype=dtype)
        first, second = F.linear(x, weight), F.linear(x, weight)
        torch.testing.assert_close(first, second)
        gradients = [
            torch.autograd.grad(y.sum(), q.base_dist.scale, retain_graph=True)[0]
            for y in (first, second)
        ]
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_an_input_may_be_changed_in_place(self, context):
        weight = posterior(LocalReparameterization(), 2, 4, requires_grad=True).rsample()
        with context():
            x = torch.randn(5, 4, dtype=torch.float64)
            first = F.linear(x, weight)
            torch.testing.assert_close(F.linear(x.neg_(), weight), -first)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_zero_input_has_no_noise_and_no_gradient(self, dtype):
        q = posterior(LocalReparameterization(), 3, 4, dtype=dtype, requires_grad=True)
        x = torch.zeros(5, 4, dtype=dtype, requires_grad=True)
        weight = q.rsample()
        y = F.linear(x, weight) + F.linear(x, weight)
        assert (y.abs() < 1e-15).all()
        y.sum().backward()
        assert (q.base_dist.scale.grad == 0).all()
        assert torch.isfinite(x.grad).all()

    def test_samples_no_weight_unless_asked(self):
        weight = posterior(LocalReparameterization(), 3, 4).rsample()
        F.linear(torch.ones(2, 4, dtype=torch.float64), weight)
        assert weight.shape == (3, 4)
        assert weight.dtype == torch.float64
        assert weight.sample._noise is None
        norm = weight.square().sum()
        assert weight.square().sum() == norm

    def test_has_no_consistent_transpose(self):
        weight = posterior(LocalReparameterization(), 3, 4).rsample()
        F.linear(torch.ones(2, 4, dtype=torch.float64), weight)
        with pytest.raises(ValueError, match="transposed"):
            F.linear(torch.ones(2, 3, dtype=torch.float64), weight.mT)
        only = posterior(LocalReparameterization(), 4, 3).rsample()
        assert (torch.ones(2, 4, dtype=torch.float64) @ only).shape == (2, 3)

    def test_needs_a_normal(self):
        q = Estimated(Radial(torch.zeros(2), torch.ones(2), 1), 1, LocalReparameterization())
        with pytest.raises(ValueError, match=r"Radial is none: use `Shared\(\)` or `Flipout\(\)`"):
            q.rsample()


@pytest.mark.parametrize(
    ("estimator", "ratio"), [(Shared(), None), (Flipout(), 1), (LocalReparameterization(), 1)]
)
def test_gradient_variance_law(estimator, ratio):
    """For a linear layer under half the squared loss, the variance has a closed form."""
    size, num_in, num_out, sigma, draws = 256, 5, 3, 0.3, 4_000
    x = torch.randn(size, num_in, dtype=torch.float64)
    target = torch.randn(size, num_out, dtype=torch.float64)
    loc = torch.randn(num_out, num_in, dtype=torch.float64, requires_grad=True)
    q = Estimated(dist.Normal(loc, sigma), 2, estimator)

    def gradient():
        loss = 0.5 * (F.linear(x, q.rsample()) - target).square().sum() / size
        return torch.autograd.grad(loss, loc)[0]

    variance = torch.stack([gradient() for _ in range(draws)]).var(0).sum().item()
    shared = num_out * sigma**2 * (x.T @ x / size).square().sum()
    each = num_out * sigma**2 * x.square().sum(-1).square().sum() / size**2
    assert variance == pytest.approx((each if ratio else shared).item(), rel=0.1)


@EACH
@pytest.mark.parametrize("samples", [(7,), (7, 1), (7, 1, 1)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_sample_dimensions(estimator, samples, has_bias):
    """Moments of each sample, from an input without and one with sample dimensions."""
    q, b = posterior(estimator, 3, 4), posterior(estimator, 3)
    x = torch.randn(5, 4, dtype=torch.float64)
    shape = (7,) if len(samples) < 3 else (7, 1)

    def sample(x):
        bias = b.expand(samples).rsample() if has_bias else None
        return F.linear(x, q.expand(samples).rsample(), bias)

    again = sample(x)
    assert again.shape == (*shape, 5, 3)
    assert F.linear(again, posterior(estimator, 2, 3).expand(samples).rsample()).shape == (
        *shape,
        5,
        2,
    )
    y = torch.stack([sample(x) for _ in range(4_000)])
    mean, variance = F.linear(x, q.mean), F.linear(x.square(), q.variance)
    if has_bias:
        mean, variance = mean + b.mean, variance + b.variance
    assert within(y, mean)
    assert within((y - mean).square(), variance)
    noise = y - mean
    assert within(noise[:, 0] * noise[:, 1], 0.0)  # samples are independent


@EACH
def test_another_weight_for_each_task(estimator):
    """Sample dimensions with parameters of their own, as a plate of tasks has."""
    loc = torch.randn(7, 1, 3, 4, dtype=torch.float64)
    q = Estimated(dist.Normal(loc, 1e-9), 2, estimator)
    x = torch.randn(7, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(linear(x, q.rsample()), x @ loc.squeeze(1).mT, atol=1e-7, rtol=0)


@EACH
def test_no_rows(estimator):
    weight, bias = posterior(estimator, 3, 4).rsample(), posterior(estimator, 3).rsample()
    assert F.linear(torch.zeros(0, 4, dtype=torch.float64), weight, bias).shape == (0, 3)


@EACH
def test_wrong_width(estimator):
    weight = posterior(estimator, 3, 4).rsample()
    with pytest.raises(ValueError, match="4 features"):
        linear(torch.zeros(2, 5, dtype=torch.float64), weight)


@EACH
def test_sample_dimensions_need_rows(estimator):
    weight = posterior(estimator, 3, 4).expand((7,)).rsample()
    with pytest.raises(ValueError, match="unsqueeze"):
        linear(torch.zeros(4, dtype=torch.float64), weight)


@EACH
def test_density_and_kl_are_those_of_the_posterior(estimator):
    q, p = posterior(estimator, 3, 4), dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2)
    value = q.rsample()
    normal = q.base_dist.to_event(2)
    torch.testing.assert_close(q.log_prob(value), normal.log_prob(value * 1))
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(normal, p))
    assert isinstance(q.expand((2,)), Estimated)


@pytest.mark.parametrize("estimator", [Flipout(), LocalReparameterization()])
class TestDraw:
    def test_is_an_ordinary_tensor_to_all_else(self, estimator):
        weight = posterior(estimator, 3, 4).rsample()
        assert isinstance(weight, Draw)
        value = weight.sample.value
        for ordinary in (weight + 0, weight.clone(), torch.stack([weight])[0], weight.view(-1)):
            assert type(ordinary) is torch.Tensor
            torch.testing.assert_close(ordinary.view(3, 4), value)
        assert repr(weight) == repr(value)
        assert weight.tolist() == value.tolist()
        assert len(weight) == 3

    def test_pickles_and_copies_as_an_ordinary_tensor(self, estimator):
        q = posterior(estimator, 3, 4, requires_grad=True)
        weight = q.rsample()
        value = weight.sample.value.detach()
        for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight.detach()))):
            assert type(other) is torch.Tensor
            torch.testing.assert_close(other, value)

    def test_memory_behind_it_holds_nothing(self, estimator):
        weight = posterior(estimator, 3, 4).rsample()
        with torch._C.DisableTorchFunctionSubclass():
            assert torch.isnan(weight).all()

    def test_keeps_its_gradient_if_met_without_one_first(self, estimator):
        q = posterior(estimator, 3, 4, requires_grad=True)
        weight, x = q.rsample(), torch.randn(5, 4, dtype=torch.float64)
        with torch.no_grad():
            first, norm = F.linear(x, weight), weight.norm()
        for output, value in ((F.linear(x, weight), first), (weight.norm(), norm)):
            torch.testing.assert_close(output.detach(), value)
            (gradient,) = torch.autograd.grad(output.sum(), q.base_dist.scale, retain_graph=True)
            assert (gradient != 0).any()

    def test_gradients_through_the_sample(self, estimator):
        q = posterior(estimator, 3, 4, requires_grad=True)
        (q.rsample() ** 2).sum().backward()
        assert (q.base_dist.loc.grad != 0).all()
        assert (q.base_dist.scale.grad != 0).all()

    @pytest.mark.parametrize("other", ESTIMATORS, ids=lambda e: type(e).__name__)
    def test_mixes_with_any_bias(self, estimator, other):
        q, b = posterior(estimator, 3, 4), posterior(other, 3)
        x = torch.randn(5, 4, dtype=torch.float64)
        y = torch.stack([F.linear(x, q.rsample(), b.rsample()) for _ in range(4_000)])
        assert within(y, F.linear(x, q.mean, b.mean))
        variance = F.linear(x.square(), q.variance, b.variance)
        assert within((y - F.linear(x, q.mean, b.mean)).square(), variance)
        plain = torch.randn(3, 4, dtype=torch.float64)
        y = torch.stack([F.linear(x, plain, b.rsample()) for _ in range(4_000)])
        assert within((y - F.linear(x, plain, b.mean)).square(), b.variance.expand(5, 3))


class TestLookup:
    def test_only_rows_looked_up_are_drawn(self):
        index = torch.tensor([[3, 5], [5, 3]])
        for estimator in (Flipout(), LocalReparameterization()):
            q = posterior(estimator, 10, 4)
            weight = q.rsample()
            largest = largest_random_tensor(lambda weight=weight: F.embedding(index, weight))
            assert largest <= index.numel() * 4

    def test_rows_stay_what_they_were(self):
        """Looked up again, met by a product, or read as a whole, a row has the same noise."""
        q = posterior(Flipout(), 10, 4)
        weight = q.rsample()
        first = F.embedding(torch.tensor([3, 5]), weight)
        second = F.embedding(torch.tensor([5, 7]), weight)
        signs = weight.sample.signs(2, 1, pytest.fail)
        whole = torch.Tensor(weight.sample.value)
        torch.testing.assert_close(first, q.mean[[3, 5]] + (whole - q.mean)[[3, 5]] * signs)
        torch.testing.assert_close(second, q.mean[[5, 7]] + (whole - q.mean)[[5, 7]] * signs)
        torch.testing.assert_close(F.embedding(torch.tensor([3, 5]), weight), first)

    @pytest.mark.parametrize("lookup_first", [True, False])
    def test_tied_to_a_product(self, lookup_first):
        """An example has one weight, looked up or met by its hidden units (as in a decoder)."""
        weight = posterior(Flipout(), 6, 4).rsample()
        index, hidden = torch.tensor([[0, 1], [5, 1]]), torch.randn(2, 4, dtype=torch.float64)
        if lookup_first:
            rows = F.embedding(index, weight)
        each = weight_of_each_example(weight, 2, 4)
        torch.testing.assert_close(
            F.linear(hidden, weight), (each @ hidden.unsqueeze(-1)).squeeze(-1)
        )
        if not lookup_first:
            rows = F.embedding(index, weight)
        for n in range(2):
            torch.testing.assert_close(rows[n], each[n][index[n]])

    def test_lrt_cannot_be_tied(self):
        weight = posterior(LocalReparameterization(), 6, 4).rsample()
        F.embedding(torch.tensor([1]), weight)
        with pytest.raises(ValueError, match="transposed"):
            F.linear(torch.ones(1, 4, dtype=torch.float64), weight)

    def test_rows_are_shared_by_examples_but_for_signs(self):
        q = posterior(Flipout(), 5, 3)
        index = torch.tensor([2]).expand(20_000)
        noise = torch.stack([F.embedding(index[:2], q.rsample()) - q.mean[2] for _ in range(4_000)])
        torch.testing.assert_close(noise[:, 0].abs(), noise[:, 1].abs())
        assert within(noise[:, 0] * noise[:, 1], 0.0)
        assert within(noise.square(), q.variance[2])


def largest_random_tensor(function):
    """The number of entries of the largest random tensor that a function draws."""
    sizes = [0]

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func in (torch.randn, torch.randn_like, torch.randint):
                sizes.append(result.numel())
            return result

    with Watch():
        function()
    return max(sizes)


class TestConvolution:
    @pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d])
    def test_adjoint_keeps_the_weight_of_an_example(self, function):
        """A transposed convolution with the same draw has the same weight for each example."""
        q = posterior(Flipout(), 3, 2, 3, 3)
        weight = q.rsample()
        back = {F.conv2d: F.conv_transpose2d, F.conv_transpose2d: F.conv2d}[function]
        x = torch.randn(4, 2 if function is F.conv2d else 3, 6, 6, dtype=torch.float64)
        z = torch.randn(4, 3 if function is F.conv2d else 2, 4, 4, dtype=torch.float64)
        if function is F.conv_transpose2d:
            x, z = x[..., :4, :4], torch.randn(4, 2, 6, 6, dtype=torch.float64)
        forward, backward = function(x, weight), back(z, weight)
        # <f(x), z> = <x, f'(z)> for each example, whatever its weight, if it is the same.
        torch.testing.assert_close((forward * z).sum((1, 2, 3)), (x * backward).sum((1, 2, 3)))

    def test_lrt_has_no_adjoint(self):
        weight = posterior(LocalReparameterization(), 3, 2, 3, 3).rsample()
        F.conv2d(torch.randn(1, 2, 6, 6, dtype=torch.float64), weight)
        with pytest.raises(ValueError, match="transposed"):
            F.conv_transpose2d(torch.randn(1, 3, 6, 6, dtype=torch.float64), weight)

    @pytest.mark.parametrize("kwargs", [{"padding_mode": "circular", "padding": 1}, {}])
    @pytest.mark.parametrize("make", [BayesianConv1d, BayesianConv2d, BayesianConv3d])
    def test_stack_of_samples(self, make, kwargs):
        """Weights with sample dimensions give what a loop over them does, layer after layer."""
        space = int(make.__name__[-2])
        net = PyroModule[torch.nn.Sequential](make(2, 3, 3, **kwargs), make(3, 2, 3, **kwargs))
        names = ["0.weight", "0.bias", "1.weight", "1.bias"]
        shapes = [(3, 2, *[3] * space), (3,), (2, 3, *[3] * space), (2,)]
        x = torch.randn(4, 2, *[6] * space, dtype=torch.float64)
        for samples in ((5,), (5, 1), (2, 5, 1), (1, 1)):
            weights = {
                n: torch.randn(*samples, *s).double() for n, s in zip(names, shapes, strict=True)
            }
            result = poutine.condition(net, weights)(x)
            lead = samples[:-1] if len(samples) > 1 else samples
            flat = {n: w.reshape(-1, *s) for (n, w), s in zip(weights.items(), shapes, strict=True)}
            each = [
                poutine.condition(net, {n: w[i] for n, w in flat.items()})(x)
                for i in range(math.prod(lead))
            ]
            torch.testing.assert_close(result, torch.stack(each).reshape(*lead, *each[0].shape))

    def test_another_weight_for_each_row(self):
        net = BayesianConv2d(2, 3, 3)
        weights = {"weight": torch.randn(5, 4, 3, 2, 3, 3), "bias": torch.randn(5, 4, 3)}
        x = torch.randn(4, 2, 6, 6)
        result = poutine.condition(net, weights)(x)
        assert result.shape == (5, 4, 3, 4, 4)
        expected = F.conv2d(x[3:], weights["weight"][2, 3], weights["bias"][2, 3])
        torch.testing.assert_close(result[2, 3:], expected)

    def test_samples_broadcast(self):
        net = BayesianConv2d(2, 3, 3, bias=False)
        weight, x = torch.randn(5, 1, 3, 2, 3, 3), torch.randn(4, 2, 6, 6)
        expected = poutine.condition(net, {"weight": weight})(x)
        torch.testing.assert_close(
            poutine.condition(net, {"weight": weight})(x.expand(1, 4, 2, 6, 6)), expected
        )
        torch.testing.assert_close(
            poutine.condition(net, {"weight": weight[:1]})(x.expand(5, 4, 2, 6, 6)),
            expected[:1].expand_as(expected),
        )

    def test_output_size_with_samples(self):
        net = BayesianConvTranspose2d(2, 3, 3, stride=2)
        weights = {"weight": torch.randn(5, 1, 2, 3, 3, 3), "bias": torch.randn(5, 1, 3)}
        x = torch.randn(5, 4, 2, 6, 6)
        result = poutine.condition(net, weights)(x, output_size=[14, 13])
        assert result.shape == (5, 4, 3, 14, 13)

    def test_bias_with_samples_alone(self):
        x, weight, bias = torch.randn(4, 2, 6, 6), torch.randn(3, 2, 3, 3), torch.randn(5, 1, 3)
        net = BayesianConv2d(2, 3, 3)
        result = poutine.condition(net, {"weight": weight, "bias": bias})(x)
        torch.testing.assert_close(result[2], F.conv2d(x, weight, bias[2, 0]))

    def test_a_row_is_needed(self):
        weights = {"weight": torch.randn(5, 1, 3, 2, 3, 3), "bias": torch.randn(5, 1, 3)}
        with pytest.raises(ValueError, match="unsqueeze"):
            poutine.condition(BayesianConv2d(2, 3, 3), weights)(torch.randn(2, 6, 6))

    def test_results_are_ordinary_tensors_once_flat(self):
        net = PyroModule[torch.nn.Sequential](
            BayesianConv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(-3), BayesianLinear(48, 1)
        )
        guide = AutoLRT(net)
        with pyro.plate("samples", 5, dim=-2):
            draws = guide(x := torch.randn(4, 2, 6, 6))
            result = poutine.condition(net, draws)(x)
        assert result.shape == (5, 4, 1)
        assert type(result) is torch.Tensor

    @pytest.mark.parametrize(
        "after", [torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.AvgPool2d(2)]
    )
    def test_modules_without_sample_dimensions(self, after):
        net = PyroModule[torch.nn.Sequential](
            BayesianConv2d(2, 3, 3), torch.nn.ReLU(), after, torch.nn.Linear(48, 1)
        )
        weights = {"0.weight": torch.randn(5, 1, 3, 2, 3, 3), "0.bias": torch.randn(5, 1, 3)}
        with pytest.raises(ValueError, match=r"pyro_bnn\.infer\.Predictive"):
            poutine.condition(net, weights)(torch.randn(4, 2, 6, 6))


def test_sequences_do_not_line_up_with_samples():
    net = PyroModule[torch.nn.Sequential](BayesianEmbedding(7, 3), BayesianLinear(3, 2))
    guide = AutoLRT(net)
    with pyro.plate("samples", 4, dim=-2):
        draws = guide(x := torch.randint(7, (4, 5)))
        with pytest.raises(ValueError, match=r"pyro_bnn\.infer\.Predictive"):
            poutine.condition(net, draws)(x)
        assert poutine.condition(net, draws)(x[:, 0]).shape == (4, 4, 2)


class TestRecurrent:
    @pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
    @pytest.mark.parametrize("estimator", [Flipout(), LocalReparameterization()])
    def test_torchs_own_layers(self, kind, estimator):
        """The draws alone make torch's layers compute by the rule."""
        layer = PyroModule[kind](3, 4, batch_first=True).double()
        weights = {n: posterior(estimator, *p.shape) for n, p in layer.named_parameters()}
        for name, q in weights.items():
            setattr(layer, name, PyroSample(dist.Normal(q.mean, 1.0).to_event(q.mean.dim())))
        x = torch.randn(1, 5, 3, dtype=torch.float64).expand(6, 5, 3)
        draws = {name: q.rsample() for name, q in weights.items()}
        output, _ = poutine.condition(layer, draws)(x)
        assert len(output.flatten(1).unique(dim=0)) == 6

    def test_draws_nothing_at_each_step(self):
        """One weight for a sequence: under flipout no random number depends on its length."""
        for length in (1, 50):
            layer = BayesianLSTM(3, 4, batch_first=True)
            torch.manual_seed(0)
            draws = AutoFlipout(layer)(x := torch.randn(2, length, 3))
            torch.manual_seed(0)
            poutine.condition(layer, draws)(x)
            state = torch.random.get_rng_state()
            if length == 1:
                expected = state
        assert torch.equal(state, expected)

    def test_lrt_noise_of_a_bias_is_that_of_the_step(self):
        """Also where the bias alone is drawn."""
        layer = PyroModule[torch.nn.RNN](1, 2, batch_first=True, nonlinearity="relu").double()
        values = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
        for name in values:
            setattr(
                layer, name, PyroSample(dist.Normal(values[name], 1.0).to_event(values[name].dim()))
            )
        q = Estimated(
            dist.Normal(torch.full((2,), 9.0).double(), 1.0), 1, LocalReparameterization()
        )
        x = torch.zeros(3, 4, 1, dtype=torch.float64)
        output, _ = poutine.condition(layer, {**values, "bias_hh_l0": q.rsample()})(x)
        assert len(output.flatten().unique()) == output.numel()

    def test_inputs_of_all_steps_are_one_product(self, monkeypatch):
        calls = []
        plain = F.linear
        monkeypatch.setattr(F, "linear", lambda *args: calls.append(args[0].shape) or plain(*args))
        layer = BayesianLSTM(3, 4, batch_first=True)
        for make, products in ((AutoFlipout, 2), (AutoLRT, 2)):
            draws = make(layer)(x := torch.randn(2, 50, 3))
            calls.clear()
            poutine.condition(layer, draws)(x)
            assert calls.count((50, 2, 3)) == products
            assert calls.count((2, 4)) == products * 50

    def test_shared_draws_use_the_fused_kernel(self):
        called = []

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                called.append(func)
                return func(*args, **(kwargs or {}))

        layer = BayesianLSTM(3, 4)
        draws = AutoReparameterization(layer)(x := torch.randn(5, 2, 3))
        with Watch():
            poutine.condition(layer, draws)(x)
        assert called.count(torch.lstm) == 1
        assert F.linear not in called


class TestCalls:
    """The ways to call a function that is computed by an estimator's rule."""

    def test_products_by_keyword(self):
        weight, bias = posterior(Flipout(), 3, 4).rsample(), posterior(Flipout(), 3).rsample()
        x = torch.randn(5, 4, dtype=torch.float64)
        expected = F.linear(x, weight, bias)
        torch.testing.assert_close(F.linear(x, bias=bias, weight=weight), expected)
        torch.testing.assert_close(F.linear(bias=bias, weight=weight, input=x), expected)
        expected = F.linear(x, weight)
        for transposed in (
            weight.mH,
            weight.swapdims(0, 1),
            weight.transpose(dim0=-1, dim1=0),
            torch.adjoint(weight),
            torch.t(input=weight),
            torch.transpose(input=weight, dim0=0, dim1=1),
            torch.swapaxes(weight, 0, axis1=1),
        ):
            for product in (
                torch.matmul(x, other=transposed),
                torch.matmul(other=transposed, input=x),
                torch.mm(x, mat2=transposed),
                torch.mm(mat2=transposed, input=x),
                x.matmul(other=transposed),
                x.mm(mat2=transposed),
            ):
                torch.testing.assert_close(product, expected)
        out = torch.empty(5, 3, dtype=torch.float64)
        torch.matmul(x, weight.T, out=out)
        torch.testing.assert_close(out, x @ weight.sample.value.T)

    def test_convolutions_lookups_and_recurrent_networks_by_keyword(self):
        weight = posterior(Flipout(), 3, 2, 3).rsample()
        x = torch.randn(4, 2, 7, dtype=torch.float64)
        expected = F.conv1d(x, weight, None, 2, 1)
        for call in (
            lambda: F.conv1d(weight=weight, input=x, stride=2, padding=1),
            lambda: F.conv1d(x, weight=weight, bias=None, padding=1, stride=2),
        ):
            torch.testing.assert_close(call(), expected)
        rows, index = posterior(Flipout(), 6, 4).rsample(), torch.tensor([[0, 1], [5, 1]])
        expected = F.embedding(index, rows)
        torch.testing.assert_close(F.embedding(weight=rows, input=index), expected)
        h = torch.zeros(1, 2, 3, dtype=torch.float64)
        weights = [posterior(Flipout(), 3, n).rsample() for n in (4, 3)]
        x = torch.randn(5, 2, 4, dtype=torch.float64)
        options = (False, 1, 0.0, False, False, False)
        expected = torch.rnn_tanh(x, h, weights, *options)
        named = {
            "has_biases": False,
            "num_layers": 1,
            "dropout": 0.0,
            "train": False,
            "bidirectional": False,
            "batch_first": False,
        }
        torch.testing.assert_close(torch.rnn_tanh(x, hx=h, params=weights, **named), expected)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 5])
        del named["batch_first"]
        sizes = packed.batch_sizes
        output, _ = torch.rnn_tanh(
            data=packed.data, batch_sizes=sizes, hx=h, params=weights, **named
        )
        torch.testing.assert_close(output.view(5, 2, 3), expected[0])

    @EACH
    def test_any_integers_are_indices(self, estimator):
        index = torch.tensor([[0, 1], [5, 1]])
        for first, second in ((torch.int32, torch.int64), (torch.int64, torch.int32)):
            weight = posterior(estimator, 6, 4).rsample()
            if not isinstance(estimator, LocalReparameterization):  # which takes one side alone
                F.linear(torch.ones(2, 4, dtype=torch.float64), weight)
            rows = F.embedding(index.to(first), weight)
            torch.testing.assert_close(F.embedding(index.to(second), weight), rows)
            weight = posterior(estimator, 6, 4).rsample()
            rows = F.embedding(index.to(first), weight)
            torch.testing.assert_close(F.embedding(index.to(second), weight), rows)

    @EACH
    @pytest.mark.parametrize("size", [(3, 0), (0, 3)])
    def test_no_features(self, estimator, size):
        num_in, num_out = size
        bias = posterior(estimator, num_out)
        x = torch.ones(2, num_in, dtype=torch.float64)
        y = F.linear(x, posterior(estimator, num_out, num_in).rsample(), bias.rsample())
        assert y.shape == (2, num_out)
        assert num_in or (y != bias.mean).all()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_compressed_sparse_inputs_are_those_of_dense_ones():
    net = bayesianize(torch.nn.Linear(3, 2))
    module, x = Standalone(net, AutoLRT(net)), torch.tensor([[1.0, 0, 2], [0, 3, 0]])
    results = []
    for each in (x, x.to_sparse_csr()):
        torch.manual_seed(1)
        module.zero_grad()
        module(each)[0].square().sum().backward()
        results.append([p.grad.clone() for p in module.parameters()])
    assert all(grad.abs().sum() > 0 for grad in results[0])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("guide", [AutoReparameterization, AutoFlipout, AutoLRT])
def test_a_layer_inside_vmap_has_the_variance_of_its_posterior(guide):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return torch.vmap(self.layer, randomness="different")(x)

    net = bayesianize(Net())
    module = Standalone(net, guide(net, init_scale=0.5))
    with torch.no_grad():
        values = torch.stack([module(torch.full((1, 1), 2.0))[0].squeeze() for _ in range(2000)])
    # The standard error of a variance is sqrt(2 / 2000) of it.
    assert abs(values.var().item() - 1.0) < 5 * (2 / 2000) ** 0.5
