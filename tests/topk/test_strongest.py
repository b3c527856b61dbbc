"""Strongest means strongest: ties at an activation's end, places that nothing excites, one place per origin."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from deconvviz import project, top
from deconvviz.errors import OptionError
from deconvviz.images import ImageSet, Preprocess, samples
from deconvviz.images.sources import Tensors
from deconvviz.plotting.projections import compose
from deconvviz.topk.result import TopK

PIXELS = Preprocess((8, 8), 8, (0.0,) * 3, (1.0,) * 3)


class Ending(nn.Module):
    """A convolution with an activation, and what may follow it."""

    def __init__(self, activation, then=None, scale=20.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.activation, self.then = nn.Conv2d(3, 5, 3), activation, then or nn.Identity()
        self.conv.weight.data.mul_(scale)
        self.eval()

    def forward(self, x):
        return self.then(self.activation(self.conv(x)))


def images(n=24):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def ranked(before, after, k):
    """Sort each unit's images by what went in (falling), then by number; give ids, positions and both values."""
    n, units, _, width = before.shape
    flat = before.flatten(2)
    peaks = flat.amax(2)
    ids = torch.tensor([sorted(range(n), key=lambda i: (-peaks[i, u].item(), i))[:k] for u in range(units)])
    unit = torch.arange(units)[:, None]
    place = (flat == peaks[..., None]).int().argmax(2)[ids, unit]
    values = after.flatten(2)[ids, unit, place]
    return values, peaks[ids, unit], ids, torch.stack([place // width, place % width], 2)


class Inside(nn.Module):
    """Calls a function, as models without modules do."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


ENDS = {
    "relu6": nn.ReLU6(),
    "relu6 in place": nn.ReLU6(inplace=True),
    "hardtanh": nn.Hardtanh(),
    "hardtanh with its bounds": nn.Hardtanh(0, 2),
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softsign": nn.Softsign(),
    "clamp": Inside(lambda x: x.clamp(0, 3)),
    "clamp of one end": Inside(lambda x: torch.clamp(x, max=2.5)),
    "clamp in place": Inside(lambda x: x.clamp_(min=0, max=1)),
    "clip": Inside(lambda x: torch.clip(x, 0, 1)),
    "clamp_max": Inside(lambda x: torch.clamp_max(x, 1)),
    "a tensor as bound": Inside(lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(1.0))),
    "functional": Inside(F.relu6),
    "method": Inside(lambda x: x.sigmoid()),
    "expit": Inside(torch.special.expit),
}


@pytest.mark.parametrize("activation", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [5, 64])
def test_ties_at_the_end_are_ranked_by_what_went_in(activation, batch_size):
    model, x = Ending(activation), images()
    with torch.no_grad():
        before = model.conv(x)
        after = activation(before.clone())
    values, inputs, ids, positions = ranked(before, after, 6)
    found = top(model, x, layers="activation", k=6, batch_size=batch_size, progress=False)["activation"]
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.preactivations, inputs)
    assert torch.equal(found.image_ids, ids) and torch.equal(found.positions, positions)
    assert (values[:, 0] == values[:, -1]).any() or "softsign" in str(activation).lower()  # there are ties


@pytest.mark.parametrize(
    "then",
    [
        nn.Dropout(),
        nn.MaxPool2d(2),
        nn.AdaptiveMaxPool2d(3),
        Inside(lambda x: torch.cat([x, x.clone()], 1)),
        nn.Identity(),
    ],
    ids=["dropout", "max-pool", "adaptive max-pool", "concatenation", "identity"],
)
def test_what_only_passes_values_on_does_not_hide_the_activation(then):
    model, x = Ending(nn.ReLU6(), then), images()
    with torch.no_grad():
        before = then.eval()(model.conv(x))
        after = then(F.relu6(model.conv(x)))
    values, inputs, ids, _ = ranked(before, after, 6)
    found = top(model, x, layers="then", k=6, progress=False)["then"]
    assert torch.equal(found.image_ids, ids)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.preactivations, inputs)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.SiLU(),
        nn.Hardswish(),
        Inside(lambda x: x.clamp(min=0)),
        Inside(lambda x: x.clamp(0, float("inf"))),
    ],
    ids=["relu", "silu", "hardswish", "clamp below", "clamp to infinity"],
)
def test_activations_without_an_upper_end_are_ranked_by_themselves(activation):
    found = top(Ending(activation), images(), layers="activation", progress=False)["activation"]
    assert found.preactivations is None


def test_bounds_that_differ_from_place_to_place_are_no_order():
    bounds = torch.arange(36.0).view(6, 6)
    found = top(Ending(Inside(lambda x: torch.minimum(x, bounds).clamp(max=bounds))), images(), layers="activation")
    assert found["activation"].preactivations is None


def test_saturated_results_merge_resume_and_load(tmp_path):
    model, x = Ending(nn.ReLU6()), images()
    whole = top(model, x, layers="activation", k=6, batch_size=4, progress=False)
    parts = top(model, x[:8], layers="activation", k=6, progress=False).merge(
        top(model, x[8:], layers="activation", k=6, progress=False).shifted(8)
    )
    assert torch.equal(parts["activation"].image_ids, whole["activation"].image_ids)
    torch.testing.assert_close(parts["activation"].preactivations, whole["activation"].preactivations)
    whole.save(tmp_path / "file")
    assert TopK.load(tmp_path / "file") == whole


# ---- places that nothing excites


def sparse():
    """Five units: one that three images excite, one that none does, one that all do, two negative ones."""
    model = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU()).eval()
    model[0].weight.data = torch.tensor([1.0, 0, 0, 0, -1]).view(5, 1, 1, 1)
    model[0].bias.data = torch.tensor([0.0, -1, 1, 0, -9])
    x = torch.full((8, 1, 4, 4), -1.0)
    x[[1, 4, 6], 0, 2, 3] = torch.tensor([3.0, 7.0, 5.0])
    return model, x


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_places_that_nothing_excites_are_empty(batch_size):
    model, x = sparse()
    result = top(model, x, layers="1", k=5, batch_size=batch_size, progress=False)
    found = result["1"]
    assert found.image_ids.tolist() == [[4, 6, 1, -1, -1], [-1] * 5, [0, 1, 2, 3, 4], [-1] * 5, [-1] * 5]
    assert found.values.tolist() == [[7, 5, 3, 0, 0], [0] * 5, [1] * 5, [0] * 5, [0] * 5]
    assert found.mask.sum(1).tolist() == [3, 0, 5, 0, 0] and found.silent == 3
    assert not found.positions[~found.mask].any()
    assert "no response in 8 images" in result.table() and result.table().split()[-1] == "3"
    halves = top(model, x[:4], layers="1", k=5, progress=False), top(model, x[4:], layers="1", k=5, progress=False)
    assert halves[0].merge(halves[1].shifted(4))["1"] == found == halves[1].shifted(4).merge(halves[0])["1"]


def test_negative_responses_of_a_convolution_are_responses():
    model, x = sparse()
    found = top(model, x, layers="0", k=3, progress=False)["0"]
    assert found.image_ids[0].tolist() == [4, 6, 1] and found.values[1].tolist() == [-1] * 3
    assert found.image_ids[1].tolist() == [0, 1, 2] and found.image_ids[3].tolist() == [-1] * 3
    assert (found.image_ids[4] >= 0).all()


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.ReLU6(), nn.Hardtanh()])
def test_what_a_rectifier_lets_through_of_negative_values_excites_nobody(activation):
    model, x = sparse()
    model[1] = activation
    found = top(model, x, layers="1", k=3, progress=False)["1"]
    assert found.silent == 3 and found.image_ids[0].tolist() == [4, 6, 1] and (found.values >= 0).all()


def test_a_pool_of_nothing_is_nothing():
    model, x = sparse()
    model.append(nn.MaxPool2d(2))
    found = top(model, x, layers="2", k=5, progress=False)["2"]
    assert found.image_ids[0].tolist() == [4, 6, 1, -1, -1] and found.silent == 3


def test_empty_places_have_empty_pictures():
    model, x = sparse()
    result = project(model, x, layer="1", units=[0, 1, 2], top=5, progress=False)
    empty = result.image_ids < 0
    assert empty.sum(1).tolist() == [2, 5, 0]
    assert not result.projections[empty].any() and not result.patches[empty].any() and not result.boxes[empty].any()
    assert result.projections[0, :3].flatten(1).any(1).all()
    result.plot()


# ---- one place per origin


def test_of_each_origin_the_strongest_counts():
    model, x = Ending(nn.ReLU(), scale=1), images(40)
    origins = [i // 4 for i in range(40)]
    opened = ImageSet(Tensors(x), PIXELS, labels=[i % 3 for i in range(40)], origins=origins)
    with torch.no_grad():
        peaks = F.relu(model.conv(x)).amax((2, 3))
    for distinct, keys in (("source", origins), ("label", opened.labels)):
        count = min(6, len(set(keys)))
        for batch_size in (1, 7, 40):
            found = top(
                model, opened, layers="activation", k=6, batch_size=batch_size, distinct=distinct, progress=False
            )
            for unit, row in enumerate(found["activation"].image_ids.tolist()):
                best = {}
                for i in sorted(range(40), key=lambda i: (-peaks[i, unit].item(), i)):
                    best.setdefault(keys[i], i)
                expected = list(best.values())[:6]
                assert row[:count] == expected and row[count:] == [-1] * (6 - count)
            with pytest.raises(OptionError, match=r"scans with distinct= cannot be merged"):
                found.merge(found.shifted(40))


def test_distinct_scans_resume_and_load(tmp_path):
    class Stopping(nn.Module):
        left = 10**9

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return self.network(x)

    model = Stopping(Ending(nn.ReLU6()))
    opened = ImageSet(Tensors(images()), PIXELS, origins=[i // 3 for i in range(24)])
    how = {"layers": "network.activation", "k": 4, "batch_size": 4, "distinct": "source", "progress": False}
    whole = top(model, opened, out=tmp_path / "whole", **how)
    model.left = 4
    with pytest.raises(KeyboardInterrupt):
        top(model, opened, out=tmp_path / "parts", **how)
    model.left = 10**9
    assert top(model, opened, out=tmp_path / "parts", **how) == whole == TopK.load(tmp_path / "whole")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes() and whole.distinct == "source"


def test_of_each_sample_photo_one_window_counts():
    windows = samples(64, 200)
    model = Ending(nn.ReLU(), scale=1)
    found = top(model, windows, layers="activation", distinct="source", progress=False)["activation"]
    for row in found.image_ids.tolist():
        photos = [windows.labels[i] for i in row if i >= 0]
        assert len(set(photos)) == len(photos) == 9


def test_of_each_file_one_place_counts(tmp_path):
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    model = Ending(nn.ReLU(), scale=1)
    twice = [str(tmp_path / f"{i % 4}.png") for i in range(8)]
    found = top(model, twice, layers="activation", preprocess=PIXELS, distinct="source", progress=False)["activation"]
    assert (found.image_ids[:, :4] < 4).all() and (found.image_ids[:, 4:] == -1).all()


def test_distinct_that_has_no_meaning():
    with pytest.raises(OptionError, match=r"distinct='photo' has no meaning here. Give 'source', 'label' or None"):
        top(Ending(nn.ReLU()), images(), layers="activation", distinct="photo", progress=False)
    with pytest.raises(OptionError, match=r"distinct='label': the images come without labels"):
        top(Ending(nn.ReLU()), images(), layers="activation", distinct="label", progress=False)


# ---- what project makes of it


def test_projections_say_what_is_silent_what_went_in_and_what_was_skipped(tmp_path):
    model, x = sparse()
    result = project(model, x, layer="1", units=[0, 1, 3], k=4, progress=False)
    assert str(result).endswith("2 units with no response in 8 images") and result.mask.sum(1).tolist() == [3, 0, 0]
    ending = Ending(nn.ReLU6())
    scan = top(ending, images(), layers="activation", k=4, progress=False)["activation"]
    for out in (None, tmp_path / "file"):
        result = project(ending, images(), layer="activation", units=[0, 3], k=4, out=out, progress=False)
        torch.testing.assert_close(result.preactivations, scan.preactivations[[0, 3]])
    for i in range(6):
        values = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    how = {"layer": "activation", "units": [0], "k": 6, "preprocess": PIXELS, "progress": False}
    found = project(Ending(nn.ReLU(), scale=1), tmp_path / "images", on_error="skip", **how)
    assert [i for i, _ in found.skipped] == [0] and 0 not in found.image_ids and found.count == 6
    found.save(tmp_path / "skipped")
    assert type(found).load(tmp_path / "skipped") == found


def test_projections_of_distinct_origins():
    opened = ImageSet(Tensors(images(40)), PIXELS, origins=[i // 4 for i in range(40)])
    found = project(
        Ending(nn.ReLU(), scale=1), opened, layer="activation", units="all", distinct="source", progress=False
    )
    for row in found.image_ids.tolist():
        assert len({i // 4 for i in row}) == len(row) == 9


def test_pictures_of_a_transform_that_swaps_the_colours_are_in_true_colours():
    def swap(picture):
        return (transforms.functional.to_tensor(picture) * 255)[[2, 1, 0]] - 100

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 5, padding=2), nn.ReLU()).eval()
    model[0].bias.data.fill_(9e3)  # every unit sees something
    found = project(
        model, [Image.new("RGB", (12, 12), "red")], layer="1", units=[0], k=1, preprocess=swap, progress=False
    )
    assert found.order == (2, 1, 0)
    photos = compose(found)[1]
    red = (photos[..., 0] > 0.9) & (photos[..., 1:] < 0.1).all(-1)
    blue = (photos[..., 2] > 0.9) & (photos[..., :2] < 0.1).all(-1)
    assert red.any() and not blue.any()
