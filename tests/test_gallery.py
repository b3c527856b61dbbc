"""The gallery: every picture has a script, conditions and a caption, and no figure on its page was typed by hand."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from deconvviz.images.photos import PHOTOS

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "gallery"
PAGE = (GALLERY / "README.md").read_text(encoding="utf-8")
PICTURES = sorted(path.name for path in (GALLERY / "pictures").iterdir())
SHOWN = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE)
FIELDS = ("figure", "model", "weights", "layer", "units", "images", "versions", "seed", "command")


@pytest.fixture
def load(monkeypatch):
    """Import a module of the gallery by name."""
    monkeypatch.syspath_prepend(str(GALLERY / "scripts"))

    def get(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return get


def facts(picture):
    return json.loads((GALLERY / "records" / picture).with_suffix(".json").read_text(encoding="utf-8"))


def test_the_page_shows_every_picture_once():
    assert sorted(SHOWN) == [f"pictures/{name}" for name in PICTURES]


def test_every_record_belongs_to_a_picture():
    assert {path.name for path in (GALLERY / "records").iterdir()} == {f"{Path(p).stem}.json" for p in PICTURES}


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_has_its_conditions(picture):
    known = facts(picture)
    assert [field for field in FIELDS if field not in known] == []
    assert known["figure"] == picture
    assert {"deconvviz", "torch"} <= known["versions"].keys()
    python, script, *_ = shlex.split(known["command"])
    assert python == "python" and (ROOT / script).is_file() and Path(script).parent.as_posix() == "gallery/scripts"
    assert not re.search(r"(/tmp|/home|/work|/root)\b", json.dumps(known))


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_is_moderate(picture):
    assert (GALLERY / "pictures" / picture).stat().st_size < 1_000_000
    with Image.open(GALLERY / "pictures" / picture) as image:
        assert image.format == "PNG"


def test_every_script_is_linked():
    scripts = {Path(shlex.split(facts(picture)["command"])[1]).name for picture in PICTURES}
    assert [script for script in scripts if f"](scripts/{script})" not in PAGE] == []


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http|#)([^)]+)\)", PAGE))))
def test_links_lead_somewhere(link):
    assert (GALLERY / link).exists()


def test_the_claims_are_what_the_numbers_say(load):
    assert load("claims").written(PAGE) == PAGE


def test_a_claim_follows_its_numbers(load, monkeypatch):
    measures = load("measures")
    numbers = {"alexnet64": {"dead": 0.25, "filters": 64.0}, "zfnet64": {"dead": 0.0, "filters": 64.0}}
    monkeypatch.setattr(measures, "results", lambda name: numbers)
    assert measures.dead_filters() == ("Dead: 16 of 64 with 11×11/4, 0 of 64 with 7×7/2.", "holds")
    numbers["zfnet64"]["dead"] = 0.5
    assert measures.dead_filters()[1] == "does not hold"


def test_a_claim_without_its_figure_says_so(load, monkeypatch, tmp_path):
    claims = load("claims")
    monkeypatch.setattr(claims.measures, "GALLERY", tmp_path / "gallery")
    rows = claims.table().splitlines()[2:]
    assert len(rows) == len(claims.CLAIMS) and all("Not measured yet" in row for row in rows)


def test_sources_name_every_sample_photo():
    rows = (GALLERY / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    for photo in PHOTOS:
        row = next(row for row in rows if row.startswith(f"| {photo.name} |"))
        assert photo.licence in row and photo.author in row and photo.source in row


def test_part_boxes_lie_in_their_images():
    sets = json.loads((GALLERY / "scripts" / "part_boxes.json").read_text(encoding="utf-8"))["sets"]
    for content in sets.values():
        assert len(content["images"]) >= 5
        for boxes in content["parts"].values():
            assert len(boxes) == len(content["images"])
            assert all(0 <= t < b <= 64 and 0 <= le < r <= 64 for t, le, b, r in boxes)


def test_publish_writes_a_small_picture_and_its_conditions(load, tmp_path, monkeypatch):
    import torch
    from matplotlib.figure import Figure

    publishing = load("publishing")
    monkeypatch.setattr(publishing, "_LIMIT", 20_000)
    figure = Figure(figsize=(1, 1), dpi=100)
    torch.manual_seed(0)
    figure.add_axes((0, 0, 1, 1)).imshow(torch.rand(100, 100, 3).numpy())
    known = {key: "x" for key in ("model", "weights", "layer", "units", "images", "command")}
    publishing.publish("noise", figure, out=tmp_path, **known, results={"a": torch.tensor([1 / 3, 2.0]), "b": None})
    written = json.loads((tmp_path / "records" / "noise.json").read_text(encoding="utf-8"))
    assert [field for field in FIELDS if field not in written] == [] and written["seed"] is None
    assert written["results"] == {"a": [0.3333, 2.0], "b": None}
    with Image.open(tmp_path / "pictures" / "noise.png") as image:
        assert image.mode == "P" and image.size == (100, 100)  # full colours would take three times the bytes
    with pytest.raises(ValueError, match="noise: the conditions lack command"):
        publishing.publish("noise", figure, out=tmp_path, **{k: v for k, v in known.items() if k != "command"})


def figure_files(name, command, value, picture=b"png", torch="1"):
    known = {"command": command, "versions": {"torch": torch}, "results": {"value": value}}
    return {f"pictures/{name}.png": picture, f"records/{name}.json": json.dumps(known).encode()}


def test_rebuild_says_what_changed(load):
    rebuild = load("rebuild")
    before = {
        **figure_files("same", "python gallery/scripts/a.py", 1),
        **figure_files("moved", "python gallery/scripts/a.py", 1),
        **figure_files("redrawn", "python gallery/scripts/a.py", 1),
        **figure_files("newer", "python gallery/scripts/a.py", 1),
        **figure_files("left", "python gallery/scripts/b.py --data CIFAR", 1),
    }
    now = {
        **before,
        **figure_files("moved", "python gallery/scripts/a.py", 2),
        **figure_files("redrawn", "python gallery/scripts/a.py", 1, b"another"),
        **figure_files("newer", "python gallery/scripts/a.py", 1, torch="2"),
        **figure_files("added", "python gallery/scripts/a.py", 1),
    }
    skipped = {"python gallery/scripts/b.py --data CIFAR": "needs data: --cifar CIFAR"}
    states = dict(rebuild._compared(before, now, skipped, None))
    assert states == {
        "same": "unchanged",
        "moved": "changed: results/value: 1 → 2",
        "redrawn": "changed: the picture",
        "newer": "unchanged (other versions or machine)",
        "added": "new",
        "left": "needs data: --cifar CIFAR",
        "README.md": "unchanged",
    }
    assert set(dict(rebuild._compared(before, now, {}, ["b"]))) == {"left", "README.md"}


def test_rebuild_skips_what_needs_data_and_restores(load, monkeypatch, tmp_path, capsys):
    rebuild = load("rebuild")
    folder = tmp_path / "gallery"
    for name in ("pictures", "records", "scripts"):
        (folder / name).mkdir(parents=True)
    kept = figure_files("noise", "python gallery/scripts/draw.py", 1) | figure_files(
        "far", "python gallery/scripts/far.py --data CIFAR", 1
    )
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    new = figure_files("noise", "python gallery/scripts/draw.py", 3)["records/noise.json"].decode()
    (folder / "scripts" / "draw.py").write_text(f"open('gallery/records/noise.json', 'w').write({new!r})")
    (folder / "scripts" / "claims.py").write_text("")
    monkeypatch.setattr(rebuild, "GALLERY", folder)
    monkeypatch.setattr(sys, "argv", ["rebuild.py", "--check"])
    assert rebuild.main() == 1
    printed = capsys.readouterr().out
    assert "changed: results/value: 1 → 3" in printed and "needs data: --cifar CIFAR" in printed
    assert (folder / "records" / "noise.json").read_bytes() == kept["records/noise.json"]
    (folder / "scripts" / "draw.py").write_text("raise SystemExit(3)")
    assert rebuild.main() == 1 and "failed with exit code 3" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rebuild.py", "--only", "far"])
    assert rebuild.main() == 0
