"""How the API reference is built from the docstrings: `sphinx-build -W docs build/docs`.

The docstrings are written to be read as text: Google's sections, and names in single backticks. Here a name that the
reference holds becomes a link and anything else code; what looks like a name of the package and is none is a warning.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import deconvviz

project = "deconvviz"
release = version = deconvviz.__version__
copyright = "The deconvviz developers"
language = "en"
smartquotes_action = "D"  # dashes; "deconvnet" is something to type

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.autosummary"]
default_role = "py:obj"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the docstrings give shapes, which say more than "Tensor"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"deconvviz {release}"
html_show_sourcelink = False
html_copy_source = False

_log = logging.getLogger(__name__)


def _readable(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Spell what reads well as text the way reStructuredText wants it."""
    text = "\n".join(lines)
    text = re.sub(r"^Source: (.*(?:\n(?!\n).+)*)", _section, text, flags=re.MULTILINE)
    # `Layer`s; in pairs, from the left.
    text = re.sub(r"(`[^`]+`)(\w?)", lambda found: f"{found[1]}\\ {found[2]}" if found[2] else found[1], text)
    lines[:] = text.split("\n")


def _section(found: re.Match[str]) -> str:
    return "Source:\n" + "\n".join(f"    {line.strip()}" for line in found[1].split("\n"))


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out what nobody types, the arguments of results; `load` returns its own class."""
    if dataclasses.is_dataclass(obj):
        return "", None
    return signature, re.sub(r"~?deconvviz\.results\.base\._Kind", "Self", returns) if returns else returns


def _missing(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Find classes that are documented in another module; warn of names of the package that nothing documents."""
    if node.get("reftype") != "obj":  # the types in signatures
        return None
    target = node["reftarget"]
    if re.fullmatch(r"deconvviz(\.\w+)+", target):
        _log.warning("%s is not in the reference", target, location=node)
    found = env.get_domain("py").find_obj(env, "", "", target, None, 1) if target[:1].isupper() else []
    found = [(name, entry) for name, entry in found if not entry.aliased]
    if len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0][1].docname, found[0][1].node_id, content)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", _readable, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _missing)
