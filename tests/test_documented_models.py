"""Every model of the documentation predicts on any number of rows, and is trained at its scale."""

from __future__ import annotations

import doctest
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_bnn
from pyro_bnn.guides import AutoLRT
from pyro_bnn.infer import Predictive

ROOT = Path(__file__).parent.parent


class Documented(NamedTuple):
    model: Any
    guide: Any
    x: Tensor
    size: int | None  # of the training data, where a batch may be a part of them


def page(path: str, size: int | None) -> Documented:
    """The last model of a page, with its guide, after a few steps of its training."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    else:
        examples = doctest.DocTestParser().get_examples(text)
        code = "".join(e.source for e in examples if "exc_msg" not in vars(e) or not e.exc_msg)
    scope: dict[str, Any] = {}
    code = re.sub(r"range\(\d{3,}\)", "range(2)", code)
    exec(re.sub(r"epochs=\d{3,}", "epochs=2", code), scope)
    guide = scope["predictive"].guide if "predictive" in scope else scope["guide"]
    return Documented(scope["model"], guide, scope["x"], size)


def script(path: str, monkeypatch: Any, tmp_path: Path) -> Documented:
    monkeypatch.setattr(sys, "path", [str((ROOT / path).parent), *sys.path])
    monkeypatch.setenv("PYRO_BNN_SHORT", "1")
    monkeypatch.setenv("PYRO_BNN_RESULTS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    scope = runpy.run_path(str(ROOT / path))
    size: int | None = 40
    net = pyro_bnn.bayesianize(nn.Sequential(nn.Linear(64, 8)))
    x = torch.randn(40, 64)
    if path == "tutorials/physics.py":
        model, x = scope["Carbon"](40), 1970 + 10 * torch.rand(40)
    else:
        model = scope["Model"](net, scope["Workload"]("", "", nn.Identity, (40, 64)))
        size = scope["NUM_DATA"]
    return Documented(model, AutoLRT(model), x, size)


PAGES = {
    "README.md": 100,
    "docs/diagnosis.rst": 100,
    "docs/quickstart.rst": 100,
    "docs/by_hand.rst": 100,
    "docs/inference.rst": None,
    "docs/migration.rst": 600,
    "docs/standalone.rst": 600,
}
SCRIPTS = ["tutorials/physics.py", "benchmarks/steps.py"]
REFUSED = ["docs/models.rst"]  # shows what a guide refuses


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS])
def test_predicts_on_any_number_of_rows_and_trains_at_its_scale(path, monkeypatch, tmp_path):
    if path in PAGES:
        model, guide, x, size = page(path, PAGES[path])
    else:
        model, guide, x, size = script(path, monkeypatch, tmp_path)
    with torch.no_grad():
        y = poutine.trace(model).get_trace(x)
    name = next(n for n in y.nodes if n in ("obs", "label", "y"))
    y = y.nodes[name]["value"]
    guide(x, y)
    num = len(x)
    for rows in (1, 7, num, num + 1, 3 * num):
        inputs = x.repeat(3, *(1,) * (x.dim() - 1))[:rows]
        for parallel in (True, False):
            samples = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(inputs)
            assert samples[name].shape == (3, rows, *y.shape[1:])
    half = num // 2
    trace = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace(x, y)))
    site = trace.get_trace(x[:half], y[:half]).nodes[name]
    assert site["scale"] == ((size or half) / half)


def test_every_documented_model_is_among_them():
    files = [ROOT / "README.md"]
    for folder in ("docs/*.rst", "tutorials/*.py", "benchmarks/*.py", "pyro_bnn/**/*.py"):
        files += ROOT.glob(folder)
    found = {str(f.relative_to(ROOT)) for f in files if 'pyro.plate("data"' in f.read_text()}
    found -= {"docs/performance.rst", "docs/kl.rst"}  # which only speak of it
    found -= {"pyro_bnn/infer/_samples.py", "pyro_bnn/infer/_data.py"}  # likewise
    found -= {"benchmarks/peers.py"}  # which trains the guides of others
    found -= {"pyro_bnn/models/_bnn.py"}  # whose tests are in test_bnn.py
    found |= {"README.md", "docs/quickstart.rst"}  # whose plates are those of a BNN
    assert found == {*PAGES, *SCRIPTS, *REFUSED}


@pytest.mark.parametrize("rows", [1, 7, 100, 101, 300])
@pytest.mark.parametrize("parallel", [None, True, False])
def test_models_with_a_size_of_subsamples_predict_alike(rows, parallel):
    """As ``subsample=x`` says it more simply, with the same values."""
    net = pyro_bnn.bayesianize(nn.Linear(3, 1))

    def model(x, **subsample):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", 100, **subsample):
            pyro.sample("obs", pyro.distributions.Normal(mean, 1e-6))

    x = torch.randn(rows, 3)
    samples = {"weight": torch.randn(5, 1, 3), "bias": torch.randn(5, 1)}
    predictive = Predictive(model, samples, parallel=parallel)
    expected = (x @ samples["weight"].mT).squeeze(-1) + samples["bias"]
    for subsample in ({"subsample_size": rows}, {"subsample": x}):
        torch.testing.assert_close(predictive(x, **subsample)["obs"], expected, rtol=0, atol=3e-5)
