"""The documentation is complete, builds without warnings, and its code runs."""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
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


def test_code_on_the_front_page_runs():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    scope: dict = {}
    exec(block, scope)
    prediction, x = scope["prediction"], torch.linspace(-2, 2, 301)
    error = (prediction.mean - (3 * x).sin())[abs(x) < 1].square().mean().sqrt()
    assert error < 0.3
    epistemic = prediction.epistemic
    assert epistemic[abs(x) > 1.5].mean() > epistemic[abs(x) < 1].mean()


PAGES = sorted((ROOT / "docs").glob("*.rst"))
EXAMPLES = sorted(p.stem for p in (ROOT / "tutorials").glob("*.py") if p.stem != "helpers")


def test_every_example_is_in_the_gallery_with_a_figure():
    order = runpy.run_path(str(ROOT / "docs/gallery_order.py"))["ORDER"]
    assert sorted(order) == EXAMPLES
    for name in EXAMPLES:
        text = (ROOT / f"tutorials/{name}.py").read_text()
        assert f'save(figure, "{name}")' in text, name


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "tutorials").glob("*.py")], ids=lambda p: p.stem)
def test_internal_links_lead_somewhere(page):
    text = page.read_text()
    names = {p.stem for p in PAGES} | {f"examples/{n}" for n in [*EXAMPLES, "index"]}
    linked = re.findall(r":doc:`(?:[^`<]*<)?/?([\w/]+)>?`", text)
    assert set(linked) <= names
    everything = "\n".join(p.read_text() for p in PAGES)
    labels = set(re.findall(r"^\.\. _([\w-]+):$", everything, re.MULTILINE))
    assert set(re.findall(r":ref:`(?:[^`<]*<)?([\w-]+)>?`", text)) <= labels
    terms = set(re.findall(r"^   (\S.*)$", (ROOT / "docs/glossary.rst").read_text(), re.MULTILINE))
    assert set(re.findall(r":term:`(?:[^`<]*<)?([^`>]+)>?`", text)) <= terms
    for figure in re.findall(r"^\.\. figure:: (\S+)", text, re.MULTILINE):
        assert (page.parent / figure).exists(), figure


def test_links_of_the_front_page_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs/index.rst").read_text()
    listed = set(re.findall(r"^   ([\w/]+)$", contents, re.MULTILINE))
    assert {p.stem for p in PAGES} - {"index"} <= listed


def test_builds_without_warnings(tmp_path):
    """Without running the examples, and without a network for those who read the pages."""
    ignored = shutil.ignore_patterns("_build", "examples", "generated", "__pycache__", "results")
    for folder in ("docs", "tutorials", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-D", "plot_gallery=0", str(tmp_path / "docs"), str(tmp_path / "html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in (tmp_path / "html").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]* (?:src|href)=.(?:https?:)?//", page.read_text()
        )
        assert not loaded, f"{page.name} needs a network"
    reference = (tmp_path / "html/reference.html").read_text().split("<article")[1]
    for name in EXAMPLES:
        assert (tmp_path / f"html/examples/{name}.html").exists()
        assert f'href="examples/{name}.html"' in reference, name
