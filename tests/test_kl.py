"""The one entry for KL divergences: the value, and whether it is exact, a bound or an estimate."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from kinds import PRIORS
from models import within
from torch.distributions import Independent

from pyro_bnn.compat import Standalone
from pyro_bnn.distributions import register_bound
from pyro_bnn.guides import AutoReparameterization
from pyro_bnn.infer import kl
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import (
    MatrixNormalPosterior,
    MixturePosterior,
    NormalPosterior,
    RadialPosterior,
)

POSTERIORS = [NormalPosterior, RadialPosterior, MixturePosterior, MatrixNormalPosterior]
KINDS = {
    "Normal": ["exact", "exact", "bound", "exact"],
    "ScaleMixture": ["bound", "estimate", "bound", "estimate"],
    "Laplace": ["exact", "estimate", "estimate", "estimate"],
    "ARD": ["exact", "exact", "bound", "exact"],
    "HierarchicalNormal": ["bound"] * 4,
    "StudentT": ["estimate"] * 4,
}
STUDENT = lambda shape, fan_in: dist.StudentT(5.0, 0.0, 1.0)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", POSTERIORS)
@pytest.mark.parametrize("name", KINDS)
def test_value_and_kind(name, make, pruned):
    layer = BayesianLinear(3, 2, bias=False, prior=PRIORS.get(name, STUDENT))
    posterior, p = make(torch.randn(2, 3), 0.3), layer.weight_prior()
    kind = KINDS[name][POSTERIORS.index(make)]
    if pruned:
        if make is MatrixNormalPosterior or kind == "estimate":
            return  # the one cannot be pruned, of the other the density of zeros remains
        posterior.prune(torch.tensor([[True, False, True], [True, True, True]]))
    q = posterior.distribution()
    draw = q.rsample()
    found = kl(q, p, draw)
    assert found.kind == kind
    if kind == "estimate":
        torch.testing.assert_close(found.value, q.log_prob(draw) - p.log_prob(draw))
        assert kl(q, p).kind == kind
        return
    assert found == kl(q, p)  # without a draw in it
    if not pruned:
        draws = [q.sample() for _ in range(3_000)]
        ratios = torch.stack([q.log_prob(w) - p.log_prob(w) for w in draws])
        error = 5 * ratios.std() / len(draws) ** 0.5
        assert found.value >= ratios.mean() - error
        assert kind == "bound" or within(ratios, found.value)


class Shifted(dist.Normal):
    """A Normal that no formula is for."""


@register_bound(Shifted, dist.Gumbel)
def _bound(q, p):
    return torch.full_like(q.loc, 7.0)


def test_bounds_of_others():
    q, p = Shifted(torch.zeros(2), 1.0), dist.Gumbel(torch.zeros(2), 1.0)
    assert kl(q, p).kind == "bound"
    assert kl(Independent(q, 1), Independent(p, 1)).value == 14
    assert kl(q, dist.Normal(torch.zeros(2), 1.0)).kind == "exact"


@pytest.mark.parametrize("name", KINDS)
def test_wrappers_have_it(name):
    layer = BayesianLinear(3, 2, bias=False, prior=PRIORS.get(name, STUDENT))
    guide = AutoReparameterization(layer, init_scale=0.3)
    q, p = guide["weight"].distribution(), layer.weight_prior()
    torch.manual_seed(1)
    _, total = Standalone(layer, guide)(torch.ones(4, 3))
    torch.manual_seed(1)
    torch.testing.assert_close(total, kl(q, p, q.rsample()).value.sum())
