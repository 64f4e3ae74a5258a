"""The checks that are shipped find what is wrong; other files show that they pass what is right."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_bnn.estimators import (
    Flipout,
    LocalReparameterization,
    OneWeight,
    Shared,
    draw,
    linear,
    register_map,
)
from pyro_bnn.estimators._draw import SharedSample
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import NormalPosterior
from pyro_bnn.testing import check_estimator_rule, check_layer, check_posterior

ESTIMATORS = [Shared(), Flipout(), LocalReparameterization()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize(
    ("function", "input", "shape"),
    [
        (F.linear, (5, 3), (4, 3)),
        (lambda x, w: F.conv1d(x, w, stride=2, groups=2), (2, 4, 5), (2, 2, 3)),
        (lambda x, w: F.conv_transpose1d(x, w), (2, 3, 2), (3, 2, 2)),
        (lambda x, w: x @ w, (5, 3), (3, 4)),
    ],
    ids=["linear", "conv1d", "conv_transpose1d", "matmul"],
)
def test_estimators_keep_their_contract(estimator, function, input, shape):
    check_estimator_rule(estimator, function, torch.randn(input), shape)


class TooWide(NormalPosterior):
    def distribution(self, *, shared=False):
        q = self.base()
        q.__dict__["scale"] = 1.1 * q.scale
        wide, q = q, self._around(self.base(), shared)
        q.rsample = lambda sample_shape=torch.Size(): wide.rsample(sample_shape)
        return q


class WithoutEvent(NormalPosterior):
    def distribution(self, *, shared=False):
        return self.base()


class Unused(NormalPosterior):
    def init_parameters(self, loc, scale):
        super().init_parameters(loc, scale)
        self.more = PyroParam(torch.ones(3), constraints.real)


class Misnamed(NormalPosterior):
    SCALES = ("sigma",)


class OfFixedCopies(NormalPosterior):
    def __deepcopy__(self, memo):
        return self


class MisplacedQuantiles(NormalPosterior):
    def quantiles(self, probs):
        return super().quantiles(probs) + 0.05


class AnyScale(NormalPosterior):
    def __init__(self, loc, scale, *args, **kwargs):
        super().__init__(loc, scale if scale == 0.1 else 0.1, *args, **kwargs)


class OfAnotherMedian(NormalPosterior):
    def median(self):
        return super().median() + 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (TooWide, "the variance of draws"),
        (WithoutEvent, "a weight is one event"),
        (Unused, "`more_unconstrained` has the gradient None"),
        (Misnamed, "`SCALES` has {'sigma'}"),
        (OfFixedCopies, "a copy has the parameters of the original"),
        (MisplacedQuantiles, "below the quantile of"),
        (AnyScale, "a `scale` of 0.0 is no ValueError"),
        (OfAnotherMedian, "the median at the start is not `loc`"),
    ],
)
def test_wrong_posteriors_are_found(make, message):
    with pytest.raises(AssertionError, match=message):
        check_posterior(make)


class WithDensityOf(dist.Normal):
    """A Normal that torch knows a KL divergence of, which is too small."""


@torch.distributions.register_kl(WithDensityOf, dist.Normal)
def _too_small(q, p):
    return 0.5 * torch.distributions.kl_divergence(dist.Normal(q.loc, q.scale), p)


class OfSmallKL(NormalPosterior):
    def base(self):
        return WithDensityOf(self.read("loc"), self.read("scale"))


def test_a_kl_that_is_too_small_is_found():
    with pytest.raises(AssertionError, match="the registered KL divergence from a Normal is"):
        check_posterior(OfSmallKL)


class Forgetful(LocalReparameterization):
    """Noise of outputs that does not remember the weight's other uses."""

    def draw(self, base, sample_shape, event_dim):
        made = super().draw(base, sample_shape, event_dim)
        apply = made.sample.apply
        made.sample.apply = lambda *args: (made.sample._uses.clear(), apply(*args))[1]
        return made


class Shrunk(Shared):
    def draw(self, base, sample_shape, event_dim):
        return base.loc + 0.9 * base.scale * torch.randn(base.loc.shape).to(base.loc)


class Detached(Shared):
    def draw(self, base, sample_shape, event_dim):
        noise = torch.randn(base.loc.shape).to(base.loc)
        return draw(SharedSample(base.loc + base.scale.detach() * noise))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Forgetful(), "one draw has two outputs"),
        (Shrunk(), "the variance of outputs under Shrunk"),
        (Detached(), "the scale of the posterior has the gradient None"),
    ],
)
def test_wrong_estimators_are_found(estimator, message):
    with pytest.raises(AssertionError, match=message):
        check_estimator_rule(estimator)


class DrawsTwice(PyroModule):
    """Reads a function of its weight that is not the weight's alone."""

    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))

    def forward(self, x):
        return F.linear(x, self.weight + 0.1 * torch.rand(2, 3))


class WithoutItsWeight(BayesianLinear):
    def forward(self, x):
        return F.linear(x, torch.ones(2, 3), self.bias)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (DrawsTwice, "one draw has two outputs"),
        (lambda: WithoutItsWeight(3, 2), "a run samples {'bias'}"),
        (lambda: PyroModule[nn.Linear](3, 2), "finds no sites"),
    ],
)
def test_wrong_layers_are_found(make, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(make, torch.randn(4, 3))


class Doubled(OneWeight):
    """Twice ``F.linear``."""

    weight_dim = input_dim = 2

    def __eq__(self, other):
        return type(other) is Doubled

    def __hash__(self):
        return 0

    def compute(self, input, weight):
        return 2 * F.linear(input, weight)


def test_register_map():
    function = lambda input, weight, bias=None: 2 * F.linear(input, weight) + (bias or 0)
    doubled = register_map(function, Doubled())
    x, w = torch.randn(5, 3), torch.randn(4, 3)
    torch.testing.assert_close(doubled(x, w), 2 * F.linear(x, w))
    samples = draw(SharedSample(torch.randn(7, 1, 4, 3)))
    expected = torch.stack([2 * linear(x, s[0]) for s in samples + 0])
    torch.testing.assert_close(torch.as_tensor(doubled(x, samples)), expected)
    torch.testing.assert_close(register_map(function, lambda: Doubled())(x, samples), expected)
    check_estimator_rule(Flipout(), doubled)
    with pytest.raises(TypeError, match="`map`"):
        register_map(function, "linear")
    with pytest.raises(TypeError, match="`function`"):
        register_map("linear", Doubled())
