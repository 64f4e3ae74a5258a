"""The benchmarks run, with the peers that are installed for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(script, *args):
    command = [sys.executable, str(FOLDER / script), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_speed(tmp_path):
    pattern = r"^(width-50|conv|predict) .*(deterministic|LRT standalone|bensemble|LRT Predictive)"
    files = ("--json", str(tmp_path / "speed.json"), "--plot", str(tmp_path / "speed.png"))
    output = run("speed.py", "--only", pattern, "--runs", "1", *files)
    assert "MLP 100-50-50-10, batch 128" in output
    workloads = json.loads((tmp_path / "speed.json").read_text())["workloads"]
    assert set(workloads) == {"width-50", "conv", "predict"}
    for workload in workloads.values():
        for result in workload["contenders"].values():
            assert result.get("reason") == "needs a GPU" or 0 < result["lower"] <= result["median"]
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_limits():
    assert "flipout" in run("limits.py", "--runs", "1")
