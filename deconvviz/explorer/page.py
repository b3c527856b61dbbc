"""The explorer's file: one page of HTML that holds its style, its code, its numbers and its pictures."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .unfinished import Unfinished

_FOLDER = Path(__file__).parent / "web"
_SCRIPTS = (
    "store",
    "draw",
    "units",
    "blocks",
    "overview",
    "detail",
    "grids",
    "large",
    "filters",
    "occlusion",
    "search",
    "page",
)


def write(path: Path, title: str, data: Mapping[str, Any], pictures: Unfinished) -> None:
    """Write the page.

    The pictures come last: a browser shows the first unit while it still reads the others.
    """
    values = {
        "title": html.escape(title),
        "style": _read("style.css"),
        "data": embed(data),
        "script": "\n".join(_read(f"{name}.js") for name in _SCRIPTS),
    }
    before, after = re.split(r"<!--pictures-->\n?", _read("page.html"))
    with path.open("w", encoding="utf-8") as page:
        page.write(_fill_template(before, values))
        pictures.copy_to(page)
        page.write(_fill_template(after, values))


def embed(data: Mapping[str, Any]) -> str:
    """Return JSON that no name in it can end early: < and & are written as escapes."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put the values in the places of their names, in one pass: nothing in a value is looked at again."""
    return re.sub(r"<!--(\w+)-->", lambda found: values[found[1]], template)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
