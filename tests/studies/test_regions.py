"""The strongest regions of a unit against a plain loop over regions, with its own warping and thinning out."""

import inspect
from importlib import import_module

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz.cli import main as cli
from deconvviz.errors import ImageError, OptionError, UnitError
from deconvviz.images import Preprocess
from deconvviz.studies.regions import warped

QUIET = {"progress": False}
HOW = Preprocess(size=(12, 12), resize=14, mean=(0.5,) * 3, std=(0.25,) * 3)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3)).double().eval()


def pictures(n=3, height=30, width=40):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def boxes_for(n, height=30, width=40, seed=0, each=25):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        top, left = draw.integers(0, height - 8, each), draw.integers(0, width - 8, each)
        h, w = draw.integers(4, 20, each), draw.integers(4, 20, each)
        found.append(np.stack([top, left, np.minimum(top + h, height), np.minimum(left + w, width)], 1))
    return found


def union_share(a, b):
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = height * width
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def by_hand(image, box, size, around):
    """The warped region, from an image that was made larger by zeros first."""
    margin = 60
    big = F.pad(image, (margin,) * 4)
    top, left, bottom, right = (int(x) for x in box)
    dy, dx = around * (bottom - top) / (size - 2 * around), around * (right - left) / (size - 2 * around)
    rows = slice(round(top - dy) + margin, round(bottom + dy) + margin)
    cols = slice(round(left - dx) + margin, round(right + dx) + margin)
    return F.interpolate(big[None, :, rows, cols], (size, size), mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


@pytest.mark.parametrize("position", [None, (1, 2)])
def test_regions_are_those_of_a_plain_loop(position):
    model, images, boxes = net(), pictures(), boxes_for(3)
    options = {"layer": "3", "units": [2, 0], "boxes": boxes, "k": 6, "context": 2, "position": position}
    result = deconvviz.top_regions(model, images, preprocess=HOW, batch_size=7, **options, **QUIET)
    for place, unit in enumerate((2, 0)):
        survivors = []
        for number, image in enumerate(images):
            with torch.no_grad():
                maps = model(torch.stack([by_hand(image, box, 12, 2) for box in boxes[number]]))[:, unit]
            values = maps.amax((1, 2)) if position is None else maps[:, 1, 2]
            kept = []
            for n in values.argsort(descending=True).tolist():
                if all(union_share(boxes[number][n], boxes[number][m]) <= 0.3 for m in kept):
                    kept.append(n)
            survivors += [(float(values[n]), number, boxes[number][n].tolist()) for n in kept]
        wanted = sorted(survivors, key=lambda one: -one[0])[:6]
        assert result.values[place].tolist() == pytest.approx([v for v, _, _ in wanted], abs=1e-12)
        assert result.image_ids[place].tolist() == [n for _, n, _ in wanted]
        assert result.boxes[place].tolist() == [box for _, _, box in wanted]
    assert result.count == 75 and result.units.tolist() == [2, 0]


def test_a_patch_is_what_the_network_saw_and_its_field_what_counts():
    model, images = net(), pictures(1)
    result = deconvviz.top_regions(model, images, layer="3", units=[1], k=1, preprocess=HOW, **QUIET)
    box = result.boxes[0, 0]
    seen = warped(images[0], box, (12, 12), 1)  # 16 of 227, in proportion
    assert torch.equal(result.patches[0, 0], HOW.invert(seen).clamp(0, 1).mul(255).round().byte())
    with torch.no_grad():
        assert float(model(seen[None])[0, 1].max()) == pytest.approx(float(result.values[0, 0]), abs=1e-12)
        top, left, bottom, right = result.fields[0, 0].tolist()
        assert (bottom - top, right - left) == (8, 8)
        outside = seen.clone()
        outside[:, top:bottom, left:right] = 9.0
        row, col = divmod(int(model(seen[None])[0, 1].argmax()), 3)
        blank = 9.0 + torch.zeros_like(seen)
        blank[:, top:bottom, left:right] = seen[:, top:bottom, left:right]
        torch.testing.assert_close(model(blank[None])[0, 1, row, col], model(seen[None])[0, 1, row, col])


def test_without_boxes_windows_cover_the_image():
    result = deconvviz.top_regions(net(), pictures(1, 20, 50), layer="3", k=2000, overlap=1.0, preprocess=HOW, **QUIET)
    found = result.boxes[0][result.image_ids[0] >= 0]
    covered = torch.zeros(20, 50, dtype=torch.bool)
    for top, left, bottom, right in found.tolist():
        covered[top:bottom, left:right] = True
    assert covered.all() and len(found) == result.count and (0, 0, 20, 20) in map(tuple, found.tolist())
    assert result.values[0, result.count :].isnan().all()


def test_pictures_are_looked_at_in_their_own_resolution(tmp_path):
    draw = np.random.default_rng(1)
    for name, size in (("a", (60, 45)), ("b", (33, 70))):
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    given = [[[0, 0, 60, 45], [10, 5, 30, 25]], [[0, 40, 33, 70]]]
    result = deconvviz.top_regions(net(), tmp_path, layer=2, units=[0], boxes=given, k=3, preprocess=HOW, **QUIET)
    assert sorted(map(tuple, result.boxes[0].tolist())) == [(0, 0, 60, 45), (0, 40, 33, 70), (10, 5, 30, 25)]
    assert result.names == ("a.png", "b.png") or len(result.names) == 2
    result.save(tmp_path / "regions.safetensors")
    assert deconvviz.TopRegions.load(tmp_path / "regions.safetensors") == result
    figure = result.plot()
    assert len(figure.axes) == 3 and all(axis.images for axis in figure.axes)
    own = inspect.signature(deconvviz.TopRegions.plot).parameters
    draw_options = inspect.signature(import_module("deconvviz.plotting.regions").draw).parameters
    assert set(list(own)[1:]) == set(list(draw_options)[1:])


def test_what_cannot_be_read_is_passed_over_and_named(tmp_path):
    for i in range(3):
        noise((50, 40), 60, i).convert("RGB").save(tmp_path / f"{i}.png")
    given = {"layer": 2, "units": [0, 1], "k": 4, "preprocess": HOW, **QUIET}
    whole = deconvviz.top_regions(net(), [tmp_path / "0.png", tmp_path / "2.png"], **given)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r'cannot read the image .*1\.png.*on_error="skip"'):
        deconvviz.top_regions(net(), tmp_path, **given)
    found = deconvviz.top_regions(net(), tmp_path, on_error="skip", **given)
    assert [i for i, _ in found.skipped] == [1] and "skipped image 1: cannot read" in found.table()
    assert torch.equal(found.values, whole.values) and torch.equal(found.image_ids, 2 * whole.image_ids)
    found.save(tmp_path / "regions.safetensors")
    assert deconvviz.TopRegions.load(tmp_path / "regions.safetensors") == found
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="none of the 3 images can be read"):
        deconvviz.top_regions(net(), tmp_path, on_error="skip", **given)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"boxes": [[[0, 0, 5, 5]]]}, OptionError, "1 lists for 3 images"),
        ({"boxes": [[[0, 0, 31, 5]]] * 3}, OptionError, "the boxes of image 0: expected whole numbers"),
        ({"boxes": [[[0.5, 0, 5, 5]]] * 3}, OptionError, "expected whole numbers"),
        ({"overlap": 2}, OptionError, "overlap=2"),
        ({"context": 6}, OptionError, "leaves nothing"),
        ({"k": 0}, OptionError, "k=0"),
        ({"position": (9, 0)}, UnitError, "within a map of 3×3"),
        ({"units": [99]}, UnitError, "unit 99"),
        ({"on_error": "hide"}, OptionError, "on_error='hide'"),
    ],
)
def test_what_has_no_meaning_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        deconvviz.top_regions(net(), pictures(), layer="3", preprocess=HOW, **QUIET, **options)


def test_the_command_prints_and_draws(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "regions.png"
    photos.mkdir()
    noise((80, 60), 90).convert("RGB").save(photos / "a.png")
    chosen = ["--images", str(photos), "--layer", "5", "--units", "0,1", "--k", "2", "--out", str(out), "--quiet"]
    assert cli.main(["top-regions", "zfnet64", *chosen]) == 0
    assert "2 units × 2" in capsys.readouterr().out and out.exists()
