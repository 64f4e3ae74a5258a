"""Scripts that run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_on_two(script: str, folder: Path, *launcher: str) -> None:
    """Runs a script of this folder, by which each of two ranks writes ``found{rank}.pt``."""
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launcher, str(TESTS / script), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert all((folder / f"found{rank}.pt").exists() for rank in range(2)), done.stderr
