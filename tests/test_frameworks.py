"""The recipes for Lightning and Accelerate, on two processes, take the steps that they should."""

from __future__ import annotations

import frameworks
import pytest
import torch
from processes import run_on_two
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

NUM_STEPS = 8
KL_WEIGHTS = {
    "lightning": [0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
    "accelerate": [0, 0.25, 0.5, 0.75, 1, 1, 1, 1],
}
EACH = pytest.mark.parametrize("framework", ["lightning", "accelerate"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two processes have run here, once for all tests."""
    folder = tmp_path_factory.mktemp("frameworks")
    run_on_two("frameworks.py", folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(2)]


def expected(of_ranks, step, kl_weight):
    """Gradients by the means of weight and bias, and the loss per datum, in closed form."""
    q = {n: of_ranks[0]["parameters"][step][name(n)] for n in ("weight", "bias")}
    gradients = {n: kl_weight * loc for n, loc in q.items()}
    prior = Normal(0.0, 1.0)
    loss = 0.0
    for n, loc in q.items():
        scale = softplus(of_ranks[0]["parameters"][step][name(n, "scale")])
        loss += kl_weight * kl_divergence(Normal(loc, scale), prior).sum() / frameworks.NUM_DATA
    for of_rank in of_ranks:
        x, y = of_rank["rows"][step - NUM_STEPS]
        drawn = of_rank["drawn"][step]
        residual = (x @ drawn["net.weight"].mT).squeeze(-1) + drawn["net.bias"] - y
        by_mean = frameworks.NUM_DATA / len(x) / frameworks.NOISE**2 * residual
        gradients["weight"] = gradients["weight"] + (by_mean @ x).unsqueeze(0) / 2
        gradients["bias"] = gradients["bias"] + by_mean.sum() / 2
        loss -= Normal(0.0, frameworks.NOISE).log_prob(residual).mean() / 2
    return {name(n): gradient for n, gradient in gradients.items()}, loss.item()


def name(site, parameter="loc"):
    return f"posteriors.net.{site}.{parameter}_unconstrained"


@EACH
def test_steps_are_those_of_all_data_with_the_kl_kl_once(found, framework):
    of_ranks = [x[framework] for x in found]
    for step in range(NUM_STEPS):
        gradients, loss = expected(of_ranks, step, KL_WEIGHTS[framework][step])
        for of_rank in of_ranks:
            given = {n: of_rank["gradients"][step][n] for n in gradients}
            torch.testing.assert_close(given, gradients, rtol=1e-9, atol=1e-9)
    for of_rank in of_ranks:
        assert of_rank["loss"] == pytest.approx(loss, rel=1e-6)  # that of the last step


@EACH
def test_ranks_draw_differently_and_end_with_the_same_parameters(found, framework):
    first, second = (x[framework] for x in found)
    for one, other in zip(first["drawn"], second["drawn"], strict=True):
        assert all(not torch.equal(one[n], other[n]) for n in one)
    torch.testing.assert_close(first["end"], second["end"], rtol=0, atol=0)
    assert not torch.equal(first["end"][name("weight")], first["parameters"][0][name("weight")])


@EACH
def test_ranks_see_each_row_once_in_an_epoch(found, framework):
    rows = [x[framework]["rows"][i - NUM_STEPS][1] for x in found for i in range(NUM_STEPS // 2)]
    torch.testing.assert_close(torch.cat(rows).sort()[0], frameworks.data()[1].sort()[0])


def test_a_checkpoint_of_lightning_has_the_parameters(found, folder):
    saved = torch.load(folder / "lightning.ckpt", weights_only=True)["state_dict"]
    end = {f"loss_of.guide.{n}": p for n, p in found[0]["lightning"]["end"].items()}
    torch.testing.assert_close({n: saved[n] for n in end}, end, rtol=0, atol=0)
