"""Names of layers, classes, files and titles are text wherever they are shown: never HTML, never a formula."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from pictures import noise
from report_helpers import Page
from saved_results import SAVED, saved
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import deconvviz
from deconvviz.cli import demo

PAYLOADS = [
    "<script>window.PWN=1</script>",
    '"><img src=x onerror="window.PWN=1">',
    "' onmouseover='window.PWN=1",
    "$x$ \\frac{",
    "&lt;b&gt; & <!-- -->",
]
# What a notebook may show of an object.
SHOWN = [f"_repr_{kind}_" for kind in ("html", "markdown", "svg", "latex", "javascript", "json", "mimebundle")]


class Text(HTMLParser):
    """Everything that a browser makes of a piece of HTML: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.marks: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.marks += [name for name, _ in attrs]

    def handle_comment(self, data):
        self.tags.add("!--")

    def handle_data(self, data):
        self.text += data


def everywhere(value, payload, keep=()):
    """Return a value with the payload in place of each text in it, however deep."""
    if isinstance(value, str):
        return payload
    if isinstance(value, tuple):
        return tuple(everywhere(item, payload, keep) for item in value)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in keep]
        return dataclasses.replace(value, **{name: everywhere(getattr(value, name), payload, keep) for name in fields})
    return value


def classes():
    """Go through every class of the package that a notebook shows as anything but a picture."""
    for module in pkgutil.walk_packages(deconvviz.__path__, "deconvviz."):
        if module.name != "deconvviz.__main__":
            for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if kind.__module__ == module.name and any(hasattr(kind, name) for name in SHOWN):
                    yield kind


def hostile_model(payload):
    """A network whose module and class are called so."""
    kind = type(payload, (nn.ReLU,), {})
    model = nn.Sequential()
    model.add_module(payload.replace(".", ""), nn.Sequential(nn.Conv2d(3, 4, 3), kind()))
    model.add_module("last", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, len(PAYLOADS))))
    return model.eval()


def shown_in_html(payload):
    model = hostile_model(payload)
    skipped = dataclasses.replace(saved("topk"), skipped=((0, "x"),))
    made = [everywhere(skipped, payload), deconvviz.audit(model, input_size=12)]
    return [
        *made,
        everywhere(deconvviz.layers(model, 12), payload),
        everywhere(deconvviz.cost(model, input_size=12), payload),
    ]


def test_all_that_a_notebook_shows_as_html_is_tried_here():
    assert set(classes()) == {type(one) for one in shown_in_html("x")}, "add one of the new kind to shown_in_html"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_name_is_html_in_a_notebook(payload):
    for result in shown_in_html(payload):
        for name in SHOWN:
            assert name == "_repr_html_" or not hasattr(result, name)
        page = Text(result._repr_html_())
        assert page.tags <= {"table", "tr", "th", "td", "p", "br"} and not page.marks
        name = payload.replace(".", "")
        assert payload in page.text or name in page.text, type(result)


@pytest.mark.parametrize("name", SAVED)
def test_no_name_breaks_a_picture_in_a_notebook(name):
    payload = PAYLOADS[len(name) % 2] + " $x$ \\frac{ US$ 5 $"
    # A drawing chooses by these, among words of the package's own.
    hostile = everywhere(saved(name), payload, keep=("metric", "rule", "kind", "reads", "method", "fill_name"))
    assert hostile._repr_png_().startswith(b"\x89PNG")


def test_no_name_is_html_on_the_explorer_s_page(tmp_path):
    torch.manual_seed(0)
    pages = []
    for payload in ("plain", PAYLOADS[0].replace("/", ""), PAYLOADS[1]):
        folder = tmp_path / f"photos{len(pages)}" / payload
        folder.mkdir(parents=True)
        for i in range(2):
            noise((12, 12), 90 + 40 * i, i).convert("RGB").save(folder / f"{payload} {i}.png")
        names = [payload, *(PAYLOADS[1:] if len(pages) else ["a", "b", "c", "d"])]
        options = {"class_names": names, "title": payload, "facts": {payload: payload}, "progress": False}
        out = tmp_path / f"{len(pages)}.html"
        layer = f"{payload.replace('.', '')}.1"
        deconvviz.report(
            hostile_model(payload),
            folder.parent,
            layers=[layer],
            k=2,
            preprocess=lambda picture: pil_to_tensor(picture).float() / 255,
            **options,
            out=out,
        )
        page = Page(out)
        data = json.loads(page.scripts["data"])
        assert data["layers"][0]["name"] == layer and data["title"] == page.title == payload
        assert payload in str(data["images"]["names"]) and payload in str(data["images"]["labels"])
        pages.append(page)
    plain, *hostile = pages
    for page in hostile:
        assert [(tag, name) for tag, name, _ in page.attributes] == [(tag, name) for tag, name, _ in plain.attributes]
        assert page.scripts.keys() == plain.scripts.keys() and page.scripts["code"] == plain.scripts["code"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_card_is_html_on_the_demo_s_page(payload):
    card = everywhere(deconvviz.zoo.create("zfnet64").card, payload)
    card = dataclasses.replace(card, training={payload: payload, "more": 5})
    plain = dataclasses.replace(card, training={"a": "b", "more": 5})
    page, other = (Text(demo._page(one, [], payload if one is card else "took")) for one in (card, plain))
    assert page.tags == other.tags and page.marks == other.marks and payload in page.text


def test_what_the_browser_s_code_shows_it_shows_as_text():
    files = list(Path(deconvviz.__path__[0], "explorer", "web").glob("*.js"))
    assert len(files) > 5
    for path in files:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text("utf-8")
        )
