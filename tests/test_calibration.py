"""Simulation-based calibration of the guides that can be exact, and of the test itself."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from scipy.stats import chisquare

from pyro_bnn import BNN, fit, likelihoods
from pyro_bnn.infer import sbc_ranks, uniformity
from pyro_bnn.nn import BayesianLinear

LEVEL = 1e-3  # of each test, stated beforehand
SAMPLES = 99
NOISE, PRIOR = 0.7, 1.5


def orthogonal(num_problems):
    """Inputs, and a model of many independent regressions with independent weights.

    Each output is a data set of its own; given orthogonal inputs its weights stay independent.
    """
    x = 4 * torch.linalg.qr(torch.randn(40, 3)).Q
    net = BayesianLinear(3, num_problems, bias=False, prior=dist.Normal(0.0, PRIOR))
    return x, BNN(net, likelihoods.Normal(NOISE))


def test_posteriors_are_told_from_wrong_ones():
    x, model = orthogonal(300)
    scale = (16 / NOISE**2 + 1 / PRIOR**2) ** -0.5

    def p_value(factor):
        def infer(x, y):
            mean = scale**2 * y.T @ x / NOISE**2
            return {"net.weight": mean + factor * scale * torch.randn(SAMPLES, 300, 3)}

        ranks = sbc_ranks(model, infer, x, num_simulations=2)["net.weight"]
        assert ranks.shape == (2, 300, 3)
        return uniformity(ranks, SAMPLES + 1)

    assert p_value(1.0) > LEVEL
    assert p_value(0.85) < LEVEL
    assert p_value(1.15) < LEVEL


@pytest.mark.parametrize("kind", [k for k in GUIDES if k.is_normal], ids=lambda k: k.name)
def test_guides_that_can_be_exact_are_calibrated(kind):
    pyro.enable_validation(False)
    x, model = orthogonal(300)

    def infer(x, y):
        guide = kind.make(model)
        fit(model, guide, (x, y), epochs=350, lr=6e-2, scale_lr=6e-2, progress=False)
        return guide

    ranks = sbc_ranks(model, infer, x, num_simulations=1)
    assert uniformity(ranks["net.weight"], SAMPLES + 1) > LEVEL


def test_uniformity_is_the_chi_square_test():
    ranks = torch.randint(0, 7, (50, 4))
    counts = torch.stack(
        [(ranks < 3).sum(), ((ranks >= 3) & (ranks < 5)).sum(), (ranks >= 5).sum()]
    )
    expected = 200 * torch.tensor([3, 2, 2]) / 7
    result = uniformity(ranks, num_ranks=7, num_bins=3)
    assert result == pytest.approx(chisquare(counts, expected).pvalue, rel=1e-6)


def test_ranks_of_discrete_variables_are_uniform():
    torch.manual_seed(0)

    def model(x, y=None):
        z = pyro.sample("z", dist.Bernoulli(torch.full((200,), 0.3)).to_event(1))
        return pyro.sample("obs", dist.Normal(z, 1.0).to_event(1), obs=y)

    def exact(x, y):
        odds = (y - 0.5).exp() * 0.3 / 0.7
        return {"z": torch.bernoulli((odds / (1 + odds)).expand(9, -1))}

    ranks = sbc_ranks(model, exact, None, num_simulations=20, num_samples=9)["z"]
    assert uniformity(ranks, num_ranks=10, num_bins=10) > LEVEL


def _observed(prior):
    def model(x, y=None):
        w = prior(x)
        return pyro.sample("obs", dist.Normal(w, 1.0).to_event(2), obs=y)

    return model


def test_samples_in_arrays():
    model = _observed(lambda x: pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)))
    exact = lambda x, y: {"w": (y / 2 + 0.5**0.5 * torch.randn(99, 2, 3)).numpy()}
    torch.manual_seed(0)
    assert uniformity(sbc_ranks(model, exact, None)["w"], 100) > LEVEL


def test_errors():
    x, model = orthogonal(2)
    samples = torch.zeros(SAMPLES, 2, 3)
    for returned in ({}, {"net.weight": samples[1:]}, {"net.weight": samples[:, :1]}):
        with pytest.raises(ValueError, match=r"`infer` has returned .*net\.weight"):
            sbc_ranks(model, lambda x, y, returned=returned: returned, x)
    # Rows and columns that are exchanged, in a site of as many entries.
    other = lambda x, y=None: pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pytest.raises(ValueError, match=r"\(99, 3, 2\), not \(99, 2, 3\)"):
        sbc_ranks(_observed(other), lambda x, y: {"w": torch.zeros(99, 3, 2)}, x)
    with pytest.raises(TypeError, match="`infer` has returned a NoneType"):
        sbc_ranks(model, lambda x, y: None, x)
    for arguments in (([1, 2], 100), (torch.arange(100), 99.5), (torch.arange(100), 100, 2.5)):
        with pytest.raises(TypeError, match=r"`ranks`|`num_ranks`|`num_bins`"):
            uniformity(*arguments)
    with pytest.raises(ValueError, match="does not sample `site`"):
        sbc_ranks(model, lambda x, y: {}, x, site="y")
    with pytest.raises(ValueError, match="`num_simulations`"):
        sbc_ranks(model, lambda x, y: {}, x, num_simulations=0)
    with pytest.raises(ValueError, match=r"NaN among the samples of `net\.weight`"):
        sbc_ranks(model, lambda x, y: {"net.weight": torch.full((SAMPLES, 1, 2), math.nan)}, x)
    bad = (torch.zeros(0), torch.tensor([-1]), torch.tensor([100]), torch.tensor([math.nan, 3.7]))
    for ranks in bad:
        with pytest.raises(ValueError, match="`num_ranks`"):
            uniformity(ranks, 100)
    for num_bins in (1, 101):
        with pytest.raises(ValueError, match="`num_bins`"):
            uniformity(torch.zeros(5), 100, num_bins)
