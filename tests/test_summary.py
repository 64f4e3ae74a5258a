"""The summary shows every site and parameter of a network, and how it is random."""

from __future__ import annotations

import io

import pytest
import torch
from kinds import GUIDES, PRIORS
from models import Regression, data
from torch import nn

from pyro_bnn import bayesianize, prune, summary
from pyro_bnn.guides import AutoLRT, AutoMixture
from pyro_bnn.nn import BayesianLinear


def rows(*args):
    file = io.StringIO()
    assert summary(*args, file=file) is None
    return [line.split("  ") for line in file.getvalue().splitlines()]


def cells(*args):
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows(*args)}


def network():
    net = nn.Sequential(
        nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
    )
    net[3].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.name)
def test_shows_sites_and_parameters(kind):
    net = bayesianize(network(), where=lambda name, module: name != "1.bias")
    guide = kind.make(net)
    found = cells(net, guide)
    family = {"AutoRadial": "Radial", "AutoMixture": "Mixture"}.get(kind.name, "Normal")
    estimator = {"AutoFlipout": "Flipout", "AutoLRT": "LocalReparameterization"}
    usual = estimator.get(kind.name, "Shared")
    shared = "Flipout" if kind.make is AutoLRT else usual  # it is applied transposed, too
    kl = "bound" if kind.make is AutoMixture else "exact"
    assert found["0.weight = 3.weight"] == ["(7, 4)", "28", "Normal(0, 1)", family, shared, kl]
    assert found["2.weight"] == ["(4, 4)", "16", "Normal(0, 1)", family, usual, kl]
    assert found["1.weight"] == ["(4,)", "4", "Normal(0, 1)", family, usual, kl]
    assert found["1.bias"] == ["(4,)", "4", "normalisation"]
    assert found["2.bias"] == ["(4,)", "4", "frozen"]
    lines = [" ".join(row) for row in rows(net, guide)]
    assert "48 random weights in 3 sites" in lines
    assert "8 deterministic weights" in lines


def test_says_why_a_parameter_has_no_prior():
    net = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), where="last_layer")
    assert cells(net)["0.weight"] == ["(4, 3)", "12", "not converted"]
    assert cells(net)["1.weight"] == ["(2, 4)", "8", "Normal(0, 1)"]


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ("Normal", "Normal(0.3, 0.5)"),
        ("FanInNormal", "Normal(0, 0.816)"),
        ("ScaleMixture", "NormalMixture"),
        ("Laplace", "Laplace(0, 0.7)"),
        ("ARD", "GroupedNormal(0.3, 0.5)"),
        ("HierarchicalNormal", "HierarchicalNormal(0, 8, 3.5)"),
    ],
)
def test_priors(prior, text):
    assert cells(BayesianLinear(3, 2, prior=PRIORS[prior]))["weight"][2].startswith(text)
    assert cells(
        bayesianize(nn.Linear(3, 2), prior=torch.distributions.Normal(torch.randn(2, 3), 2.0))
    )["weight"] == ["(2, 3)", "6", "Normal(<loc>, 2)"]


def test_a_model_with_other_latent_variables_and_pruned_weights():
    model = Regression(bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))), noise=None)
    guide = AutoLRT(model)
    guide(*data())
    prune(guide, fraction=0.5)
    found = cells(model, guide)
    assert found["net.0.weight"][-1].endswith("%")
    assert found == cells(model, guide)
    inner = cells(model.net, guide)
    assert inner["net.0.weight"] == found["net.0.weight"]
    assert found["noise"] == ["()", "1", "HalfCauchy", "Constrained", "estimate"]
    assert "noise" not in inner


def test_prints_to_the_standard_output(capsys):
    summary(BayesianLinear(3, 2))
    assert "weight" in capsys.readouterr().out


def test_refuses():
    with pytest.raises(TypeError, match=r"must be one of pyro_bnn.guides"):
        summary(BayesianLinear(3, 2), lambda x: x)
    with pytest.raises(ValueError, match="no posteriors for the sites"):
        summary(bayesianize(nn.Linear(3, 2)), AutoLRT(bayesianize(nn.Sequential(nn.Linear(3, 2)))))
