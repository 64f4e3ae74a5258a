"""Configuration of Sphinx."""

import pyro_bnn

project = "pyro_bnn"
author = "The pyro_bnn developers"
copyright = "The pyro_bnn developers"
version = release = pyro_bnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"pyro_bnn {release}"
exclude_patterns = ["_build"]

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_inherit_docstrings = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
