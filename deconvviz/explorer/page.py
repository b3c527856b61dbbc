"""The explorer's file: one page of HTML that holds its style, its code, its numbers and its pictures."""

from __future__ import annotations

import html
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import StoreError

_FOLDER = Path(__file__).parent / "web"
_SCRIPTS = ("store", "draw", "units", "detail", "filters", "occlusion", "search", "page")


class Pictures:
    """The page's pictures, kept in a file without a name until the page is written: they need no memory."""

    def __enter__(self) -> Pictures:
        """Open the file."""
        self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget everything."""
        self._file.close()

    def add(self, name: str, encoded: str) -> None:
        """Keep a picture in base64 under a name, which is an identifier of the page."""
        try:
            self._file.write(f'<script type="text/plain" id="{name}">{encoded}</script>\n')
        except OSError as error:
            raise StoreError(
                f"cannot keep the page's pictures in {tempfile.gettempdir()}: {error.strerror or error}. "
                "Free some space there, or show fewer units."
            ) from error

    def copy_to(self, page: IO[str]) -> None:
        """Write all of them, in the order they came."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, page, 1 << 20)


def write(path: Path, title: str, data: Mapping[str, Any], pictures: Pictures) -> None:
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
