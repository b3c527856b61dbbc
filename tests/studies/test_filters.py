"""Each score of first-layer filters against its definition, and on filters that have the fault or not."""

import math

import numpy as np
import pytest
import reference_studies as slow
import torch
from PIL import Image
from torch import nn

from deconvviz import zoo
from deconvviz.errors import ImageError, LayerError, ModelError, OptionError
from deconvviz.studies import spectrum as _spectrum
from deconvviz.studies.filters import Filters, compare_filters, filters


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grating(frequency, degrees=0.0, phase=0.0, size=11, colours=(1.0, 1.0, 1.0)):
    """Stripes in a soft window: cycles per pixel, direction of change counterclockwise from the rows."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = -place[:, None], place[None, :]
    along = x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))
    window = torch.exp(-(x.square() + y.square()) / (2 * (size / 4) ** 2))
    plane = torch.cos(2 * math.pi * frequency * along + phase) * window
    return torch.tensor(colours, dtype=torch.float64)[:, None, None] * plane


def model_of(weights, stride=2, head=True):
    """A network whose first layer has these filters (F, C, h, w)."""
    first = nn.Conv2d(weights.shape[1], len(weights), tuple(weights.shape[2:]), stride=stride, bias=False)
    first.weight.data = weights.float()
    rest = [nn.ReLU(), nn.Conv2d(len(weights), 3, 3, bias=False), nn.ReLU()] if head else []
    model = nn.Sequential(first, *rest)
    if head:
        model[2].weight.data.fill_(1.0)
    return model.eval()


def scores(weights, **options):
    return filters(model_of(weights), **options)


def healthy(count=8):
    """Gratings of the middle frequencies, all different."""
    return torch.stack([grating(0.15 + 0.01 * n, 180 / count * n, size=11) for n in range(count)])


# ---- against the definitions ----


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 4, 3), (2, 2, 5)])
def test_peak_frequencies_follow_the_definition(shape):
    weights = noise(4, *shape)
    found, _ = _spectrum.peaks(weights, 12)
    assert found.tolist() == pytest.approx([slow.peak_frequency(w, 12) for w in weights])


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (4, 2)])
def test_folded_power_follows_the_definition(stride, natural):
    weights = noise(3, 2, 4, 4)
    found = _spectrum.ratio(*_spectrum.folded(weights, stride, 8, natural=natural))
    assert found.tolist() == pytest.approx([slow.folded_share(w, stride, 8, natural) for w in weights])


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 2, 4)])
def test_likeness_follows_the_definition(shape, monkeypatch):
    weights = noise(5, *shape)
    expected = torch.tensor([[slow.likeness(a, b) for b in weights] for a in weights])
    assert torch.allclose(_spectrum.likeness(weights), expected.double(), atol=1e-6)
    monkeypatch.setattr(_spectrum, "_BLOCK", 1)  # one filter at a time
    assert torch.allclose(_spectrum.likeness(weights), expected.double(), atol=1e-6)


def test_rms_and_colour_follow_the_definition():
    weights = noise(5, 3, 7, 7).float().double()
    result = scores(weights)
    assert result.rms.tolist() == pytest.approx(
        [math.sqrt(sum(v * v for v in w.flatten().tolist()) / 147) for w in weights]
    )
    assert result.colour.tolist() == pytest.approx([slow.colour_share(w) for w in weights])


# ---- filters made to have the fault, and not to have it ----


def test_healthy_filters_have_no_fault():
    result = scores(healthy())
    assert not result.dead.any() and not result.dominant.any() and len(result.duplicates) == 0
    assert result.shares == (0.0, 1.0, 0.0)
    assert result.colour.tolist() == pytest.approx([0.0] * 8, abs=1e-10)


@pytest.mark.parametrize("dead", [1, 6])
def test_dead_filters_are_found_even_if_they_are_the_most(dead):
    weights = healthy()
    weights[:dead] = 0.01 * noise(dead, 3, 11, 11)
    result = scores(weights)
    assert result.dead.tolist() == [True] * dead + [False] * (8 - dead)
    assert not result.dominant.any()


def test_all_filters_zero_are_all_dead():
    result = scores(torch.zeros(4, 3, 7, 7))
    assert result.dead.all() and not result.dominant.any() and len(result.duplicates) == 0
    assert result.coverage == 0 and result.plot() is not None


def test_a_dominant_filter_is_found():
    weights = healthy()
    weights[3] *= 8
    assert scores(weights).dominant.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("change", ["sign", "shift", "both", "scale"])
def test_duplicates_are_found_up_to_sign_shift_and_size(change):
    small = torch.zeros(6, 3, 11, 11, dtype=torch.float64)
    small[:, :, 2:9, 2:9] = noise(6, 3, 7, 7)
    small[4] = small[1].roll((2, -1), (1, 2)) if change in ("shift", "both") else small[1]
    small[4] *= {"sign": -1, "both": -1, "scale": 0.5}.get(change, 1)
    assert scores(small).duplicates.tolist() == [[1, 4]]


@pytest.mark.parametrize(
    ("colours", "share"), [((1, 1, 1), 0.0), ((1, -1, 0), 1.0), ((1, 0, 0), 2 / 3), ((-2, -2, -2), 0.0)]
)
def test_share_of_colour(colours, share):
    weights = torch.stack([grating(0.2, colours=colours)] * 2)
    assert scores(weights).colour.tolist() == pytest.approx([share] * 2, abs=1e-6)


@pytest.mark.parametrize("frequency", [0.1, 0.2, 0.3, 0.42])
@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 170])
def test_frequency_and_orientation_of_gratings(frequency, degrees):
    result = scores(grating(frequency, degrees, phase=math.pi / 2, size=15)[None])
    assert result.frequency.item() == pytest.approx(frequency, abs=0.03)
    difference = abs(result.orientation.item() - degrees)
    assert min(difference, 180 - difference) < 6


def test_blobs_are_low_gratings_middle_checkerboards_high():
    weights = torch.stack([grating(0.0), grating(0.2), grating(0.5), grating(0.48, 90)])
    assert scores(weights).shares == (0.25, 0.25, 0.5)


def test_coverage_is_whole_for_all_bins_and_small_for_one():
    low, high = 1 / 11, 3 / 8
    middles = [low * (high / low) ** share for share in (0.3, 0.75)]
    every = torch.stack([grating(f, 30 * n, phase=math.pi / 2, size=11) for f in middles for n in range(6)])
    assert scores(every).coverage == 1.0
    assert scores(torch.stack([grating(0.2)] * 12)).coverage == pytest.approx(1 / 12)


def test_the_band_may_be_given():
    weights = torch.stack([grating(0.2)] * 2)
    assert scores(weights, band=(0.3, 0.4)).shares == (1.0, 0.0, 0.0)


def test_a_stride_folds_what_is_above_half_a_cycle_per_stride():
    weights = torch.stack([grating(0.04), grating(0.2), grating(0.2, 90), grating(0.35)])
    wide, narrow = (filters(model_of(weights, stride)).folded for stride in (4, 2))
    assert wide[0] < 0.1 and (wide[1:] > 0.8).all()
    assert (narrow[:3] < 0.1).all() and narrow[3] > 0.8
    assert (filters(model_of(weights, 1)).folded == 0).all()


def test_layer_2_is_aliased_by_fine_filters_at_a_wide_stride_and_not_by_coarse_ones():
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fine = torch.stack([grating(0.3, 30 * n) for n in range(6)])
    coarse = torch.stack([grating(0.05, 30 * n) for n in range(6)])
    found = {
        (name, stride): filters(model_of(weights, stride), images, progress=False).aliasing
        for name, weights in (("fine", fine), ("coarse", coarse))
        for stride in (1, 4)
    }
    assert (found["fine", 4] > 0.8).all() and (found["coarse", 4] < 0.2).all()
    assert (found["fine", 1] == 0).all() and (found["coarse", 1] == 0).all()


def test_the_aliasing_score_is_the_share_of_the_projections_power():
    from deconvviz import project

    model = model_of(healthy(), 4)
    images = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    result = filters(model, images, units=[1], progress=False)
    seen = project(model, images, layer=2, units=[1], progress=False).projections[0].double()
    size = seen.shape[-1]
    power = torch.fft.fft2(seen).abs().square().sum((0, 1))
    power[0, 0] = 0
    fine = torch.fft.fftfreq(size).abs() > 1 / 8
    assert result.aliasing_units.tolist() == [1]
    expected = power[fine[:, None] | fine].sum() / power.sum()
    assert result.aliasing.item() == pytest.approx(expected.item())


# ---- which layer ----


def test_the_first_convolution_is_found_behind_normalization():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.conv, self.next = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 5, stride=(1, 3)), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return self.next(self.conv(self.bn((x - 0.5) / 0.25)).relu())

    result = filters(Net().eval())
    assert result.name == "conv" and result.stride == (1, 3) and result.weights.shape == (4, 3, 5, 5)


def test_no_or_two_first_layers_are_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(ModelError, match="2 convolutions read the images"):
        filters(Two())
    with pytest.raises(LayerError, match="no 2-D convolution of this model reads the images"):
        filters(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3)))


@pytest.mark.parametrize("band", [(0.3, 0.2), (0, 0.2), (0.1, 2)])
def test_a_band_that_is_none_is_refused(band):
    with pytest.raises(OptionError, match="expected \\(lowest, highest\\) in cycles per pixel"):
        scores(healthy(), band=band)


def test_without_a_layer_2_there_is_no_aliasing_score():
    model = model_of(healthy(), head=False)
    assert math.isnan(filters(model).summary()["aliasing in layer 2"])
    with pytest.raises(LayerError, match="there is no layer 2"):
        filters(model, torch.randn(1, 3, 32, 32), progress=False)


# ---- several networks ----


def test_comparison_holds_all_to_one_band_and_prints_a_table():
    large, small = healthy(), torch.stack([grating(0.2, size=7)] * 3)
    result = compare_filters({"large": model_of(large, 4), "small": model_of(small)})
    assert result["large"].band == result["small"].band == (1 / 7, 3 / 8)
    assert set(result.summary()) == {"large", "small"}
    lines = result.table().splitlines()
    assert lines[0].split() == ["large", "small"] and lines[1].split() == ["filters", "8", "3"]
    with pytest.raises(OptionError, match="no network 'x' in this comparison, it has large, small"):
        result["x"]


def test_comparing_nothing_is_refused():
    with pytest.raises(OptionError, match="expected a dict of names and networks"):
        compare_filters({})
    with pytest.raises(OptionError, match="expected a dict of names and networks"):
        compare_filters([model_of(healthy())])


@pytest.mark.parametrize("scale", ["all", "filter"])
def test_pictures_of_one_and_of_two(scale):
    weights = healthy()
    weights[0], weights[1] = 0, weights[2]
    one = scores(weights)
    assert len(one.plot(scale=scale).subfigs) == 2
    both = compare_filters({"a": model_of(weights), "b": model_of(noise(5, 4, 3, 3))})
    assert both.plot(scale=scale) is not None


def test_an_unknown_scale_is_refused():
    with pytest.raises(OptionError, match="Give 'all' or 'filter'"):
        scores(healthy()).plot(scale="own")


def test_sheets_are_gray_at_zero_and_share_one_scale():
    from deconvviz.plotting.filters import _tiles

    weights = torch.zeros(3, 3, 7, 7)
    weights[0], weights[1] = 1.0, 0.25
    tiles = _tiles(weights, "all")
    assert tiles[2].min() == tiles[2].max() == 0.5 and tiles[0].max() == 1.0 and tiles[1].max() < 0.7
    assert _tiles(weights, "filter")[1].max() == 1.0


def test_the_result_is_a_frozen_dataclass():
    result = scores(healthy())
    assert isinstance(result, Filters)
    with pytest.raises(AttributeError):
        result.name = "other"


class _Beside(nn.Module):
    """A network that takes two things."""

    def __init__(self, weights):
        super().__init__()
        self.body = model_of(weights)

    def forward(self, images, *, gain):
        return self.body(images * gain)


def test_a_call_says_how_the_network_is_called():
    model, images = _Beside(healthy()).eval(), noise(3, 3, 40, 40).float()
    call = lambda model, images: model(images, gain=1.0)  # noqa: E731
    found, wanted = (
        filters(model, images, call=call, progress=False),
        filters(model.body, images, progress=False),
    )
    assert found.name == "body.0" and torch.equal(found.weights, wanted.weights)
    assert len(found.aliasing) and torch.equal(found.aliasing, wanted.aliasing)
    own = {"one": lambda model, images: model(images, gain=2.0), "other": call}
    both = compare_filters({"one": model, "other": model}, images, call=own, progress=False)
    assert torch.equal(both["other"].aliasing, wanted.aliasing)
    assert compare_filters({"one": model}, call=call)["one"].name == "body.0"
    with pytest.raises(OptionError, match="call="):
        filters(model, call="gain")


def test_an_image_that_cannot_be_read_is_skipped_and_listed(tmp_path):
    model = zoo.create("zfnet64")
    for number in range(3):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    expected = filters(model, str(tmp_path), units=[0, 1], progress=False)
    (tmp_path / "0a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        filters(model, str(tmp_path), units=[0, 1], progress=False)
    found = filters(model, str(tmp_path), units=[0, 1], on_error="skip", progress=False)
    assert torch.equal(found.aliasing, expected.aliasing) and expected.skipped == ()
    assert [number for number, _ in found.skipped] == [1] and "skipped image 1" in found.table()
    found.save(tmp_path / "found")
    assert Filters.load(tmp_path / "found").skipped == found.skipped
