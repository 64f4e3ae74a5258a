"""The examples run, in their short form, and draw what the gallery shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / "tutorials").glob("*.py") if p.stem != "helpers")


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Runs an example in its short form; returns its variables and the folder of its figures."""
    monkeypatch.setenv("PYRO_BNN_SHORT", "1")
    monkeypatch.setenv("PYRO_BNN_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(ROOT / "tutorials"), *sys.path])
    monkeypatch.delitem(sys.modules, "helpers", raising=False)  # reads the environment
    yield lambda name: (runpy.run_path(str(ROOT / f"tutorials/{name}.py")), tmp_path)
    plt.close("all")
    sys.modules.pop("helpers", None)


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_draws(short, name):
    scope, folder = short(name)
    assert scope["__doc__"].count("\n=====") == 1  # a title
    assert (folder / f"{name}.png").stat().st_size > 10_000
    for number in plt.get_fignums():
        axes = plt.figure(number).axes
        assert axes
        assert all(axis.has_data() for axis in axes)
    if name == "digits":
        assert len(scope["rows"]) == 6
        for row in scope["rows"].values():
            assert row["accuracy, test"] > 0.8
            assert row["AUROC, unknown"] > 0.7
