"""A report that is interrupted goes on where it was, and its page is the same to the byte."""

from __future__ import annotations

import pytest
import torch
from report_helpers import MODULE, Net, images, write

from deconvviz.errors import StoreError
from deconvviz.explorer import blocks, sprites
from deconvviz.explorer.unfinished import Unfinished
from deconvviz.projection import bulk


def interrupt(monkeypatch, owner, name, after):
    """Let the function `name` of `owner` be interrupted when it was called `after` times; return the count."""
    function, count = getattr(owner, name), [0]

    def interrupted(*arguments, **options):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)
    return count


ASKED = {"occlusion": 2, "maximize": 1}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "STEPS", 2)
        torch.manual_seed(0)
        return write(tmp_path_factory.mktemp("whole"), **ASKED).text


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (MODULE, "occlude", 1),  # in the second of two images
        (MODULE, "scan_top", 0),
        (bulk, "carry", 3),  # in the first layer
        (sprites, "units", 10),  # in the second layer, whose projections are all done
        (blocks, "maximize", 5),  # in the second layer's optimized images; four calls of it measure the time
        (MODULE.page, "write", 0),
    ],
)
def test_an_interrupted_report_goes_on_to_the_same_page(owner, name, after, page, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "STEPS", 2)
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, after)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut", **ASKED)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == [".page.html.draft"]
    scans = interrupt(monkeypatch, MODULE, "occlude", 99)
    made = interrupt(monkeypatch, blocks, "maximize", 99)
    assert write(tmp_path / "cut", **ASKED).text == page
    # Of each layer once more, but for those that were whole; the time is not measured again.
    assert made[0] == {"occlude": 2, "scan_top": 2, "write": 0}.get(name, 1)
    assert scans[0] == (1 if name == "occlude" else 0)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["page.html"]


def test_what_is_done_of_a_layer_is_not_done_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        drawn = interrupt(patch, sprites, "units", 10)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    drawn = interrupt(monkeypatch, sprites, "units", 99)
    write(tmp_path)
    assert drawn[0] == 12  # the second layer's: of the first layer's 8 units all were whole


@pytest.mark.parametrize("other", [{"model": Net(classes=5)}, {"shown": images(count=6)}, {"k": 3}, {"rule": "guided"}])
def test_another_report_begins_anew(other, tmp_path, monkeypatch):
    whole = write(tmp_path / "whole", **other).text
    with monkeypatch.context() as patch:
        interrupt(patch, sprites, "units", 10)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut")
    assert write(tmp_path / "cut", **other).text == whole


def test_the_title_may_change_meanwhile(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, sprites, "units", 10)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
    drawn = interrupt(monkeypatch, sprites, "units", 99)
    assert write(tmp_path, title="Another").title == "Another" and drawn[0] == 12


def test_pictures_of_a_part_that_was_cut_off_are_gone(tmp_path):
    with Unfinished(tmp_path / "page.html", "key") as unfinished:
        unfinished.part("one", lambda: unfinished.add("u1", "AAAA"))
        unfinished.add("u2", "BBBB")
    with Unfinished(tmp_path / "page.html", "key") as unfinished, (tmp_path / "copy").open("w+") as page:
        unfinished.part("two", lambda: unfinished.add("u2", "CCCC"))
        unfinished.copy_to(page)
        page.seek(0)
        assert [line[line.index("id=") :] for line in page] == ['id="u1">AAAA</script>\n', 'id="u2">CCCC</script>\n']


def test_two_reports_to_one_page_are_refused(tmp_path):
    torch.manual_seed(0)
    with (
        Unfinished(tmp_path / "page.html", "key"),
        pytest.raises(StoreError, match=r"another process or thread is writing .*html"),
    ):
        write(tmp_path)
