"""The benchmarks run, with the peers that are installed for tests."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from models import within
from torch import nn

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(script, *args):
    command = [sys.executable, str(FOLDER / script), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_speed(tmp_path):
    pattern = r"^(width-50|predict) .*(deterministic|LRT standalone|bensemble|LRT Predictive)"
    files = ("--json", str(tmp_path / "speed.json"), "--plot", str(tmp_path / "speed.png"))
    output = run("speed.py", "--only", pattern, "--runs", "1", *files)
    assert "MLP 100-50-50-10, batch 128" in output
    workloads = json.loads((tmp_path / "speed.json").read_text())["workloads"]
    assert set(workloads) == {"width-50", "predict"}
    for workload in workloads.values():
        for result in workload["contenders"].values():
            assert result.get("reason") == "needs a GPU" or 0 < result["lower"] <= result["median"]
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_league(tmp_path):
    some = "deterministic;pyro_bnn, LRT"
    output = run("league.py", "--seconds", "0.1", "--seeds", "2", "--only", some, "--out", tmp_path)
    assert "| deterministic | 0." in output
    rivals = json.loads((tmp_path / "league.json").read_text())["digits"]
    assert list(rivals) == some.split(";")
    assert all(0.1 <= run["seconds"] < 2 for runs in rivals.values() for run in runs)
    assert (tmp_path / "league.png").stat().st_size > 10_000


def test_limits():
    assert "flipout" in run("limits.py", "--runs", "1")


def test_uci(tmp_path):
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=(60, 2)), np.ones(60)]  # a column is constant
    y = 300 * x[:, :1] + 30 * rng.normal(size=(60, 1))
    index = np.array([[*range(10)], [*range(20, 28), -1, -1]])
    np.savez(tmp_path / "line.npz", X=x, y=y, test_index=index)
    file = tmp_path / "results.json"
    args = ("--steps", "600", "--samples", "100", "--jobs", "1", "--json", str(file))
    output = run("uci.py", str(tmp_path), "--splits", "2", "--guides", "AutoLRT", *args)
    assert "refined VI" in output
    rows = json.loads(file.read_text())
    assert [(r["set"], r["guide"], r["split"]) for r in rows] == [
        ("line", "AutoLRT", 0),
        ("line", "AutoLRT", 1),
    ]
    # In the units of y: a constant prediction, and the line itself.
    constant, best = (-0.5 * math.log(2 * math.pi * math.e * s**2) for s in (300, 30))
    for row in rows:
        assert 15 < row["rmse"] < 60
        assert constant - 1 < row["log_density"] < best + 0.5  # log(300) is 5.7 nats
        assert row["elbo"] < best + 0.3


def test_defaults(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6))
    index = np.arange(10).reshape(1, -1)
    np.savez(tmp_path / "yacht.npz", X=x, y=x.sum(1), test_index=index)
    args = ("--uci", str(tmp_path), "--tasks", "yacht", "--splits", "1", "--jobs", "1")
    output = run("defaults.py", *args, "--candidates", "tensor", "--times", "0.02")
    assert "tensor, 0.02 times" in output


def test_convergence(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 2))
    index = np.arange(10).reshape(1, -1)
    np.savez(tmp_path / "line.npz", X=x, y=x.sum(1), test_index=index)
    file = tmp_path / "results.json"
    args = ("--uci", str(tmp_path), "--tasks", "line", "--steps", "20", "--json", str(file))
    args += ("--peers", "Pyro AutoNormal;bensemble")
    output = run("convergence.py", *args, "--ladder", "10,300", "--draws", "5")
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows[:2]] == ["Pyro AutoNormal", "bensemble"]
    assert [row["steps"] for row in rows] == [20, 20, 10, 300]
    assert all(math.isfinite(row["elbo"]) and row["seconds"] > 0 for row in rows)
    assert "not reached" not in output
    assert output.count("| ") == 2 + 2 * 2


def test_bounds_of_the_benchmark_are_those_of_the_model(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from convergence import elbo
    from peers import Posterior, Problem

    x, y = torch.randn(50, 1), torch.randn(50, 1)
    problem = Problem(lambda: nn.Linear(1, 1, bias=False), x, y)
    loc, scale, noise = torch.tensor([[0.4]]), torch.tensor([[0.3]]), torch.tensor(0.8)
    square = ((y - loc * x) ** 2 + (scale * x) ** 2).sum() / noise**2
    likelihood = -0.5 * square - 50 * torch.log(noise * math.sqrt(2 * math.pi))
    kl = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    posterior = Posterior([(loc, scale)], noise)
    values = torch.tensor([elbo(problem, posterior, draws=1) for _ in range(2000)])
    assert within(values, ((likelihood - kl) / 50).item())


def test_mean_field(tmp_path):
    image = tmp_path / "bands.png"
    args = ("--guides", "AutoLRT", "--hidden", "2", "--steps", "50", "--plot", str(image))
    output = run("mean_field.py", *args, "--chains", "2", "--draws", "4", "--warmup", "4")
    assert "R-hat" in output
    assert "NUTS" in output
    assert "AutoLRT" in output
    assert image.stat().st_size > 5_000
