"""What the explorer refuses: each mistake is named before the long scan, and leaves nothing behind."""

from __future__ import annotations

import re

import pytest
import torch
from report_helpers import MODULE, Net, images, write
from test_hygiene import network as hygienic_network
from test_hygiene import outcome, pictures

import deconvviz
from deconvviz.errors import ImageError, LayerError, OptionError, StoreError, UnitError, UnsupportedOp


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (OptionError, {"most": 0}, "most=0"),
        (OptionError, {"k": 0}, "k=0"),
        (OptionError, {"occlusion": -1}, "occlusion=-1"),
        (OptionError, {"class_names": ["one"]}, "class_names holds 1 names"),
        (ImageError, {"occlusion": [99]}, "no image 99"),
        (LayerError, {"layers": [9]}, "there is no layer 9"),
        (LayerError, {"layers": []}, "no layer to show"),
        (UnitError, {"units": [99]}, "unit 99 is out of range"),
        (UnitError, {"units": "some"}, "units='some' is not known"),
        (UnitError, {"units": []}, "units holds no number"),
    ],
)
def test_a_mistake_is_named_before_the_scan_and_leaves_nothing(error, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "scan_top", None)
    with pytest.raises(error, match=re.escape(message)):
        write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_an_operation_without_a_rule_is_refused_before_the_scan(tmp_path, monkeypatch):
    class Odd(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.sin(x))

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "scan_top", None)
        with pytest.raises(UnsupportedOp, match="sin"):
            write(tmp_path, Odd())
    assert not list(tmp_path.iterdir())
    assert write(tmp_path, Odd(), allow_gradient=True, most=1).data["layers"]


def test_a_scan_of_other_images_is_refused(tmp_path):
    scan = deconvviz.top(Net(), images(), layers=[1], k=3, progress=False)
    with pytest.raises(ImageError, match="the scan saw 7 images, these are 2"):
        write(tmp_path, top=scan, shown=images(count=2))


def test_a_page_that_cannot_be_written_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "scan_top", None)
    with pytest.raises(StoreError, match=r"is a folder; give the page's path, such as .*report\.html"):
        write(tmp_path, out=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        write(tmp_path, out=tmp_path / "file" / "page.html")


def test_an_interrupt_leaves_the_page_that_was_there(tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("as before")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "project", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "as before"


@pytest.mark.parametrize(("bad", "armed"), [({}, False), ({"most": 0}, False), ({}, True)])
def test_the_model_is_left_as_it_was(bad, armed, tmp_path):
    model = hygienic_network()
    model.raising.armed = armed
    given = {"layers": [1, 2], "most": 2, "k": 2, "progress": False, "out": tmp_path / "page.html", **bad}
    error = outcome(lambda m, x, **_: deconvviz.report(m, x, **given), model, pictures(), {})
    assert (error is not None) == (armed or bool(bad))
