"""Configuration of Sphinx."""

import json
import os
import sys
from pathlib import Path

import pyro_bnn

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # for the order of the examples
os.environ.setdefault("PYRO_BNN_RESULTS", str(DOCS / "_build" / "results"))

project = "pyro_bnn"
author = "The pyro_bnn developers"
copyright = "The pyro_bnn developers"
version = release = pyro_bnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the formulas need no network
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"pyro_bnn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"})]
exclude_patterns = ["_build", "generated", "examples/*.ipynb", "examples/*.md5"]

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_preserve_defaults = True  # `AutoLRT`, not `<class 'pyro_bnn...AutoLRT'>`
autodoc_inherit_docstrings = True
strip_signature_backslash = True  # napoleon then escapes the underscore of `model_`
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# What is copied are the statements, without prompts and without what they print.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"helpers\.py$",
    "within_subsection_order": "gallery_order.Order",
    "minigallery_sort_order": "gallery_order.place",
    "backreferences_dir": "generated/examples",
    "doc_module": ("pyro_bnn",),
    "abort_on_example_error": True,
    "capture_repr": (),  # outputs are what examples print
    "min_reported_time": 1,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # a page that needs a network
    "reset_modules": ("matplotlib", "gallery_order.enlarge"),
}


def add_examples(app, what, name, value, options, lines):
    """Ends the entry of a class or function by the examples that use it."""
    used = Path(app.srcdir, "generated/examples/backreferences_all.json")
    if what in ("class", "function") and name in json.loads(used.read_text()):
        lines += ["", ".. rubric:: Used in", "", f".. minigallery:: {name}", ""]


def skip_forward(app, what, name, obj, skip, options):
    """Leaves out a ``forward`` without words of its own: torch's say how to write one."""
    return True if name == "forward" and not obj.__doc__ else None


def name_bases(app, name, value, options, bases):
    """Shows torch's layers in place of their PyroModules, which Pyro defines as ``result``."""
    for i, base in enumerate(bases):
        if base.__qualname__.endswith("<locals>.result"):
            bases[i] = base.__bases__[0]


def setup(app):
    app.connect("autodoc-process-docstring", add_examples, priority=900)  # after napoleon
    app.connect("autodoc-process-bases", name_bases)
    app.connect("autodoc-skip-member", skip_forward)
