"""A small network and the explorer's page of it, for the tests of the report."""

from __future__ import annotations

import base64
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from deconvviz import report as report_function

MODULE = sys.modules["deconvviz.explorer.report"]


class Net(nn.Module):
    """Two convolutions and a classifier, for any number of channels."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Page(HTMLParser):
    """A page as a browser's parser sees it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self._id: str | None = None
        self._in = ""
        self.text = path.read_text(encoding="utf-8")
        self.title = ""
        self.feed(self.text)
        self.data = json.loads(self.scripts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._in = tag
        if tag == "script":
            self._id = dict(attrs).get("id") or "code"
            assert self._id not in self.scripts, "two scripts of one name"
            self.scripts[self._id] = ""

    def handle_endtag(self, tag: str) -> None:
        self._id, self._in = None, ""

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self.scripts[self._id] += data
        if self._in == "title":
            self.title += data

    def picture(self, name: str) -> np.ndarray:
        with Image.open(io.BytesIO(base64.b64decode(self.scripts[name], validate=True))) as image:
            return np.asarray(image.convert("RGB"))

    def tile(self, name: str, shape: dict, index: int) -> np.ndarray:
        """Return one tile of a sprite (h, w, 3)."""
        row, column = divmod(index, shape["columns"])
        (height, width), (up, across) = shape["size"], shape["pitch"]
        return self.picture(name)[row * up : row * up + height, column * across : column * across + width]


def images(channels: int = 3, count: int = 7) -> torch.Tensor:
    return torch.rand(count, channels, 30, 22, generator=torch.Generator().manual_seed(1))


def write(path: Path, model: nn.Module | None = None, shown: object = None, **options: object) -> Page:
    given = {"layers": [1, 2], "k": 4, "occlusion": 1, "progress": False, "out": path / "page.html", **options}
    shown = images() if shown is None else shown
    assert report_function(model or Net(), shown, **given) == given["out"]
    return Page(given["out"])
