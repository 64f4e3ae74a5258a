"""What is private in torch and in Pyro is used through one module each, or listed there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.params.param_store import ParamStoreDict
from torch import nn
from torch.distributions import Categorical, Distribution

from pyro_bnn import _pyro, _torch

ROOT = Path(_torch.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if p.name not in ("_torch.py", "_pyro.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

OF_TORCH = [
    nn.Module(),
    nn.LSTM(1, 1),
    Distribution(validate_args=False),
    nn.Linear(1, 1).state_dict(),
]
MASKED = pyro.distributions.Normal(0.0, 1.0).mask(True)
OF_PYRO = [PyroModule(), AutoGuide(lambda: None), Trace_ELBO(), ParamStoreDict(), MASKED]
LISTED = _torch.INTERNALS.keys() | _pyro.INTERNALS.keys()
PRIVATE = LISTED | {name for owner in [*OF_TORCH, *OF_PYRO] for name in dir(owner)}
OF_THE_STANDARD_LIBRARY = {"_slotnames"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def is_path_of_others(node: ast.expr) -> bool:
    """Whether an expression is a dotted name that starts at torch or Pyro."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("torch", "pyro")


@cache
def trees():
    return {name: ast.parse(path.read_text()) for name, path in zip(NAMES, FILES, strict=True)}


def imported(tree: ast.Module):
    """Private names that are imported from torch or Pyro, or read as an attribute of theirs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            path = (node.module or "").split(".")
            names = [*path, *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
            path = names
        elif isinstance(node, ast.Attribute) and is_path_of_others(node):
            names, path = [node.attr], ["torch"]
        else:
            continue
        if path[0] in ("torch", "pyro"):
            yield from filter(is_private, names)


def own_names():
    """Private names that this library itself gives to something."""
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                yield node.attr if isinstance(node, ast.Attribute) else node.id
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer":
                yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def used(tree: ast.Module, own: set[str]):
    """Private attributes of torch's and Pyro's classes: read, set, defined or spelled out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, is_foreign = node.attr, node.attr not in own
        elif isinstance(node, (ast.FunctionDef, ast.Name)):
            name, is_foreign = getattr(node, "name", getattr(node, "id", "")), False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name, is_foreign = node.value, False
        else:
            continue
        if is_private(name) and (is_foreign or name in PRIVATE):
            yield name


def test_private_names_are_imported_by_one_module():
    found = {name: set(imported(tree)) for name, tree in trees().items()}
    found = {name: names for name, names in found.items() if names}
    assert not found, "import them in pyro_bnn/_torch.py or _pyro.py, with a reason"


def test_private_attributes_are_listed():
    own = set(own_names())
    found = {attribute: name for name, tree in trees().items() for attribute in used(tree, own)}
    assert not _torch.INTERNALS.keys() & _pyro.INTERNALS.keys()
    unknown = {a: n for a, n in found.items() if a not in LISTED | OF_THE_STANDARD_LIBRARY}
    assert not unknown, (
        "list them in `INTERNALS` of pyro_bnn/_torch.py or _pyro.py, with the reason"
    )
    assert not LISTED - found.keys(), "no longer used"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from torch._C import _is_tracing", "_is_tracing"),
        ("import torch._utils", "_utils"),
        ("from pyro.nn.module import _Context", "_Context"),
        ("x = torch.ops.mkldnn._linear_pointwise(x)", "_linear_pointwise"),
    ],
)
def test_imports_are_found(text, name):
    assert name in set(imported(ast.parse(text)))


@pytest.mark.parametrize("text", ["store._params", "x._is_view()", "getattr(m, '_pyro_name')"])
def test_attributes_are_found(text):
    assert set(used(ast.parse(text), own={"_pyro_name"}))


def test_names_are_those_of_torch_and_pyro():
    """A name that a new version lacks is found here, not in the midst of a step."""
    of_torch = {name for owner in [*OF_TORCH, Categorical(torch.ones(2))] for name in dir(owner)}
    assert of_torch >= _torch.INTERNALS.keys()
    of_pyro = {name for owner in OF_PYRO for name in dir(owner)}
    of_pyro |= {"_pyro_sample", "_pyro_custom_init"}  # by kind of statement; set on tensors
    assert of_pyro >= _pyro.INTERNALS.keys()


def test_the_store_is_read_as_it_is():
    store = pyro.get_param_store()
    parameter = torch.ones(2, requires_grad=True)
    _pyro.put(store, "weight", parameter, torch.distributions.constraints.real)
    assert _pyro.held_parameters(store)["weight"] is parameter
    assert store.param_name(parameter) == "weight"
    pyro.clear_param_store()


def package_of(name: str) -> str:
    """The package of a file; modules that are private and in none count as one, the first."""
    top = name.split("/")[0].removesuffix(".py")
    return "" if top.startswith("_") else top


def imported_packages(name: str, tree: ast.Module):
    folder = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            path = folder[: len(folder) - node.level + 1] + (node.module or "").split(".")
            names = [path[0]] if path[0] else [alias.name for alias in node.names]
            yield from map(package_of, names)


def test_packages_import_only_from_those_above_them_in_the_map():
    page = (ROOT.parent / "docs/architecture.rst").read_text()
    order = ["", *re.findall(r"^``(\w+)`` ", page, re.MULTILINE)]
    for name, tree in trees().items():
        if name == "__init__.py":
            continue
        used_here = set(imported_packages(name, tree)) - {package_of(name)}
        above = set(order[: order.index(package_of(name))])
        assert used_here <= above, f"{name} imports from {used_here - above}"
