"""States of guides: what belongs to them, and that a load is whole or none."""

from __future__ import annotations

import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from models import Regression, bayesian_mlp, data
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroModule
from torch import nn

from pyro_bnn import prune
from pyro_bnn.compat import Standalone
from pyro_bnn.guides import AutoFlipout, AutoLRT, AutoMixture, AutoRadial, AutoReparameterization
from pyro_bnn.infer import TraceKL_ELBO
from pyro_bnn.posteriors import ConstrainedPosterior

EACH = pytest.mark.parametrize("kind", GUIDES, ids=lambda k: k.name)
EXTRA = "_extra_state"


def made(make=AutoLRT, sizes=(3, 4, 1), noise=None, run=False, **kwargs):
    model = Regression(bayesian_mlp(*sizes), noise=noise)
    guide = make(model, **kwargs)
    if run:
        guide(*data())
    return guide


def values(module):
    """All that a load can change, copied."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    after = module.state_dict()
    return after.keys() == before.keys() and all(after[k].equal(before[k]) for k in before)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def only_tensors(state):
    """As safetensors has them: contiguous tensors by name, and nothing else."""
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    return {name: value.contiguous().clone() for name, value in state.items()}


def of_first_version(state):
    return {name: value for name, value in state.items() if not name.endswith(EXTRA)}


def wrong(state, how):
    """A state that is almost that of the guide."""
    state = dict(state)
    first = "posteriors.net.0.weight."
    if how == "size":
        name = "posteriors.net.2.bias.loc_unconstrained"
        state[name] = state[name].repeat(2)
    elif how == "no tensor":
        state["posteriors.net.2.bias.loc_unconstrained"] = [0.0]
    elif how == "mask of another shape":
        state[first + "kept"] = torch.ones(3, 4, dtype=torch.bool)
    elif how == "mask of another dtype":
        state[first + "kept"] = torch.ones(4, 3)
    elif how == "mask of a latent variable":
        state["posteriors.noise.kept"] = torch.tensor(True)
    elif how == "missing":
        del state["posteriors.net.2.bias.loc_unconstrained"]
    elif how == "unexpected":
        state["other"] = torch.zeros(())
    elif how == "unknown site":
        for part in ("loc", "scale"):
            state[f"posteriors.other.{part}_unconstrained"] = torch.zeros(2)
    elif how == "no table":
        state[EXTRA] = torch.zeros(3, dtype=torch.uint8)
    return state


ERRORS = {
    "size": "size mismatch for .*net.2.bias",
    "no tensor": "must be a tensor",
    "mask of another shape": r"net.0.weight.kept.*\(3, 4\).*boolean tensor of shape \(4, 3\)",
    "mask of another dtype": r"net.0.weight.kept.*float32.*must be a boolean tensor",
    "mask of a latent variable": "noise.kept.*only weights",
    "no table": "not that of a guide",
}
STRICT = {
    "missing": "Missing key.*net.2.bias.loc",
    "unexpected": 'Unexpected key.*other"',
    "unknown site": "Unexpected key.*posteriors.other.loc",
}


@EACH
@pytest.mark.parametrize("how", [*ERRORS, *STRICT])
def test_a_load_is_whole_or_none(kind, how):
    state = wrong(values(made(kind.make, run=True)), how)
    guide = made(kind.make, run=True)
    prune(guide, fraction=0.5)
    before = values(guide)
    with pytest.raises(RuntimeError, match=(ERRORS | STRICT)[how]):
        guide.load_state_dict(state)
    assert unchanged(guide, before)
    assert set(guide) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "noise"}
    guide(*data())


@pytest.mark.parametrize("how", [*ERRORS, *STRICT])
def test_a_load_into_a_new_guide_is_whole_or_none(how):
    """It has not seen the noise yet, and a failed load makes no room for it."""
    state = wrong(values(made(run=True)), how)
    guide = made()
    before = values(guide)
    with pytest.raises(RuntimeError, match=(ERRORS | STRICT)[how]):
        guide.load_state_dict(state)
    assert unchanged(guide, before)
    assert "noise" not in set(guide)
    with pytest.raises(ValueError, match="observes nothing"):  # as if nothing had been loaded
        guide(data()[0])


@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("whole", ["dict", "elbo", "list"])
def test_a_guide_inside_another_module_is_left_as_it_was(whole, strict, how):
    guide = made()
    state = wrong(values(made(run=True)), how)
    module, prefix = {
        "dict": lambda: (nn.ModuleDict({"guide": guide}), "guide."),
        "elbo": lambda: (TraceKL_ELBO()(guide.model, guide), "guide."),
        "list": lambda: (_in_a_list(guide), "0."),
    }[whole]()
    (module if whole == "list" else guide)(*data())
    prune(guide, fraction=0.5)
    given = values(module) | {prefix + name: value for name, value in state.items()}
    before = values(guide)
    with pytest.raises(RuntimeError, match=ERRORS[how]) as error:
        module.load_state_dict(given, strict=strict)
    assert "Missing" not in str(error.value)
    assert unchanged(guide, before)


def _in_a_list(guide):
    guides = AutoGuideList(guide.model)
    guides.append(guide)
    return guides


@pytest.mark.parametrize("how", [*ERRORS, *STRICT])
def test_a_load_into_a_standalone_is_whole_or_none(how):
    guide = made(run=True)
    module = Standalone(guide.model.net, guide)
    state = wrong(values(made(run=True)), how)
    given = {k: v + 1 for k, v in values(module).items() if k.startswith("net.")}
    given |= {"guide." + name: value for name, value in state.items()}
    before = values(module)
    with pytest.raises(RuntimeError, match=(ERRORS | STRICT)[how]):
        module.load_state_dict(given)
    assert unchanged(module, before)


FAMILIES = {AutoLRT: "Normal", AutoRadial: "Radial", AutoMixture: "Mixture"}


@pytest.mark.parametrize("saved", FAMILIES)
@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("strict", [True, False])
def test_the_family_is_part_of_the_state(saved, make, strict):
    state = through_a_file(made(saved, run=True).state_dict())
    guide = made(make)
    before = values(guide)
    if saved is make:
        guide.load_state_dict(state, strict=strict)
        return
    with pytest.raises(RuntimeError, match=f"saved as a {FAMILIES[saved]}.*is a {FAMILIES[make]}"):
        guide.load_state_dict(state, strict=strict)
    assert unchanged(guide, before)


@pytest.mark.parametrize("saved", [AutoLRT, AutoFlipout, AutoReparameterization])
@pytest.mark.parametrize("make", [AutoLRT, AutoFlipout, AutoReparameterization])
def test_estimators_are_no_part_of_the_state(saved, make):
    source, target = made(saved, run=True), made(make)
    target.load_state_dict(source.state_dict())
    assert {k: v.item() for k, v in target.state_dict().items() if v.numel() == 1} == {
        k: v.item() for k, v in source.state_dict().items() if v.numel() == 1
    }
    torch.testing.assert_close(target["net.0.weight"].median(), source["net.0.weight"].median())


@EACH
@pytest.mark.parametrize("written", [through_a_file, only_tensors, of_first_version])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_round_trips(kind, written, assign, pruned):
    source, target = made(kind.make, run=True), made(kind.make)
    prune(target, fraction=0.7)
    if pruned:
        prune(source, fraction=0.5)
    found = target.load_state_dict(written(source.state_dict()), assign=assign)
    assert found.missing_keys == found.unexpected_keys == []
    assert of_first_version(target.state_dict()).keys() == of_first_version(values(source)).keys()
    target(*data())
    assert unchanged(target, values(source))
    for name in source:
        a, b = source[name].distribution(), target[name].distribution()
        torch.manual_seed(0)
        expected = a.sample() + 0
        torch.manual_seed(0)
        torch.testing.assert_close(b.sample() + 0, expected)


def test_missing_and_unexpected_keys_are_those_of_torch():
    source, target = made(run=True), made()
    before = values(target)
    state = wrong(wrong(values(source), "missing"), "unknown site")
    found = target.load_state_dict(state, strict=False)
    assert found.missing_keys == ["posteriors.net.2.bias.loc_unconstrained"]
    assert sorted(found.unexpected_keys) == [
        "posteriors.other.loc_unconstrained",
        "posteriors.other.scale_unconstrained",
    ]
    assert set(target) == set(source)
    key = "posteriors.net.2.bias.loc_unconstrained"
    assert target.state_dict()[key].equal(before[key])


@EACH
def test_a_mask_goes_with_the_parameters_of_its_site(kind):
    """A state of some sites leaves the others as they are, masks included."""
    guide = made(kind.make, run=True)
    prune(guide, fraction=0.5)
    before = values(guide)
    other = values(made(kind.make, run=True))
    part = {k: v for k, v in other.items() if k.startswith("posteriors.net.0.weight.")}
    guide.load_state_dict(part, strict=False)
    assert guide["net.0.weight"].kept is None
    after = guide.state_dict()
    for key in before:
        expected = other if key.startswith("posteriors.net.0.weight.") else before
        assert key == "posteriors.net.0.weight.kept" or after[key].equal(expected.get(key)), key
    alone = {"posteriors.net.2.weight.kept": torch.ones(1, 4, dtype=torch.bool)}
    with pytest.raises(RuntimeError, match="without the parameters"):
        guide.load_state_dict(alone, strict=False)


def test_a_state_of_more_layers_is_rejected():
    state = values(made(sizes=(3, 4, 1, 1), run=True))
    guide = made()
    with pytest.raises(RuntimeError, match=r"Unexpected.*net.4.weight"):
        guide.load_state_dict(state)
    assert set(guide) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}


class Latent(PyroModule):
    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, y):
        pyro.sample("y", dist.Normal(pyro.sample("z", self.prior).sum(), 1.0), obs=y)


@pytest.mark.parametrize(
    "prior", [dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(2), dist.Dirichlet(torch.ones(2, 3))]
)
def test_a_matrix_under_a_constraint_is_restored_as_one(prior):
    prior = prior.to_event(2 - prior.event_dim)
    source, target = AutoLRT(Latent(prior)), AutoLRT(Latent(prior))
    source(torch.zeros(()))
    target.load_state_dict(source.state_dict())
    assert isinstance(target["z"], ConstrainedPosterior)
    again = AutoLRT(Latent(prior))
    again.load_state_dict(target.state_dict())  # before the constraint is known
    for guide in (target, again):
        guide(torch.zeros(()))
        torch.testing.assert_close(guide["z"].median(), source["z"].median())


def test_another_constraint_is_another_family():
    source = AutoLRT(Latent(dist.LogNormal(0.0, 1.0)))
    source(torch.zeros(()))
    seen, new = (AutoLRT(Latent(dist.Normal(0.0, 1.0))) for _ in range(2))
    seen(torch.zeros(()))
    with pytest.raises(RuntimeError, match=r"by ExpTransform.* and is a .* by identity"):
        seen.load_state_dict(source.state_dict())
    new.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="saved for another model"):
        new(torch.zeros(()))
    same = AutoLRT(Latent(dist.HalfCauchy(1.0)))
    same.load_state_dict(source.state_dict())
    same(torch.zeros(()))


def test_the_radial_scale_of_a_pruned_weight():
    """Its standard deviation is that of the saved guide, on which the scale depends by the mask."""
    source, target = made(AutoRadial, run=True), made(AutoRadial, run=True)
    expected = source["net.0.weight"].base().stddev
    kept = torch.arange(12).view(4, 3) % 2 == 0
    source["net.0.weight"].prune(kept)
    target.load_state_dict(source.state_dict())
    stddev = target["net.0.weight"].distribution().base_dist.variance.sqrt()
    torch.testing.assert_close(stddev, expected * kept)
    target.load_state_dict(made(AutoRadial, run=True).state_dict())
    torch.testing.assert_close(target["net.0.weight"].base().stddev, expected)


def test_a_saved_guide_trains_and_predicts_on(tmp_path):
    x, y = data()
    guide = made(run=True)
    SVI(guide.model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO()).step(x, y)
    torch.save(nn.ModuleDict({"model": guide.model, "guide": guide}).state_dict(), tmp_path / "s")
    new = made()
    state = torch.load(tmp_path / "s", weights_only=True)
    nn.ModuleDict({"model": new.model, "guide": new}).load_state_dict(state)
    assert Predictive(new.model, guide=new, num_samples=3)(x)["obs"].shape == (3, 20)
    copied = copy.deepcopy(new)
    assert unchanged(copied, values(guide))
