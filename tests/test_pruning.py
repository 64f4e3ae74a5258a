"""Pruned weights are zero, cost nothing and stay so; the others train on."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES, LAYERS
from models import Regression, bayesian_mlp, data, within
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import bayesianize, prune, pruning_masks, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.estimators import Flipout
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoRadial, AutoReparameterization
from pyro_bnn.infer import Predictive, TraceKL_ELBO
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.posteriors import MixturePosterior, NormalPosterior, RadialPosterior
from pyro_bnn.priors import Laplace

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
ELBOS = [Trace_ELBO, TraceMeanField_ELBO, TraceKL_ELBO]
FAMILIES = [NormalPosterior, RadialPosterior, MixturePosterior]
KEPT = torch.tensor([[True, False, True], [False, True, True]])


def posterior(family, dtype=torch.float):
    torch.manual_seed(3)
    return family(torch.randn(2, 3, dtype=dtype), 0.2 + 0.5 * torch.rand(2, 3, dtype=dtype))


def trained(kind, steps=5, **kwargs):
    model = Regression(bayesian_mlp(3, 6, 1))
    guide, (x, y) = kind.make(model, **kwargs), data()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return model, guide, svi


@EACH
def test_masks_are_where_the_signal_is(kind):
    _, guide, _ = trained(kind, init_scale=0.3)
    for threshold in (0.0, 0.83, 2.0):
        masks = pruning_masks(guide, threshold)
        assert masks.keys() == {n for n in guide if n != "noise"}
        for name, kept in masks.items():
            base = guide[name].base()
            ratio = base.mean.abs() / base.variance.sqrt()
            assert kept.shape == base.mean.shape
            assert torch.equal(kept, ratio > threshold)
    assert torch.equal(
        pruning_masks(guide)["net.0.weight"], pruning_masks(guide, 0.83)["net.0.weight"]
    )


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.97, 1.0])
@EACH
def test_prunes_a_fraction_of_the_network(kind, fraction):
    _, guide, _ = trained(kind)
    ratios = torch.cat([guide[n].signal_to_noise().flatten() for n in guide])
    number = round(fraction * len(ratios))
    sparsity = prune(guide, fraction=fraction)
    assert sparsity.total == pytest.approx(number / len(ratios))
    kept = torch.cat([guide[n].kept.flatten() for n in guide])
    assert (~kept).sum() == number
    if 0 < number < len(ratios):
        assert ratios[~kept].max() <= ratios[kept].min()
    for name in guide:
        assert sparsity[name] == pytest.approx((~guide[name].kept).float().mean().item())
    assert f"{fraction:.0%}"[:2] in str(sparsity) or fraction in (0.3, 0.97)


@EACH
def test_pruned_weights_are_zero_everywhere(kind):
    model, guide, _ = trained(kind)
    prune(guide, fraction=0.5)
    x, _ = data()
    draws = Predictive(model, guide=guide, num_samples=7)(x)
    for name in guide:
        pruned = ~guide[name].kept
        assert (guide(x)[name] + 0)[pruned].abs().sum() == 0
        assert ((guide(x)[name] + 0)[~pruned] != 0).all()
        assert draws[name].reshape(7, *pruned.shape)[:, pruned].abs().sum() == 0
        assert guide.median()[name][pruned].abs().sum() == 0
        if kind.has_quantiles:
            assert guide.quantiles([0.1, 0.9])[name][:, pruned].abs().sum() == 0


@EACH
@pytest.mark.parametrize("elbo", ELBOS)
def test_trains_on(kind, elbo):
    model, guide, _ = trained(kind)
    prune(guide, fraction=0.6)
    x, y = data()
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    assert all(torch.isfinite(torch.tensor(svi.step(x, y))) for _ in range(3))
    for name in guide:
        kept = guide[name].kept
        after = dict(guide[name].named_parameters())
        moved = after["loc_unconstrained"] != before[f"posteriors.{name}.loc_unconstrained"]
        assert not moved[~kept].any()
        assert moved[kept].all()


@EACH
def test_prunes_again_what_is_left(kind):
    _, guide, svi = trained(kind)
    prune(guide, fraction=0.5)
    first = {name: guide[name].kept.clone() for name in guide}
    svi.step(*data())
    assert prune(guide, fraction=0.8).total == pytest.approx(0.8, abs=0.02)
    assert all((guide[name].kept <= first[name]).all() for name in guide)
    assert prune(guide, 0.0).total == pytest.approx(0.8, abs=0.02)  # what is pruned stays so
    assert prune(guide, fraction=1.0).total == 1.0
    assert svi.evaluate_loss(*data()) > 0


def seeded(guide):
    torch.manual_seed(0)
    return [value + 0 for value in guide(*data()).values()]


@EACH
def test_is_saved_and_copied(kind):
    model, guide, _ = trained(kind)
    prune(guide, fraction=0.5)
    other = kind.make(model)
    other.load_state_dict(guide.state_dict())
    for copied in (other, copy.deepcopy(guide)):
        assert all(torch.equal(copied[n].kept, guide[n].kept) for n in guide)
        assert all(torch.equal(x, y) for x, y in zip(seeded(copied), seeded(guide), strict=True))
    other.load_state_dict(kind.make(model).state_dict())
    assert all(other[name].kept is None for name in other)


@EACH
def test_exports_a_masked_network(kind):
    model, guide, _ = trained(kind)
    prune(guide, fraction=0.5)
    x, _ = data()
    plain = to_deterministic(model.net, guide)
    torch.testing.assert_close(plain(x), Standalone(model.net, guide, sample=False)(x)[0])
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter != 0, guide["net." + name].kept)
    torch.export.export(plain, (x,))


@EACH
@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
def test_prunes_each_layer(kind, row):
    net = row.make(**row.args)
    guide = kind.make(net, init_scale=0.1)
    prune(guide, fraction=0.4)
    out, kl = Standalone(net, guide)(row.x(4))
    (row.output(out).square().sum() + kl).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)


# The posterior of the kept weights is one over them alone.


def of_kept(q, prior):
    """The posterior and the prior of the kept weights, as distributions of a vector."""
    base = q.base()
    kept = q.kept
    prior = prior(torch.zeros(2, 3, dtype=base.mean.dtype)[kept], 0.7).to_event(1)
    if isinstance(q, RadialPosterior):
        family = type(base)
        return family(base.loc[kept], base.scale[kept], 1), prior
    if isinstance(q, MixturePosterior):
        family = type(base)
        return family(
            logits=base.logits[kept], loc=base.loc[kept], scale=base.scale[kept]
        ).to_event(1), prior
    return dist.Normal(base.loc[kept], base.scale[kept]).to_event(1), prior


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_is_that_of_the_kept_weights(family):
    q = posterior(family, torch.float64)
    q.prune(KEPT)
    prior = dist.Normal(torch.zeros(2, 3, dtype=torch.float64), 0.7).to_event(2)
    expected = kl_divergence(*of_kept(q, dist.Normal))
    kl = kl_divergence(q.distribution(), prior)
    torch.testing.assert_close(kl, expected)
    parameters = list(q.parameters())
    gradients = torch.autograd.grad(kl, parameters, allow_unused=True)
    for one, other in zip(
        gradients, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_and_draws_are_those_of_the_kept_weights(family):
    q = posterior(family, torch.float64)
    q.prune(KEPT)
    alone, _ = of_kept(q, dist.Normal)
    value = torch.randn(2, 3, dtype=torch.float64) * KEPT
    torch.testing.assert_close(q.distribution().log_prob(value), alone.log_prob(value[KEPT]))
    draws = q.distribution(shared=True).rsample((20_000,)) + 0
    assert within(draws, q.center())
    inner = draws[:, KEPT]
    assert within(inner.square(), alone.variance + alone.mean.square())
    assert within(inner[:, :1] * inner[:, 1:], alone.mean[0] * alone.mean[1:])


@pytest.mark.parametrize("estimator", [None, Flipout()], ids=["shared", "flipout"])
def test_radial_weights_keep_their_standard_deviations(estimator):
    q = RadialPosterior(torch.ones(2, 3), 0.3, estimator=estimator)
    for kept in (KEPT, KEPT.flip(0)):
        q.prune(kept)
        draws = q.distribution(shared=True).rsample((20_000,)) + 0
        assert within(draws[:, q.kept].sub(1).square(), 0.3**2)
        assert q.signal_to_noise()[q.kept].tolist() == pytest.approx([1 / 0.3] * int(q.kept.sum()))


@pytest.mark.parametrize("make", [AutoFlipout, AutoLRT], ids=lambda make: make.__name__)
def test_draws_meet_inputs_as_those_of_a_smaller_layer(make):
    net = BayesianLinear(3, 2, bias=False)
    guide = make(net, init_scale=0.5)
    guide["weight"].prune(KEPT)
    x = torch.tensor([[1.0, 2.0, -1.0]])
    outputs = torch.stack([Standalone(net, guide)(x)[0] for _ in range(5000)])
    base = guide["weight"].base()
    assert within(outputs, x @ (base.loc * KEPT).T)
    variance = x.square() @ (base.scale * KEPT).square().T
    assert within((outputs - x @ (base.loc * KEPT).T).square(), variance)
    none = torch.zeros(4, 3)
    (Standalone(net, guide)(none)[0].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters())


def test_a_wholly_pruned_layer_with_a_prior_of_another_family():
    net = bayesianize(nn.Linear(3, 2), prior=Laplace())
    for make in (AutoReparameterization, AutoRadial):
        guide = make(net)
        prune(guide, fraction=1.0)
        out, kl = Standalone(net, guide)(torch.ones(4, 3))
        assert out.abs().sum() == 0
        assert kl == 0


def test_prunes_some_sites():
    _, guide, _ = trained(GUIDES[0])
    assert list(pruning_masks(guide, sites="*weight")) == ["net.0.weight", "net.2.weight"]
    sparsity = prune(guide, fraction=0.5, sites=["net.0.*", "net.2.bias"])
    assert list(sparsity) == ["net.0.weight", "net.0.bias", "net.2.bias"]
    assert guide["net.2.weight"].kept is None


def test_refuses():
    _, guide, _ = trained(GUIDES[0])
    with pytest.raises(ValueError, match=r"`sites` has \['2.weight'\], which fit none of"):
        prune(guide, sites=["*", "2.weight"])
    with pytest.raises(ValueError, match=r"give `threshold` \(=1.0\) or `fraction` \(=0.5\), not"):
        prune(guide, 1.0, fraction=0.5)
    with pytest.raises(ValueError, match=r"`fraction` \(=1.5\) must lie between 0 and 1"):
        prune(guide, fraction=1.5)
    with pytest.raises(ValueError, match=r"`threshold` \(=-1\) must be finite and not negative"):
        prune(guide, -1)
    with pytest.raises(TypeError, match=r"must be one of pyro_bnn.guides"):
        prune(lambda x: x)
    assert all(guide[name].kept is None for name in guide)

    def model(x):
        pyro.sample("obs", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    guide = AutoLRT(model)
    with pytest.raises(ValueError, match="no weights of a network"):
        prune(guide)
    guide(torch.tensor(1.0))
    with pytest.raises(ValueError, match="only weights of networks"):
        guide["w"].prune(torch.tensor(True))
    net = bayesianize(nn.Linear(3, 2))
    guide = AutoLRT(net)
    prune(guide, fraction=0.5)
    with pytest.raises(ValueError, match="a pruned posterior is no prior"):
        bayesianize(net, prior=guide)


class LaplacePosterior(NormalPosterior):
    def base(self):
        return dist.Laplace(self.read("loc"), self.read("scale"))


@pytest.mark.parametrize("prunes", [{"fraction": 0.5}, {"threshold": 0.1}])
def test_pruning_is_of_all_sites_or_of_none(prunes):
    """A posterior of one's own may be one that cannot be pruned, and comes last here."""
    x, y = data()
    model = Regression(bayesian_mlp(3, 4, 1))
    guide = AutoLRT(model, sites={"net.2.*": LaplacePosterior})
    guide(x, y)
    message = r"`net.2.weight`: .*`base\(\)` is a Laplace.*leave the others out by `sites`"
    with pytest.raises(TypeError, match=message):
        prune(guide, **prunes)
    with pytest.raises(TypeError, match="is a Laplace"):
        guide["net.2.weight"].prune(torch.ones(1, 4, dtype=torch.bool))
    assert all(guide[name].kept is None for name in guide)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    assert prune(guide, fraction=0.5, sites="net.0.*").total == 0.5
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)


def test_radial_posteriors_of_many_networks_are_refused_before_others_change():
    class Many(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = bayesian_mlp(3, 1)

        def forward(self, y):
            weight = self.net[0].weight
            with pyro.plate("tasks", 2):
                extra = pyro.sample("extra", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
            pyro.sample("y", dist.Normal(weight.sum() + extra.sum(), 1.0), obs=y)

    guide = AutoRadial(Many(), plates="tasks")
    guide(torch.zeros(()))
    with pytest.raises(ValueError, match=r"`extra`: radial posteriors of many networks"):
        prune(guide, fraction=0.5)
    assert all(guide[name].kept is None for name in guide)


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 4, dtype=torch.bool), torch.ones(4, 3), [[True] * 3] * 4, None]
)
def test_wrong_masks_change_nothing(mask):
    posterior = NormalPosterior(torch.zeros(4, 3), 0.1)
    with pytest.raises(ValueError, match=r"`kept` .*boolean tensor of shape \(4, 3\)"):
        posterior.prune(mask)
    assert posterior.kept is None
