"""Modules import in one direction, are short, and packages say what is in them."""

import ast
import configparser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pyro_bnn

ROOT = Path(pyro_bnn.__file__).parent
FILES = {
    ".".join(("pyro_bnn", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in ROOT.rglob("*.py")
}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
LAYERS = [  # as in docs/architecture.rst: each imports from those before it
    *("kernels", "distributions", "estimators", "posteriors", "priors", "nn", "guides", "infer"),
    *("conversion", "compat", "scores", "models", "likelihoods", "sklearn", "plots", "testing"),
]


def statements(node):
    """All that runs, now or in a call; types alone do not."""
    yield node
    if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
        for child in ast.iter_child_nodes(node):
            yield from statements(child)


def imports(name, path, modules=MODULES):
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in modules else source


def graph(modules=MODULES):
    return {
        name: {other for other in imports(name, path, modules) if other in modules} - {name}
        for name, path in modules.items()
    }


def test_imports_have_no_circle():
    TopologicalSorter(graph()).prepare()


def test_a_circle_is_found_also_in_functions(tmp_path):
    (tmp_path / "a.py").write_text("from .b import x")
    (tmp_path / "b.py").write_text("def f():\n    from . import a")
    modules = {"p.a": tmp_path / "a.py", "p.b": tmp_path / "b.py"}
    assert graph(modules) == {"p.a": {"p.b"}, "p.b": {"p.a"}}


def test_packages_import_from_those_before_them():
    found = {p for p in (path.stem for path in ROOT.iterdir()) if not p.startswith("_")}
    assert found - {"py"} <= set(LAYERS)
    wrong = []
    for name, others in graph().items():
        own = name.split(".")[1:2]
        for other in others:
            of = other.split(".")[1:2]
            if own and of and {*own, *of} <= set(LAYERS) and LAYERS.index(*own) < LAYERS.index(*of):
                wrong.append((name, other))
    assert wrong == []


def test_modules_are_short_and_say_what_they_are():
    texts = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert [name for name, text in texts.items() if len(text.splitlines()) > 250] == []
    first = {n: (ast.get_docstring(ast.parse(t)) or "").split("\n")[0] for n, t in texts.items()}
    assert [name for name, line in first.items() if not line.endswith((".", "?"))] == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_tested_versions_are_in_the_ranges_that_are_stated(name):
    root = ROOT.parent
    lines = (root / name).read_text(encoding="utf-8").split("\n")[1:]
    versions = {r.name.lower(): str(r.specifier)[2:] for r in map(Requirement, filter(None, lines))}
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    extras = dict(config["options.extras_require"])
    parts = [config["options"]["install_requires"], extras["demo"], extras["docs"], extras["test"]]
    for stated in map(Requirement, "\n".join(parts).split()):
        assert stated.specifier.contains(versions[stated.name.lower()]), stated
    if "oldest" in name:
        assert {"torch>=2.4", "pyro-ppl>=1.9.1,<2"} <= set(parts[0].split())
        assert versions["torch"] == "2.4.0"
        assert versions["pyro-ppl"] == "1.9.1"
