"""Evidence equals covering whole images one by one, on every kind of network; the field is the smallest box."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from nets import Net, nets
from pictures import noise
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

import deconvviz
from deconvviz.errors import LayerError, ModelError, OptionError, StoreError, UnitError
from deconvviz.occlusion import focus as _focus
from deconvviz.occlusion.evidence import evidence
from deconvviz.occlusion.field import Evidence, effective_field, smallest_box
from deconvviz.occlusion.plan import Unbatched


class Block(nn.Module):
    """A residual block with a stride, whose skip is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.skip = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 6, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.b(self.a(x).relu()) + self.skip(x)).relu()


class Gate(nn.Module):
    """Squeeze and excite: every position reads all others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid()


class Fire(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x).relu(), self.three(x).relu()], 1)


class Attention(nn.Module):
    """Positions as tokens that look at each other, in windows that become a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(4, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        tokens = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.out(tokens.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w))


class Picked(nn.Module):
    """Adds a channel that is chosen by where the image has its largest number; the images of a batch are counted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x[torch.arange(len(x)), x.flatten(1).argmax(1) % x.shape[1]][:, None]


class Padded(nn.Module):
    """A border, a crop by negative padding, an average pool."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(F.pad(x, (2, 1, 0, 3)), (-1, 0, 0, -2)), 3, 1)


def network(part: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if part is not None:
            for p in part.parameters():
                nn.init.normal_(p, std=0.5)
        first = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        return nn.Sequential(*first, part or nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()).double()


def images(count: int = 6, size: tuple[int, int] = (20, 16)) -> torch.Tensor:
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def respond(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What the module called `layer` returns for x, seen by a forward hook."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return seen[0]


def compare(model: nn.Module, x: torch.Tensor, result: Evidence, fill: float = 0.0) -> None:
    """Cover whole images, one at a time, and run the whole network on each."""
    for u, k in itertools.product(range(len(result.units)), range(result.image_ids.shape[1])):
        if result.image_ids[u, k] < 0:
            assert not result.maps[u, k].any() and not result.patches[u, k].any()
            continue
        image, (row, col), unit = x[result.image_ids[u, k]], result.positions[u, k].tolist(), int(result.units[u])
        usual = respond(model, result.layer, image[None])[0, unit, row, col]
        box, patch, maps = result.boxes[u, k].tolist(), result.patches[u, k], result.maps[u, k].double()
        # Where the box lies in the patch's frame: there its pixels are those of the image, and all around is zero.
        corners = [
            c for c in itertools.product(range(patch.shape[1]), range(patch.shape[2])) if fits(patch, image, box, c)
        ]
        expected = [usual - covered_by_hand(model, image, result, box, c, (unit, row, col), fill) for c in corners]
        assert any(torch.allclose(maps, e, rtol=0, atol=1e-6 * max(1.0, abs(float(usual)))) for e in expected)


def fits(patch: torch.Tensor, image: torch.Tensor, box: list[int], corner: tuple[int, int]) -> bool:
    (top, left, bottom, right), (down, across) = box, corner
    frame = torch.zeros_like(patch)
    if down + bottom - top > patch.shape[1] or across + right - left > patch.shape[2]:
        return False
    frame[:, down : down + bottom - top, across : across + right - left] = image[:, top:bottom, left:right]
    return torch.equal(frame, patch)


def covered_by_hand(
    model: nn.Module,
    image: torch.Tensor,
    result: Evidence,
    box: list[int],
    corner: tuple[int, int],
    at: tuple[int, int, int],
    fill: float,
) -> torch.Tensor:
    """The activation (R, C) that is left with each place covered, one forward pass each."""
    (top, left, bottom, right), (unit, row, col) = box, at
    found = torch.zeros(len(result.rows), len(result.cols), dtype=torch.float64)
    for i, j in itertools.product(range(len(result.rows)), range(len(result.cols))):
        covered = image.clone()
        low = int(result.rows[i]) - corner[0] + top, int(result.cols[j]) - corner[1] + left
        high = low[0] + result.size[0], low[1] + result.size[1]
        (y, x), (y_end, x_end) = map(max, low, (top, left)), map(min, high, (bottom, right))
        if y < y_end and x < x_end:
            covered[:, y:y_end, x:x_end] = fill
        found[i, j] = respond(model, result.layer, covered[None])[0, unit, row, col]
    return found


PARTS = {"plain": None, "residual": Block(), "gate": Gate(), "fire": Fire(), "attention": Attention(), "pad": Padded()}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("method", [None, "full"])
def test_equals_covering_whole_images(name, method):
    model, x = network(PARTS[name]), images()
    found = evidence(model, x, layer="4", units=[0, 2], k=3, size=(3, 2), method=method, fill=0.0, progress=False)
    compare(model, x, found)
    expected = method == "full" or name == "attention"
    assert (found.in_full == expected)[found.image_ids >= 0].all()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_taken_from_another_image_far_from_the_occluder(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Picked()).double()
    x = torch.randn(3, 2, 11, 10, dtype=torch.float64)
    found = evidence(model, x, layer="1", units=[0, 3], k=2, size=(4, 3), stride=3, fill=0.0, progress=False)
    compare(model, x, found)


@given(net=nets())
@settings(max_examples=12)
def test_equals_covering_whole_images_on_random_networks(net: Net):
    model, x = net.module(), net.images
    if len(net.shape) != 3:
        return
    try:
        found = evidence(model, x, layer="out", units=[net.unit], k=2, size=2, stride=3, fill=0.0, progress=False)
    except (OptionError, LayerError):  # an occluder larger than the field; units that cannot be told
        return
    compare(model, x, found)


def test_patches_and_places_are_those_of_project():
    model, x = network(), images()
    found = evidence(model, x, layer=2, k=3, progress=False)
    other = deconvviz.project(model, x, layer=2, top=3, progress=False)
    for name in ("units", "activations", "image_ids", "positions", "boxes", "patches"):
        assert torch.equal(getattr(found, name), getattr(other, name)), name
    scan = deconvviz.top(model, x, layers=[2], k=2, progress=False)
    assert evidence(model, x, layer=2, top=scan, progress=False).image_ids.shape == (6, 2)


def test_what_is_computed_lies_inside_the_field():
    """The convolutions of a deep unit see windows much smaller than their maps."""
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))).double()
    seen: list[int] = []
    real = F.conv2d

    def conv2d(data: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(data.shape[-1] * data.shape[-2])
        return real(data, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["deconvviz.occlusion.incremental"], "F", SimpleNamespace(conv2d=conv2d))
        evidence(model, images(2, (64, 64)), layer=5, units=[0], k=2, size=2, progress=False)
    assert 0 < max(seen) <= 13**2  # the field is 11 pixels wide; whole maps have 64²


def test_the_fast_path_is_confirmed_and_falls_back(monkeypatch):
    model, x = network(), images()
    expected = evidence(model, x, layer=2, k=2, method="full", progress=False)
    wrong = _focus._activations
    monkeypatch.setattr(_focus, "_activations", lambda *a, **k: wrong(*a, **k) * 1.001)
    found = evidence(model, x, layer=2, k=2, progress=False)
    assert found.in_full.all() and torch.equal(found.maps, expected.maps)
    with pytest.raises(Unbatched, match=r"depends on the other images of its batch.*method='full'"):
        evidence(model, x, layer=2, k=2, method="incremental", progress=False)


def test_images_that_see_each_other_run_one_by_one():
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean((0, 2, 3), keepdim=True)

    x, inside = images(3), nn.Sequential(Centred(), network()).double()
    top = deconvviz.top(inside, x, layers=["1.4"], k=2, batch_size=1, progress=False)
    found = evidence(inside, x, layer="1.4", top=top, units=[0], size=3, fill=0.0, progress=False)
    compare(inside, x, found)
    assert found.in_full.all()


# ---- the effective field ----


def brute_smallest(mass: torch.Tensor, share: float) -> tuple[int, float]:
    """The fewest cells of a box that holds the share, and the most that such a box holds."""
    boxes = itertools.product(
        itertools.combinations(range(mass.shape[0] + 1), 2), itertools.combinations(range(mass.shape[1] + 1), 2)
    )
    found = [((b - a) * (d - c), -float(mass[a:b, c:d].sum())) for (a, b), (c, d) in boxes]
    return min(one for one in found if -one[1] >= share * float(mass.sum()) * (1 - 1e-9))


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_box_is_the_smallest(seed):
    draw = torch.Generator().manual_seed(seed)
    rows, cols = torch.randint(1, 8, (2,), generator=draw).tolist()
    mass = torch.rand(rows, cols, generator=draw).double() ** 4
    top, left, bottom, right = smallest_box(mass, 0.9)
    area, held = brute_smallest(mass, 0.9)
    assert (bottom - top) * (right - left) == area
    assert float(mass[top:bottom, left:right].sum()) == pytest.approx(-held)


def test_a_unit_that_looks_at_one_corner_has_its_field_there():
    model = nn.Sequential(nn.Conv2d(1, 1, 12), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()[0, 0, 1:4, 6:11] = 1
        model[0].bias.zero_()
    found = evidence(model, torch.rand(4, 1, 30, 30) + 1, layer="1", k=4, size=1, fill=0.0, progress=False)
    assert found.field.tolist() == [[1, 6, 4, 11]]
    assert (found.maps[0, :, 1:4, 6:11] > 1).all() and (found.maps[0].abs() > 1e-4).sum() == 4 * 15
    assert torch.equal(found.over_pixels()[0, :, 1:4, 6:11], found.maps[0, :, 1:4, 6:11])


def test_a_unit_without_evidence_has_an_empty_field():
    assert effective_field(torch.zeros(9, 4, 4), torch.arange(4), torch.arange(4), (1, 1), (4, 4)).tolist() == [0] * 4
    assert effective_field(-torch.ones(9, 4, 4), torch.arange(4), torch.arange(4), (1, 1), (4, 4)).tolist() == [0] * 4


# ---- files, mistakes ----


def test_it_is_saved_streamed_and_loaded(tmp_path):
    model, x = network(), images()
    found = evidence(model, x, layer=2, k=2, progress=False)
    found.save(tmp_path / "saved")
    streamed = evidence(model, x, layer=2, k=2, out=tmp_path / "streamed", progress=False)
    assert Evidence.load(tmp_path / "saved") == found == streamed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "streamed"]
    assert repr(found) == "Evidence of layer 2: 4: 6 units × 2 images, 9×9 px, 9×9 places"


KILLED = """
import os, signal, sys
import deconvviz.jobs.draft as draft
sys.path[:0] = sys.argv[1:3]
from test_evidence import evidence, images, network
count, mark = [2], draft.Draft.mark
def mark_and_die(self, block):
    mark(self, block)
    count[0] -= 1
    if count[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
draft.Draft.mark, draft.EVERY = mark_and_die, 0
evidence(network(), images(), layer=2, k=2, out=sys.argv[3], progress=False)
"""


def test_a_killed_job_goes_on(tmp_path, monkeypatch):
    out, here = tmp_path / "result", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(Path(deconvviz.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(here), str(here.parent), str(out)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr
    asked: list[int] = []
    real = sys.modules["deconvviz.occlusion.evidence"].run_focused
    monkeypatch.setattr(
        sys.modules["deconvviz.occlusion.evidence"], "run_focused", lambda *a, **k: (asked.append(1), real(*a, **k))
    )
    found = evidence(network(), images(), layer=2, k=2, out=out, progress=False)
    used = len(set(found.image_ids[found.image_ids >= 0].tolist()))
    assert len(asked) == used - 2
    assert found == evidence(network(), images(), layer=2, k=2, progress=False)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (OptionError, {"method": "fast"}, "method='fast'"),
        (OptionError, {"size": 50}, "the occluder is 50×50, larger than the image"),
        (OptionError, {"stride": 0}, "stride=0"),
        (OptionError, {"fill": "pink"}, "fill='pink'"),
        (UnitError, {"units": [99]}, "unit 99 is out of range"),
        (LayerError, {"layer": "nothing"}, "there is no layer 'nothing'"),
        (StoreError, {"out": "/proc/nothing/here"}, "cannot write"),
    ],
)
def test_mistakes_are_named_before_the_scan(error, options, message, monkeypatch):
    monkeypatch.setattr(
        sys.modules["deconvviz.projection.strongest"], "scan_top", lambda *_, **__: pytest.fail("scanned")
    )
    with pytest.raises(error, match=message):
        evidence(network(), images(), **{"layer": 2, "progress": False, **options})


def test_numbers_that_are_not_finite_are_refused():
    model = network()
    model[0].weight.data.mul_(1e6)
    with pytest.raises(ModelError, match="NaN or infinity"):
        evidence(model.float(), images().float(), layer=2, k=1, fill=torch.full((3, 20, 16), 3e38), progress=False)


# ---- coarse to fine, and projections beside ----


def test_refine_measures_where_the_map_changes_and_interpolates_the_rest():
    model, x = network(), torch.rand(3, 3, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    chosen = {"layer": "4", "units": [0, 2, 5], "k": 2, "size": 2, "stride": 1, "progress": False}
    whole, found = evidence(model, x, **chosen), evidence(model, x, **chosen, refine=3)
    assert whole.measured is None and found.measured is not None
    there = found.measured & found.mask[:, :, None, None]
    assert 0.2 < there.double().mean() < 0.98
    assert torch.equal(found.maps[there], whole.maps[there])
    # What was left out is what lies between neighbours on the coarse grid, of which none differs by a fifth of the range.
    span = whole.maps.flatten(2).amax(2).clamp_min(0) - whole.maps.flatten(2).amin(2).clamp_max(0)
    outside = ~found.measured & found.mask[:, :, None, None]
    rows, cols = (sorted({*range(0, n, 3), n - 1}) for n in whole.maps.shape[-2:])
    corners = found.maps[:, :, rows][:, :, :, cols]
    for unit, image, row, col in outside.nonzero().tolist():
        i = max(n for n, at in enumerate(rows) if at <= row)
        j = max(n for n, at in enumerate(cols) if at <= col)
        near = corners[unit, image, i : i + 2, j : j + 2]
        value = found.maps[unit, image, row, col]
        assert near.min() - 1e-6 <= value <= near.max() + 1e-6
        assert near.max() - near.min() <= 0.2 * span[unit, image] + 1e-6


def test_refine_is_a_whole_number_from_two_on():
    with pytest.raises(OptionError, match="refine"):
        evidence(network(), torch.rand(1, 3, 12, 12), layer="4", refine=1, progress=False)


def test_with_a_rule_the_projections_come_along(tmp_path):
    model, x = network(), torch.rand(4, 3, 20, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    chosen = {"layer": "4", "units": [0, 3], "k": 2, "progress": False}
    for rule in ("deconvnet", "guided"):
        found = evidence(model, x, **chosen, rule=rule, size=4, stride=4, out=tmp_path / rule)
        expected = deconvviz.project(model, x, **chosen, rule=rule)
        assert torch.equal(found.projections, expected.projections) and found.rule == rule
        assert torch.equal(found.patches, expected.patches) and found.note == expected.note
        assert torch.allclose(found.likeness, expected.likeness, equal_nan=True)
        assert len(found.plot().axes) == 3 and len(found[3].plot().axes) == 3
    assert evidence(model, x, **chosen, size=4, stride=4).projections is None


def test_results_keep_what_the_images_are_called_and_go_unit_by_unit(tmp_path):
    for n, label in enumerate(("cats", "dogs", "dogs")):
        (tmp_path / label).mkdir(exist_ok=True)
        noise((18, 20), 40 + 50 * n, n).convert("RGB").save(tmp_path / label / f"{n}.png")
    prepared = {"preprocess": lambda picture: pil_to_tensor(picture).float() / 255}
    chosen = {"layer": "4", "units": [0, 3, 5], "k": 2, "progress": False, **prepared}
    model = network().float()
    names = {0: "cats/0.png", 1: "dogs/1.png", 2: "dogs/2.png"}
    for found in (evidence(model, tmp_path, **chosen, size=4, stride=4), deconvviz.project(model, tmp_path, **chosen)):
        shown = set(found.image_ids[found.mask].tolist())
        assert found.names == {i: names[i] for i in shown} and set(found.labels) == shown
        assert [one.units.tolist() for one in found] == [[0], [3], [5]] and len(found) == 3
        one = found[3]
        assert torch.equal(one.patches[0], found.patches[1]) and type(one) is type(found)
        assert set(one.names) == set(one.image_ids[one.mask].tolist())
        found.save(tmp_path / "result")
        assert type(found).load(tmp_path / "result") == found
        columns = found.columns()
        assert columns["name"] == [names[i] for i in columns["image_id"].tolist()]
        assert columns["label"] == [names[i].split("/")[0] for i in columns["image_id"].tolist()]
    with pytest.raises(UnitError, match="unit 1 is not in this result"):
        found[1]
    top = deconvviz.top(model, tmp_path, layers=["4"], k=2, progress=False, **prepared)
    assert top.names.items() <= names.items() and top.columns()["name"][0] in names.values()
    moved = top.shifted(10)
    assert moved.names == {i + 10: name for i, name in top.names.items()}


@pytest.mark.parametrize("noise", [lambda x: F.dropout(x, 0.5, True), lambda x: F.fractional_max_pool2d(x, 2, (9, 9))])
def test_a_network_that_draws_random_numbers_is_refused(noise):
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return torch.relu(self.b(noise(torch.relu(self.a(x)))))

    for method in (None, "full", "incremental"):
        with pytest.raises(ModelError, match="draws random numbers"):
            evidence(Random(), torch.rand(2, 3, 16, 16), layer="b", k=1, size=3, method=method, progress=False)


def test_a_layer_whose_activation_saturates(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3), nn.ReLU6())
    with torch.no_grad():
        model[2].bias += 5.8  # some places are at the end
    model, pictures = model.double(), images()
    result = evidence(model, pictures, layer="3", units="all", k=2, size=3, stride=2, progress=False)
    expected = deconvviz.project(model, pictures, layer="3", units="all", k=2, progress=False)
    assert (result.activations == 6).any() and torch.equal(result.preactivations, expected.preactivations)
    assert torch.equal(result[3].preactivations[0], result.preactivations[3])
    compare(model, pictures, result)
    result.save(tmp_path / "saturated")
    assert Evidence.load(tmp_path / "saturated") == result
