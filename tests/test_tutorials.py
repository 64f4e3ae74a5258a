"""The tutorials run, in a short form."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a tutorial, and returns the rows of its table."""

    def function(name, *args):
        main = runpy.run_path(str(ROOT / f"tutorials/{name}.py"))["main"]
        figure = tmp_path / f"{name}.png"
        rows = main([*args, "--out", str(figure)])
        assert figure.stat().st_size > 10_000
        printed = capsys.readouterr().out
        assert all(row in printed for row in rows)
        return rows

    return function


def test_digits(run):
    rows = run("digits", "--steps", "150", "--samples", "20")
    assert len(rows) == 6
    for row in rows.values():
        assert row["accuracy, test"] > 0.9
        assert row["AUROC, unknown"] > 0.7


def test_sunspots(run):
    rows = run("sunspots", "--steps", "30", "--samples", "10")
    assert len(rows) == 5
    for row in rows.values():
        assert row["RMSE, 1 year"] < 34  # that of the number a cycle before
        assert 0 < row["in 90%, 50 years"] <= 1


def test_pruning(run):
    rows = run("pruning", "--steps", "200", "--more", "10", "--samples", "10")
    assert len(rows) == 7
    assert rows["0%"]["accuracy: Bayesian"] > 0.9
    assert rows["0%"]["accuracy: magnitude"] > 0.9
    assert rows["50%"]["accuracy: its mean"] > 0.9
    for row in rows.values():
        assert 0 < row["negative ELBO: Bayesian, trained on"] < row["negative ELBO: Bayesian"]


def test_fashion_mnist(run):
    data = ROOT / "tests/data/fashion-mnist"
    rows = run(
        *("fashion_mnist", "--data", str(data), "--train", "200", "--test", "100"),
        *("--steps", "40", "--samples", "5"),
    )
    assert len(rows) == 4
    for row in rows.values():
        assert row["accuracy"] > 0.3
        assert 0 <= row["ECE"] <= 1


def test_fashion_mnist_says_where_it_comes_from(run, tmp_path):
    with pytest.raises(SystemExit, match=r"apt install dataset-fashion-mnist.*--data"):
        run("fashion_mnist", "--data", str(tmp_path))
