"""How alike a unit's projections are: measured, saved, and said where they hardly depend on the images."""

import itertools

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import ModelError
from deconvviz.projection.result import Projections


def network(pool):
    torch.manual_seed(0)
    middle = [nn.MaxPool2d(2)] if pool else [nn.Conv2d(8, 8, 2, 2), nn.ReLU()]
    end = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, *end)


def made(pool, **options):
    images = torch.rand(12, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    layer = "6" if pool else "7"
    return deconvviz.project(network(pool), images, layer=layer, units="all", top=4, progress=False, **options)


def by_pairs(tiles):
    flat = [tile.flatten().double() for tile in tiles if tile.any()]
    pairs = [float(a @ b / a.norm() / b.norm()) for a, b in itertools.combinations(flat, 2)]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def aligned(model, images, result, unit, stride):
    """The mean cosine of pairs of full-size projections, one moved to the other's position, where both have pixels."""
    size, moved = images.shape[-1], []
    for image, (row, col) in zip(result.image_ids[unit].tolist(), result.positions[unit].tolist(), strict=True):
        if image < 0:
            continue
        options = {"layer": result.layer, "unit": int(result.units[unit]), "position": (row, col), "progress": False}
        whole = deconvviz.deconv(model, images[image : image + 1], **options)[0]
        canvas = torch.zeros(4, 2 * size, 2 * size).double()  # the last channel: where the image is
        y, x = size - stride * row, size - stride * col
        canvas[:, y : y + size, x : x + size] = torch.cat([whole, torch.ones(1, size, size)])
        if whole.any():
            moved.append(canvas)
    found = []
    for a, b in itertools.combinations(moved, 2):
        there = a[3] * b[3]
        one, other = a[:3] * there, b[:3] * there
        if one.any() and other.any():
            found.append(float((one * other).sum() / one.norm() / other.norm()))
    return sum(found) / len(found) if found else float("nan")


@pytest.mark.parametrize("pool", [True, False])
def test_it_is_the_mean_cosine_of_all_pairs(pool):
    result = made(pool)
    images = torch.rand(12, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    expected = torch.tensor([aligned(network(pool), images, result, unit, 2) for unit in range(len(result))])
    assert torch.allclose(result.likeness, expected, atol=1e-5, equal_nan=True)
    means = [
        torch.stack([t.double().flatten() / t.double().norm() for t in tiles if t.any()]).mean(0)
        for tiles in result.projections
        if tiles.any()
    ]
    assert result.likeness_of_units == pytest.approx(by_pairs(means))
    assert result.switches == int(pool)


def test_fields_larger_than_the_image_are_laid_over_each_other_at_their_positions():
    torch.manual_seed(0)
    parts = [part for n in range(6) for part in (nn.Conv2d(8 if n else 3, 8, 5, 1 + n % 2, 2), nn.ReLU())]
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(*parts)
    result = deconvviz.project(model, images, layer="9", units="all", k=4, progress=False)
    assert result.patches.shape[-2:] == (32, 32) and len(result.positions.flatten(0, 1).unique(dim=0)) > 4
    apart = torch.tensor([by_pairs(tiles) for tiles in result.projections])
    expected = torch.tensor([aligned(model, images, result, unit, 4) for unit in range(len(result))])
    assert torch.allclose(result.likeness, expected, atol=1e-5, equal_nan=True)
    assert float(result.likeness.nanmedian()) > 0.8 > 0.5 > float(apart.nanmedian())
    assert "no max-pool below this layer" in result.note


def test_without_switches_the_picture_says_so():
    result = made(False)
    assert float(result.likeness.nanmedian()) > 0.8
    assert "no max-pool below this layer" in result.note and "evidence" in result.note
    assert any("nearly one" in text.get_text() for axes in result.plot().axes for text in axes.texts)
    assert made(True).note == ""


def test_a_single_filter_is_alike_by_nature_and_says_nothing():
    images = torch.rand(6, 3, 40, 40)
    result = deconvviz.project(network(True), images, layer=1, top=3, progress=False)
    assert float(result.likeness.nanmedian()) > 0.99 and result.note == ""


def test_it_is_saved_and_files_without_it_still_load(tmp_path):
    result = made(False, out=tmp_path / "streamed")
    result.save(tmp_path / "saved")
    assert Projections.load(tmp_path / "saved") == result == made(False)
    old = Projections(**{**vars(result), "likeness": None, "switches": None})
    old.save(tmp_path / "old")
    again = Projections.load(tmp_path / "old")
    assert again.likeness is None and again.note == "" and torch.equal(again.projections, result.projections)


def test_empty_places_stay_empty():
    images = torch.rand(6, 3, 40, 40)
    scan = deconvviz.top(network(True), images, layers=["6"], k=3, progress=False)
    best = scan["6"]
    best.image_ids[0] = -1
    best.values[0] = 0
    best.image_ids[1, 2], best.values[1, 2] = -1, 0
    found = deconvviz.project(network(True), images, layer="6", units=[0, 1, 2], top=scan, progress=False)
    assert not found.projections[0].any() and not found.patches[0].any() and not found.boxes[0].any()
    assert not found.patches[1, 2].any() and found.patches[1, :2].flatten(1).any(1).all()
    assert found.likeness[0].isnan() and found.image_ids[1].tolist()[2] == -1
    assert found.plot()


def test_projections_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1e-36)
        model[0].bias.zero_()
        model[2].weight.fill_(1e38)  # forward all is finite; on the way back this comes first
    images = torch.rand(2, 3, 12, 12)
    assert deconvviz.top(model, images, layers=["3"], k=2, progress=False)["3"].values.isfinite().all()
    calls = {"project": {"k": 2}, "evidence": {"k": 2, "size": 2, "rule": "deconvnet"}}
    for name, options in calls.items():
        with pytest.raises(ModelError, match=r"layer '3', unit 0: a projection is not finite\. Look for an overflow"):
            getattr(deconvviz, name)(model, images, layer="3", units="all", progress=False, **options)
