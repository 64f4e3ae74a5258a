"""The benchmarks run, with the peers that are installed for tests."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import within
from torch import nn

FOLDER = Path(__file__).parent.parent / "benchmarks"
SPEC: Any = importlib.util.spec_from_file_location("uci_sets", FOLDER / "uci_sets.py")
uci_sets = sys.modules["uci_sets"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(uci_sets)


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


X, TESTS = np.random.default_rng(0).normal(size=(20, 2)), np.array([[0, 1], [2, -1]])
GOOD = {"X": X, "y": X.sum(1), "test_index": TESTS}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X[:, 0]}, "`X` of shape"),
        ({"X": np.where(X > 1, np.nan, X)}, "must be finite"),
        ({"y": X}, "`y` of shape"),
        ({"y": X[:19, 0]}, "`y` of shape"),
        ({"y": np.ones(20)}, "split 0 has no two different training targets"),
        ({"y": np.array(["a"] * 20)}, "numbers"),
        ({"test_index": TESTS[0]}, "a row of indices for each split"),
        ({"test_index": np.ones((1, 20), bool)}, "a row of indices for each split"),
        ({"test_index": TESTS + 18}, "below the number of rows"),
        ({"test_index": np.full((1, 2), -1)}, "split 0 has no test rows"),
        ({"test_index": np.arange(20)[None]}, "split 0 has no two different training targets"),
    ],
)
def test_sets_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **GOOD | arrays)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{message}"):
        uci_sets.read(tmp_path / "bad.npz")


def test_sets_of_columns_that_are_constant_but_for_a_test_row(tmp_path):
    x = np.c_[X, np.full(20, 0.1)]
    x[0, 2] = 0.2
    np.savez(tmp_path / "rare.npz", **GOOD | {"X": x, "y": X.sum(1, keepdims=True)})
    found = uci_sets.read(tmp_path / "rare.npz")
    (train_x, train_y, test_x, test_y), scale = found.split(0)
    assert test_x.abs().max() < 10
    assert [len(train_x), len(test_y), len(found.split(1)[0][3])] == [18, 2, 1]
    assert scale == pytest.approx(X[2:].sum(1).std())
    torch.testing.assert_close(train_y.square().mean(), torch.tensor(1.0))


def test_uci_names_trainings_that_fail_and_bad_arguments(tmp_path):
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", **GOOD)
    small = ["--guides", "AutoLRT", "--steps", "20", "--jobs", "1", "--splits", "1"]
    command = [sys.executable, str(FOLDER / "uci.py"), str(tmp_path), *small]
    for more, code, message in (
        (["--lr", "1e30"], 1, "2 trainings failed:\na AutoLRT 0: ValueError"),
        (["--sets", "a,typo"], 2, "typo"),
        (["--splits", "0"], 2, "positive integer"),
        (["--json", "no/such/folder.json"], 2, "no such folder"),
    ):
        result = subprocess.run([*command, *more], capture_output=True, text=True)
        assert result.returncode == code
        assert message in result.stderr


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
