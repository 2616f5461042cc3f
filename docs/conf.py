"""Configuration of the documentation's generator, Sphinx: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "vfio_user"
copyright = "the vfio_user authors, MIT licence"
version = release = version_of("vfio_user")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
]
# No inventories of others are fetched: the build needs no network.
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}

source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["build"]
templates_path = ["templates"]
# Docstrings put names in single backquotes: a link where it leads somewhere, else plain code.
default_role = "py:obj"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Lifetime", "Locking"]
napoleon_use_rtype = False
# Attributes are documented where they are set, by a string below.
napoleon_use_ivar = True

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False

# Annotations name builtins (`type`) that classes of ours have attributes of the same name for.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "vfio_user"
html_static_path: list[str] = []
html_theme_options = {"source_directory": "docs/"}
