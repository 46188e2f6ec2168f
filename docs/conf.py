"""Sphinx configuration: Markdown pages and docstrings become a site; ``make docs`` builds it."""

project = "edgetie"
author = "the edgetie authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build", "examples"]
autodoc_typehints = "signature"
# docstrings refer to names of the library that are not documented here
nitpicky = False
