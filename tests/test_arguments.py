"""Wrong arguments: what is wrong with which, and what to do, before anything changes."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from kinds import GUIDES
from torch import nn

from pyro_bnn import bayesianize, prune, summary, to_deterministic
from pyro_bnn.compat import Standalone
from pyro_bnn.distributions import Radial
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive
from pyro_bnn.nn import BayesianLinear
from pyro_bnn.priors import HierarchicalNormal, Laplace, Normal, ScaleMixture


def layer(**kwargs):
    return BayesianLinear(3, 2, **kwargs)


def converted(**kwargs):
    return bayesianize(nn.Linear(3, 2), **kwargs)


BAD_PRIORS = [
    (lambda m: dist.Normal(0.0, 1.0), TypeError, "other arguments than a rule.*shape, fan_in"),
    (lambda: dist.Normal(0.0, 1.0), TypeError, "other arguments than a rule"),
    (lambda shape, fan_in: 1.0, TypeError, "returned 1.0: a rule returns a distribution"),
    (dist.Normal, TypeError, "is a class: give an instance"),
    (Normal, TypeError, "is a class: give an instance"),
    (1.0, TypeError, r"\(=1.0\) must be a distribution, or a rule"),
    ("normal", TypeError, r"\(='normal'\) must be a distribution, or a rule"),
    (Normal(0, 1e-30), ValueError, "`scale` of 1e-30, whose square.*between 1.1e-19 and 1.8e.19"),
    (Normal(0, 1e30), ValueError, "`scale` of 1e.30, whose square is no number of torch.float32"),
    (Laplace(0, 1e-50), ValueError, "`scale` of 0 in torch.float32, which must satisfy"),
    (ScaleMixture(scale2=1e-25), ValueError, "`scale` of 1e-25, whose square"),
    (dist.Normal(0, 1e-30).expand([1]).to_event(0), ValueError, "`scale` of 1e-30"),
    (dist.Normal(0.0, -1.0, validate_args=False), ValueError, "`scale` of -1 .*must satisfy"),
    (dist.Normal(float("nan"), 1.0, validate_args=False), ValueError, "`loc` of nan"),
    (Normal(1e39, 1.0), ValueError, "`loc` of inf in torch.float32, which must be finite"),
    (HierarchicalNormal(rate=1e39), ValueError, "`rate` of inf in torch.float32"),
    (HierarchicalNormal(rate=1e-50), ValueError, "`rate` of 0 in torch.float32"),
]


@pytest.mark.parametrize("make", [layer, converted])
@pytest.mark.parametrize("argument", ["prior", "bias_prior"])
@pytest.mark.parametrize(("prior", "error", "message"), BAD_PRIORS)
def test_priors(make, argument, prior, error, message):
    with pytest.raises(error, match=f"`{argument}` .*{message}"):
        make(**{argument: prior})


def test_small_scales_in_double_precision():
    net = bayesianize(nn.Linear(3, 2, dtype=torch.double), prior=Normal(0, 1e-30))
    for kind in GUIDES:
        guide = kind.make(net, init_scale=1e-30)
        assert torch.isfinite(Standalone(net, guide)(torch.ones(1, 3, dtype=torch.double))[1])


def test_a_prior_that_was_saved_with_wrong_values_is_not_loaded():
    net = layer()
    state = net.state_dict() | {"weight_prior.scale": torch.tensor(0.0)}
    with pytest.raises(RuntimeError, match="prior `weight_prior` was saved with a `scale` of 0"):
        net.load_state_dict(state)
    assert net.weight_prior.scale == 1
    assert net.weight_prior().base_dist.scale.unique() == 1


EMPTY = [
    (lambda: nn.Linear(3, 0), torch.ones(2, 3)),
    (lambda: nn.Linear(0, 3), torch.ones(2, 0)),
    (lambda: nn.Linear(0, 0), torch.ones(2, 0)),
    (lambda: nn.Embedding(0, 3), torch.zeros(0, dtype=torch.long)),
    (lambda: nn.Embedding(3, 0), torch.zeros(2, dtype=torch.long)),
    (lambda: nn.Conv1d(0, 3, 1), torch.ones(2, 0, 5)),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("make", "x"), EMPTY)
def test_layers_without_features_are_as_torchs(kind, make, x, capsys):
    plain = make()
    net = bayesianize(plain)
    guide = kind.make(net)
    expected = [guide[name].distribution().event_shape.numel() for name in guide]
    for fraction in (0.0, 1.0):
        total = prune(guide, fraction=fraction).total
        assert total == (fraction if sum(expected) else 0)
        output, kl = Standalone(net, guide)(x)
        assert output.shape == plain(x).shape
        assert torch.isfinite(kl)
        (output.sum() + kl).backward()
        summary(net, guide)
        assert "nan" not in capsys.readouterr().out
    assert to_deterministic(net, guide)(x).shape == plain(x).shape


def test_a_radial_without_entries():
    with pytest.raises(ValueError, match=r"`loc` has the shape \(2, 0\), of which an event has no"):
        Radial(torch.zeros(2, 0), torch.ones(2, 0), 1)
    assert Radial(torch.zeros(0, 2), torch.ones(0, 2), 1).sample().shape == (0, 2)


class Table:
    """As pandas has it: no tensor, but an array inside."""

    def __array__(self, dtype=None, copy=None):
        return np.ones((5, 3), dtype)


INPUTS = [
    (np.ones((5, 3)), r"is a numpy.ndarray, not a tensor: .*, dtype=torch.float32\)`"),
    ([[1.0, 2.0, 3.0]], "is a list, not a tensor"),
    (Table(), "is a .*Table, not a tensor"),
    (
        torch.ones(5, 3).double(),
        r"has the dtype float64: .*`x.to\(torch.float32\)`, or the weights",
    ),
    (
        torch.ones(5, 3, dtype=torch.long),
        r"dtype int64: .*`x.to\(torch.float32\)`$",
    ),
]


@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("x", "message"), INPUTS)
def test_inputs(kind, x, message):
    net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    guide = kind.make(net)
    message = f"the input of a layer with float32 weights .*{message}"
    with pytest.raises(TypeError, match=message):
        Standalone(net, guide)(x)
    with pytest.raises(TypeError, match=message):
        net(x)
    with pytest.raises(TypeError, match=message):
        Predictive(net, guide=guide, num_samples=2)(x)


def test_inputs_of_convolutions():
    net = bayesianize(nn.Conv1d(1, 2, 3))
    with pytest.raises(TypeError, match="float32 weights has the dtype float64"):
        Standalone(net, AutoLRT(net))(torch.ones(2, 1, 5, dtype=torch.double))
    with pytest.raises(TypeError, match=r"numpy.ndarray"):  # torch's own
        Standalone(net, AutoLRT(net))(np.ones((2, 1, 5)))


def test_inputs_of_embeddings():
    net = bayesianize(nn.Embedding(4, 2))
    with pytest.raises(TypeError, match=r"is a list, not a tensor: .*, dtype=torch.int64\)`"):
        Standalone(net, AutoLRT(net))([0, 1])
    with pytest.raises(RuntimeError, match="indices"):  # torch's own, which says what it expects
        Standalone(net, AutoLRT(net))(torch.ones(2))


def test_other_errors_stay_as_they_are():
    net = bayesianize(nn.Conv1d(1, 2, 3))
    with pytest.raises(RuntimeError, match="channels"):
        Standalone(net, AutoLRT(net))(torch.ones(2, 4, 5))


@pytest.mark.parametrize("where", [[], (), {}, iter(())])
def test_where_without_a_selector(where):
    with pytest.raises(TypeError, match=r"`where` .* has no selector: .*None for all"):
        bayesianize(nn.Linear(3, 2), where=where)


@pytest.mark.parametrize("wrap", [lambda net: net, AutoLRT, lambda n: Standalone(n, AutoLRT(n))])
def test_the_state_of_a_plain_network_is_for_init_loc_fn(wrap):
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net = bayesianize(plain)
    target = wrap(net)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"random here.*`AutoLRT\(net, init_loc_fn=state\)`"):
        target.load_state_dict(plain.state_dict())
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])
    guide = AutoLRT(net, init_loc_fn=plain.state_dict())
    assert torch.equal(guide["0.weight"].median(), plain[0].weight)
    target.load_state_dict(target.state_dict())
