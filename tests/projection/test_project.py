"""Projections in bulk: on boxes, from files, at borders; options and errors."""

import dataclasses
import gc
import os
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from nets import Net, nets
from torch import nn

import deconvviz
from deconvviz import ImageError, LayerError, ModelError, OptionError, Projections, StoreError, UnitError, UnsupportedOp
from deconvviz.projection import bulk as _frames
from deconvviz.rules import backward as _backward
from deconvviz.rules import table as rules
from deconvviz.rules.signals import Grid, Items, Signal


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()
    )


def check(
    model: nn.Module, images: torch.Tensor, layer: int | str, units: list[int], tolerance: float = 1e-6, **options
):
    """Every frame is the full-size projection, cut out at its box; every patch is the image's; the rest is zero."""
    result = deconvviz.project(model, images, layer=layer, units=units, progress=False, **options)
    rule = options.get("rule", "deconvnet")
    for u, unit in enumerate(units):
        for k in range(result.activations.shape[1]):
            if result.image_ids[u, k] < 0:  # a place that no image excites
                assert not result.projections[u, k].any() and not result.patches[u, k].any()
                continue
            image = images[result.image_ids[u, k]]
            position = tuple(result.positions[u, k].tolist())
            whole = deconvviz.deconv(model, image[None], layer=layer, unit=unit, position=position, rule=rule)[0]
            top, left, bottom, right = result.boxes[u, k].tolist()
            part = whole[:, top:bottom, left:right]
            outside = whole.clone()
            outside[:, top:bottom, left:right] = 0
            assert not outside.any()
            scale = max(float(whole.abs().max()), 1e-6)
            patch = image[:, top:bottom, left:right]
            for frame, expected in ((result.projections[u, k], part), (result.patches[u, k], patch)):
                down, across = placed(result, u, k)
                inside = frame[:, down : down + bottom - top, across : across + right - left]
                limit = tolerance * (scale if expected is part else 1.0)
                assert (inside - expected.to(frame.dtype)).abs().amax().item() <= limit if inside.numel() else True
                rest = frame.clone()
                rest[:, down : down + bottom - top, across : across + right - left] = 0
                assert not rest.any()
    return result


def placed(result: Projections, u: int, k: int) -> tuple[int, int]:
    """Where a box lies in its frame, from where the picture in the patch begins (its pixels are never zero)."""
    box, frame = result.boxes[u, k].tolist(), result.patches.shape[-2:]
    corner = []
    for axis in (0, 1):
        lines = result.patches[u, k].abs().sum((0, 2 - axis)).nonzero().flatten()
        room = frame[axis] - (box[axis + 2] - box[axis])
        first = int(lines[0]) if len(lines) else 0
        assert 0 <= first <= room
        if first:  # room at the start only where the image, or a map on the way, ends
            assert box[axis] < frame[axis]
        corner.append(first)
    return corner[0], corner[1]


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("alexnet", 5, (150, 180)), ("resnet18", 3, (96, 128)), ("googlenet", 3, (96, 96)), ("densenet121", 2, (64, 72))],
)
def test_frames_equal_the_full_projection(
    name: str, layer: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    # In float64, where no pass rounds to other switches than another.
    model = torchvision.models.get_model(name, weights=None, **extra).double()
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    options = {"layer": layer, "units": [0, 7, 30], "top": 2, "progress": False}
    result = deconvviz.project(model, images, **options)
    assert result.number == layer
    assert result.projections.any()
    check(model, images, layer, [0, 7, 30], top=2)
    for short, rule in rules.RULES.items():  # the same without windows: every signal on whole maps
        monkeypatch.setitem(rules.RULES, short, dataclasses.replace(rule, local=lambda op, tape: False))
    whole = deconvviz.project(model, images, **options)
    scale = whole.projections.abs().amax((2, 3, 4), keepdim=True)
    assert ((result.projections - whole.projections).abs() <= torch.finfo(torch.float32).eps * scale).all()


@settings(max_examples=40)
@given(nets(whole=False))
def test_frames_equal_the_full_projection_on_random_networks(net: Net):
    check(net.module(), net.images, "out", [net.unit], top=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (7, 7), (31, 20)])
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "backprop"])
def test_images_smaller_than_the_receptive_field(size: tuple[int, int], rule: str):
    # In float64: a signal may be tiny beside what was added up for it, and each processor adds in its own order.
    result = check(small().double(), torch.randn(2, 2, *size).double(), "4", [0, 4], rule=rule)
    assert result.patches.shape[-2:] == (min(15, size[0]), min(15, size[1])) or min(size) > 15
    assert result.activations.shape == (2, 2)  # top=9 of two images


def test_borders_are_padded_on_the_side_that_the_image_lacks():
    model = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2, bias=False))
    model[0].weight.data.fill_(1)
    images = torch.zeros(2, 1, 9, 9)
    images[0, 0, 0, 0] = images[1, 0, 8, 8] = 1
    images[0, 0, :3, :3] += 0.5
    images[1, 0, 6:, 6:] += 0.5
    result = deconvviz.project(model, images, layer=1, top=2, progress=False)
    for k in range(2):
        assert result.patches[0, k].shape == (1, 5, 5)
    # Both strongest positions are the first with the whole 3 × 3 in sight; their boxes hug the image's edge.
    first = result.image_ids[0].tolist().index(0)
    assert result.boxes[0, first].tolist() == [0, 0, 3, 3]
    assert not result.patches[0, first, 0, :2].any() and not result.patches[0, first, 0, :, :2].any()
    assert torch.equal(result.patches[0, first, 0, 2:, 2:], images[0, 0, :3, :3])
    second = 1 - first
    assert result.boxes[0, second].tolist() == [4, 4, 9, 9]


def test_fields():
    images = torch.randn(12, 2, 20, 24)
    result = deconvviz.project(small().double(), images, layer=2, units=[3, 1, 3], top=4, progress=False)
    assert (result.layer, result.number, result.rule) == ("4", 2, "deconvnet")
    assert result.units.tolist() == [3, 1, 3]
    assert result.activations.shape == result.image_ids.shape == (3, 4)
    assert result.positions.shape == (3, 4, 2) and result.boxes.shape == (3, 4, 4)
    assert result.patches.shape == result.projections.shape == (3, 4, 2, 15, 15)
    assert {x.dtype for x in (result.activations, result.patches, result.projections)} == {torch.float32}
    assert (result.activations.diff(dim=1) <= 0).all()
    with torch.no_grad():
        maps = small().double()(images.double())
    assert torch.allclose(result.activations[1], maps[:, 1].amax((1, 2)).sort(descending=True)[0][:4].float())
    assert torch.equal(result.projections[0], result.projections[2])


def test_units():
    images = torch.randn(2, 2, 9, 9)
    model = nn.Sequential(nn.Conv2d(2, 40, 3))

    def units(given):
        return deconvviz.project(model, images, layer=1, units=given, top=1, progress=False).units.tolist()

    assert units("all") == list(range(40))
    assert units(None) == [i * 40 // 16 for i in range(16)]
    assert units(torch.tensor([5, 2])) == [5, 2]


def test_some_units_of_a_result():
    rules = ("deconvnet", "guided")
    result = deconvviz.project(small(), torch.randn(4, 2, 17, 19), layer="4", top=3, rule=rules, progress=False)
    some = result.select([3, 0])
    assert some.units.tolist() == [3, 0] and some[0] == result[0] and some[3].beside == result[3].beside
    assert some.names.keys() == set(some.image_ids.unique().tolist())
    with pytest.raises(UnitError, match="unit 9 is not in this result, it holds 2 units"):
        some.select([0, 9])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_matter(batch_size: int):
    images = torch.randn(5, 2, 17, 19)
    model = small().double()
    expected = deconvviz.project(model, images, layer="4", top=3, progress=False)
    result = deconvviz.project(model, images, layer="4", top=3, progress=False, batch_size=batch_size)
    assert torch.equal(result.image_ids, expected.image_ids)
    assert torch.allclose(result.projections, expected.projections, rtol=1e-5, atol=1e-7)


def test_a_scan_can_be_given(tmp_path: Path):
    model, images = small(), torch.randn(6, 2, 17, 19)
    found = deconvviz.top(model, images, layers=["2", "4"], k=3, progress=False)
    expected = deconvviz.project(model, images, layer="4", top=3, progress=False)
    result = deconvviz.project(model, images, layer="4", top=found, progress=False)
    assert torch.equal(result.projections, expected.projections)
    with pytest.raises(ImageError, match="the scan counted other images: it names image 5 of 2"):
        deconvviz.project(model, images[:2], layer="4", top=found, units="all", progress=False)


def test_the_windows_come_in_pieces(monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(4, 2, 33, 40)
    model = small().double()
    expected = deconvviz.project(model, images, layer="4", progress=False)
    monkeypatch.setattr(_frames, "WINDOW_BYTES", 1)
    result = deconvviz.project(model, images, layer="4", progress=False)
    assert torch.allclose(result.projections, expected.projections, rtol=1e-5, atol=1e-7)


def test_what_no_window_of_a_piece_has_inside_the_map_is_dropped():
    signal, shape = Signal(torch.rand(2, 3, 7, 7), Grid((2, 2), (-3, -3))), torch.Size([1, 3, 12, 20])
    corner = Items(torch.zeros(2, dtype=torch.long), torch.tensor([[0, 0], [1, 4]])).trimmed(signal, shape)
    assert corner.grid is not None and signal.grid is not None
    assert (corner.data.shape[-2:], corner.grid.offset) == ((6, 7), (-2, -3))  # columns 5 to 11 are all inside
    assert torch.equal(corner.data[0, :, 2:, 3:], signal.data[0, :, 3:, 3:])
    assert not corner.data[0, :, :2].any() and not corner.data[0, :, :, :3].any()
    outside = Items(torch.zeros(2, dtype=torch.long), torch.tensor([[9, 0], [10, 0]])).trimmed(signal, shape)
    assert not outside.data.any() and outside.data.numel()


def test_windows_beyond_the_same_border_travel_together(monkeypatch: pytest.MonkeyPatch):
    """At the corners three quarters of the windows are outside; the same images without sorting cost more."""
    model, sizes = small().double(), []
    images = torch.zeros(9, 2, 30, 30)
    for i, (y, x) in enumerate((y, x) for y in (2, 15, 28) for x in (2, 15, 28)):
        images[i, :, y - 2 : y + 2, x - 2 : x + 2] = 5 + torch.rand(2, 4, 4)
    plain = _backward.convolve

    def spy(op, signals, walk):
        out = plain(op, signals, walk)
        sizes.append(out[0].data.numel())
        return out

    monkeypatch.setitem(rules.RULES, "conv2d", dataclasses.replace(rules.RULES["conv2d"], back=spy))
    total, results = [], []
    for large in (0.0, 1.0):
        monkeypatch.setattr(_frames, "LARGE", large)
        sizes.clear()
        results.append(deconvviz.project(model, images, layer="4", progress=False))
        total.append(sum(sizes))
    assert total[0] < 0.9 * total[1]
    assert torch.allclose(results[0].projections, results[1].projections, rtol=1e-5, atol=1e-7)


def test_out_streams_to_a_file_that_loads_as_the_same(tmp_path: Path):
    images, path = torch.randn(4, 2, 20, 20), tmp_path / "new" / "result.safetensors"
    expected = deconvviz.project(small(), images, layer=2, progress=False)
    result = deconvviz.project(small(), images, layer=2, progress=False, out=path)
    assert [p.name for p in path.parent.iterdir()] == ["result.safetensors"]
    again = Projections.load(path)
    expected.save(tmp_path / "saved.safetensors")
    for other in (result, again, Projections.load(tmp_path / "saved.safetensors")):
        assert (other.layer, other.number, other.rule, other.mean) == ("4", 2, "deconvnet", expected.mean)
        for name in ("units", "activations", "image_ids", "positions", "boxes", "patches", "projections"):
            assert torch.equal(getattr(other, name), getattr(expected, name)), name
    assert path.read_bytes() == (tmp_path / "saved.safetensors").read_bytes()


def test_a_large_result_lives_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(4, 2, 20, 20)
    expected = deconvviz.project(small(), images, layer=2, progress=False)
    monkeypatch.setattr(_frames, "STREAM_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = deconvviz.project(small(), images, layer=2, progress=False)
    assert torch.equal(result.projections, expected.projections)
    result.save(tmp_path / "kept.safetensors")
    del result
    gc.collect()
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize("named", [True, False])
def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(_frames, "STREAM_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = tmp_path / "result" if named else None
    message = "No space left on device.*give another path" + ("" if named else ".*give out=")
    with pytest.raises(StoreError, match=message):
        deconvviz.project(small(), torch.randn(2, 2, 20, 20), layer=2, progress=False, out=out)
    assert not list(tmp_path.iterdir())


def test_nothing_stays_when_projecting_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_frames, "carry", fail)
    with pytest.raises(KeyboardInterrupt):
        deconvviz.project(small(), torch.randn(2, 2, 20, 20), layer=2, progress=False, out=tmp_path / "result")
    assert not list(tmp_path.iterdir())


def test_no_right_to_write(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/result: Not a directory|File exists"):
        deconvviz.project(small(), torch.randn(2, 2, 9, 9), layer=2, progress=False, out=tmp_path / "file" / "result")


def test_an_operation_without_a_rule_is_refused_before_the_scan(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["deconvviz.projection.strongest"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "scan_top", lambda *_, **__: pytest.fail("scanned"))
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softsign(), nn.Conv2d(3, 3, 1))
    with pytest.raises(UnsupportedOp, match=r"softsign in module '1': there is no rule for it"):
        deconvviz.project(model, torch.randn(2, 2, 9, 9), layer="2", progress=False)


def test_channels_last_is_only_an_attempt():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(27, 4)

        def forward(self, x):
            return self.fc(self.conv(x).view(len(x), -1))

    result = deconvviz.project(Viewing(), torch.randn(3, 2, 5, 5), layer="fc", progress=False)
    assert result.projections.shape == (4, 3, 2, 5, 5)


def bad(change) -> nn.Module:
    model = small()
    with torch.no_grad():
        change(model)
    return model


ERRORS = {
    "unit too large": ({"units": [5]}, UnitError, "unit 5 is out of range: layer '4' has units 0 to 4"),
    "unit negative": ({"units": [-1]}, UnitError, "unit -1 is out of range"),
    "unit a fraction": ({"units": [1.5]}, UnitError, "units=1.5: expected a whole number. Or give a mask"),
    "one unit": ({"units": 3}, UnitError, "units=3: expected whole numbers in a list. Or give .* 'all' or None"),
    "no units": ({"units": []}, UnitError, "units holds no number; give some"),
    "units by a word": ({"units": "some"}, UnitError, "units='some' is not known"),
    "top 0": ({"top": 0}, OptionError, "top=0: expected a whole number of at least 1"),
    "k 0": ({"k": 0}, OptionError, "k=0: expected a whole number of at least 1"),
    "top a word": ({"top": "9"}, OptionError, "top='9': expected a TopK.* images per unit is k="),
    "rule": ({"rule": "lrp"}, OptionError, "rule='lrp' is not known"),
    "layer number": (
        {"layer": 3},
        LayerError,
        r"there is no layer 3; this model's numbered layers are 1 \(1\), 2 \(4\)",
    ),
    "layer name": ({"layer": "conv"}, LayerError, "there is no layer 'conv'.*the layers are 0, 1, 2, 3, 4"),
    "layer kind": ({"layer": 2.0}, LayerError, "layer must be a number or a module path, got 2.0"),
    "layer true": ({"layer": True}, LayerError, "layer must be a number or a module path, got True"),
    "channels": (
        {"images": torch.zeros(1, 3, 9, 9)},
        ModelError,
        r"failed on images of shape \(1, 3, 9, 9\).*2 channels",
    ),
    "no batch": ({"images": torch.zeros(2, 9, 9)}, ImageError, r"shape \(2, 9, 9\), expected \(N, C, H, W\)"),
    "no images": ({"images": torch.zeros(0, 2, 9, 9)}, ImageError, "no images"),
    "NaN": ({"images": torch.full((1, 2, 9, 9), torch.nan)}, ImageError, "holds NaN"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_given_and_expected(case: str):
    options, error, message = ERRORS[case]
    options = {"images": torch.randn(2, 2, 9, 9), "layer": 2, **options}
    with pytest.raises(error, match=message):
        deconvviz.project(small(), progress=False, **options)


DECONV_ERRORS = {
    "unit too large": ({"unit": 5}, UnitError, "unit 5 is out of range: layer '4' has units 0 to 4"),
    "unit negative": ({"unit": -1}, UnitError, "unit -1 is out of range"),
    "unit a fraction": ({"unit": 0.5}, UnitError, "unit=0.5 is no whole number: layer .* has units 0 to"),
    "position": ({"position": (3, 0)}, UnitError, r"position \(3, 0\) is outside the map of layer '4', 3×3"),
    "position a number": ({"position": 3}, UnitError, r"position=3: expected \(row, column\)"),
    "position negative": ({"position": (0, -1)}, UnitError, "outside the map"),
}


@pytest.mark.parametrize("case", DECONV_ERRORS)
def test_errors_of_deconv(case: str):
    options, error, message = DECONV_ERRORS[case]
    with pytest.raises(error, match=message):
        deconvviz.deconv(small(), torch.randn(2, 2, 9, 9), **{"layer": 2, "unit": 0, **options})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float):
    model = bad(lambda m: m[3].weight.view(-1)[7].fill_(value))
    for call in (deconvviz.deconv, deconvviz.project):
        options = {"unit": 0} if call is deconvviz.deconv else {"progress": False}
        with pytest.raises(ModelError, match=r"the weights are not finite: '3\.weight' holds NaN or infinity"):
            call(model, torch.randn(1, 2, 9, 9), layer=2, **options)


def test_the_strongest_position_is_the_first_of_equals():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    result = deconvviz.deconv(model, torch.ones(1, 1, 3, 4), layer="0", unit=0)
    assert result.nonzero().tolist() == [[0, 0, 0, 0]]
