"""The documentation is complete, builds without warnings, and its code runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_bnn

ROOT = Path(__file__).parent.parent


def public_names():
    """The module of each public name, the name, and what it stands for."""
    for name in pyro_bnn.__all__:
        value = getattr(pyro_bnn, name)
        if not inspect.ismodule(value):
            yield "pyro_bnn", name, value
            continue
        for inner in value.__all__:
            yield value.__name__, inner, getattr(value, inner)


NAMES = [pytest.param(*row, id=f"{row[0]}.{row[1]}") for row in public_names()]


@pytest.mark.parametrize(("package", "name", "value"), NAMES)
def test_every_public_name_is_in_the_reference(package, name, value):
    reference = (ROOT / "docs/reference.rst").read_text()
    whole_module = f".. automodule:: {package}\n\n" in reference
    assert whole_module or f" {package}.{name}\n" in reference


@pytest.mark.parametrize(("package", "name", "value"), NAMES)
def test_every_public_name_has_a_docstring(package, name, value):
    assert inspect.getdoc(value)


@pytest.mark.parametrize("page", ["README.md"])
def test_code_on_the_front_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        scope: dict = {}
        exec(block, scope)
        if "prediction" in scope:
            prediction, x = scope["prediction"], torch.linspace(-2, 2, 301)
            error = (prediction.mean - (3 * x).sin())[abs(x) < 1].square().mean().sqrt()
            assert error < 0.3
            epistemic = prediction.epistemic
            assert epistemic[abs(x) > 1.5].mean() > epistemic[abs(x) < 1].mean()
        if "band" in scope:
            error = (scope["mean"] - scope["y"]).square().mean().sqrt()
            assert error < 0.3
            assert torch.isfinite(scope["band"]).all()


def test_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    result = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "reference.html").exists()
