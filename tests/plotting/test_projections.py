"""Pictures: shapes, exact pixel values, and a figure that shows the composed arrays pixel for pixel."""

import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from deconvviz.errors import OptionError, UnitError
from deconvviz.plotting import projections as plot
from deconvviz.results.base import png


def made(units=2, k=9, size=8, channels=3, seed=0, **fields):
    """A result of noise, its boxes well inside the image."""
    draw = torch.Generator().manual_seed(seed)
    shape = (units, k, channels, size, size)
    result = {
        "layer": "features.10",
        "units": torch.arange(units) * 3,
        "activations": torch.rand(units, k, generator=draw),
        "image_ids": torch.arange(units * k).view(units, k),
        "boxes": torch.tensor([5, 6, 5 + size, 6 + size]).expand(units, k, 4).clone(),
        "patches": torch.rand(shape, generator=draw),
        "projections": torch.randn(shape, generator=draw),
        "number": None,
        "rule": "deconvnet",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "note": "",
        "beside": (),
        "lost_at": lambda row, k: "",
    }
    return SimpleNamespace(**({"order": None} | result | fields))


def tile(side, unit, index, size=8, factor=10):
    """Cut one tile of the first row of blocks out of a composed side, one pixel per pixel."""
    row, column = divmod(index, 3)
    step = size * factor + 1
    x0 = 22 + unit * (3 * step + 1 + 22) + 1 + column * step
    y0 = 22 + 1 + row * step
    piece = side[y0 : y0 + size * factor, x0 : x0 + size * factor]
    assert (piece == np.repeat(np.repeat(piece[::factor, ::factor], factor, 0), factor, 1)).all()
    return torch.from_numpy(piece[::factor, ::factor]).permute(2, 0, 1)


def most(values):
    """The value that half a percent exceed."""
    sizes = values.abs().flatten().sort().values
    return sizes[int(np.ceil(0.995 * len(sizes))) - 1]


def small(**fields):
    """A result whose tiles are shown at ten times their size: five units, three in the first row."""
    return made(units=5, **fields)


def test_both_sides_have_one_shape_and_lie_within_0_and_1():
    left, right = plot.compose(small())
    width = 3 * (3 * 81 + 1 + 22) + 22
    assert left.shape == right.shape == (2 * (3 * 81 + 1 + 22) + 22, width, 3)
    assert left.dtype == right.dtype == np.float32
    assert 0 <= left.min() and left.max() <= 1 and 0 <= right.min() and right.max() <= 1


def test_every_tile_is_in_its_place():
    result = small()
    left, right = plot.compose(result)
    for unit in range(3):
        largest = most(result.projections[unit])
        for index in range(9):
            expected = 0.5 + 0.5 * (result.projections[unit, index] / largest).clamp(-1, 1)
            torch.testing.assert_close(tile(left, unit, index), expected)
            torch.testing.assert_close(tile(right, unit, index), result.patches[unit, index])


def test_a_zero_projection_is_mid_gray():
    result = small()
    result.projections[1] = 0
    result.projections[0, 4] = 0
    left, _ = plot.compose(result)
    assert (tile(left, 1, 0) == 0.5).all() and (tile(left, 0, 4) == 0.5).all()


def test_one_symmetric_scale_per_block_or_per_tile():
    result = small()
    result.projections[0] *= torch.linspace(1, 0.1, 9).view(9, 1, 1, 1)
    by_unit, by_tile = (tile(plot.compose(result, scale=s)[0], 0, 5) for s in ("unit", "projection"))
    shown = result.projections[0, 5]
    torch.testing.assert_close(by_unit, 0.5 + 0.5 * (shown / most(result.projections[0])).clamp(-1, 1))
    torch.testing.assert_close(by_tile, 0.5 + 0.5 * (shown / most(shown)).clamp(-1, 1))


def test_the_scale_is_odd_symmetric_and_does_not_depend_on_size():
    values = torch.randn(2, 9, 3, 4, 4)
    torch.testing.assert_close(plot.signed(values, per="block") - 0.5, 0.5 - plot.signed(-values, per="block"))
    torch.testing.assert_close(plot.signed(values * 1e-20, per="tile"), plot.signed(values, per="tile"))
    assert plot.signed(torch.full((1, 1, 1, 1, 1), 1e-42), per="tile").isfinite().all()


def test_a_few_peaks_do_not_leave_the_rest_gray_and_zeros_do_not_count():
    values = torch.zeros(1, 1, 1, 40, 40)
    values[..., :20, :20] = 1.0
    values[..., 0, 0] = -1000.0
    shown = plot.signed(values, per="block")
    assert shown[..., 0, 0] == 0 and (shown[..., 1:20, 1:20] == 1).all() and (shown[..., 20:, :] == 0.5).all()


def test_patches_get_their_colours_back():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = small().patches
    column = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    result = small(patches=(pixels - column[0]) / column[1], mean=mean, std=std)
    torch.testing.assert_close(tile(plot.compose(result)[1], 2, 7), pixels[2, 7])


def test_without_mean_and_std_each_patch_is_stretched_inside_its_box():
    result = small(mean=None, std=None)
    result.patches = result.patches * 7 - 3
    result.boxes[0, 0] = torch.tensor([0, 6, 5, 14])  # three rows are missing at the top
    result.patches[0, 0, :, :3] = 0
    shown = tile(plot.compose(result)[1], 0, 0)
    assert (shown[:, :3] == 0.5).all()
    assert shown[:, 3:].min() == 0 and shown[:, 3:].max() == 1


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 6, 5, 14), slice(3, 8), slice(0, 8)),  # beyond the upper edge
        ((59, 6, 64, 14), slice(0, 5), slice(0, 8)),  # beyond the lower edge
        ((5, 0, 13, 2), slice(0, 8), slice(6, 8)),  # beyond the left edge
        ((62, 61, 64, 64), slice(0, 2), slice(0, 3)),  # beyond the lower right corner
        ((0, 0, 8, 8), slice(0, 8), slice(0, 8)),  # just inside
    ],
)
def test_what_lies_beyond_the_image_is_neutral_gray(box, rows, columns):
    result = small()
    result.boxes[0, 0] = torch.tensor(box)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[rows, columns] = True
    result.patches[0, 0, :, ~inside] = 0
    shown = tile(plot.compose(result)[1], 0, 0)
    assert (shown[:, ~inside] == 0.5).all()
    torch.testing.assert_close(shown[:, inside], result.patches[0, 0][:, inside])


def test_what_is_not_zero_is_shown_whatever_the_box_says():
    result = small()
    result.boxes[0, 0] = torch.tensor([3, 3, 6, 6])
    torch.testing.assert_close(tile(plot.compose(result)[1], 0, 0), result.patches[0, 0])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_shown_in_gray(channels):
    result = small(channels=channels)
    picture = tile(plot.compose(result)[1], 0, 0)
    torch.testing.assert_close(picture, result.patches[0, 0].mean(0, keepdim=True).expand(3, 8, 8))


@pytest.mark.parametrize("size", [7, 15, 31, 64, 107, 224])
def test_tiles_of_all_layers_have_a_similar_size(size):
    height, _, _ = plot.compose(made(units=5, size=size, k=1))[0].shape
    assert 60 <= (height - 3 * 22) / 2 <= 116


def test_large_patches_are_shrunk_without_moving_gray():
    result = made(units=5, size=224, k=1)
    result.projections[:] = 0
    left, _ = plot.compose(result)
    assert (left[24:130, 24:130] == 0.5).all()


@pytest.mark.parametrize("k", [1, 2, 4, 5, 25])
def test_any_number_of_images_per_unit(k):
    left, right = plot.compose(made(k=k))
    assert left.shape == right.shape


def test_the_caller_keeps_his_tensors():
    result = small()
    before = [t.clone() for t in (result.patches, result.projections, result.boxes)]
    plot.draw(result)
    assert all(map(torch.equal, before, (result.patches, result.projections, result.boxes)))


def test_a_figure_of_its_own_shows_the_arrays_pixel_for_pixel():
    result = small()
    left, right = plot.compose(result)
    picture = np.asarray(Image.open(io.BytesIO(png(plot.draw(result)))).convert("RGB"))
    height, width, _ = left.shape
    assert picture.shape == (height + 62, 2 * width + 14, 3)
    # The numbers stand in the gaps: compare the first row of blocks alone.
    for side, start in ((left, 0), (right, width + 14)):
        drawn = picture[62 + 22 : 62 + 22 + 245, start : start + width].astype(int)
        # One level of 256 either way, rounded up or cut off: versions of matplotlib differ.
        assert abs(drawn - side[22 : 22 + 245] * 255).max() < 2


def test_unit_numbers_and_title_are_written():
    texts = [t.get_text() for axes in plot.draw(small()).axes for t in axes.texts]
    assert "features.10" in texts and "projections" in texts and "patches" in texts
    assert texts.count("12") == 2
    guided = plot.draw(small(number=5, rule="guided"))
    assert "layer 5: features.10, guided" in [t.get_text() for axes in guided.axes for t in axes.texts]
    assert "layer 5" in [t.get_text() for axes in plot.draw(small(), title="layer 5").axes for t in axes.texts]


def test_one_unit_alone_comes_with_its_activations_and_images():
    figure = plot.draw(small(), units=[3])
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert any(text.startswith("unit 3: 0.") for text in texts)
    assert "images 9, 10, 11, 12, 13, 14, 15, 16, 17" in texts


def test_units_can_be_chosen_in_any_order():
    result = small()
    left, _ = plot.compose(result, units=[9, 0, 3, 6, 12])
    torch.testing.assert_close(tile(left, 1, 0), tile(plot.compose(result)[0], 0, 0))


def test_a_great_many_units_are_cut_and_the_title_says_so():
    figure = plot.draw(made(units=70, k=1, size=4))
    assert "features.10 (64 of 70 units)" in [t.get_text() for axes in figure.axes for t in axes.texts]


def test_a_given_figure_or_subfigure_is_drawn_into_and_returned():
    figure = Figure(figsize=(5, 3))
    assert plot.draw(small(), figure) is figure
    part = Figure(figsize=(9, 4)).subfigures(1, 2)[1]
    assert plot.draw(small(), part) is part and len(part.axes) == 2
    assert png(part).startswith(b"\x89PNG")


def test_pyplot_is_not_touched():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    settings = dict(matplotlib.rcParams)
    png(plot.draw(small()))
    assert pyplot.get_fignums() == [] and dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("units", [[1], [0, 99], []])
def test_a_unit_that_is_not_there_is_refused(units):
    with pytest.raises(UnitError, match=r"cannot be drawn: this result holds 5 units \(0, 3, 6, 9, 12\)"):
        plot.draw(small(), units=units)


def test_an_unknown_scale_is_refused():
    with pytest.raises(OptionError, match="scale='both' has no meaning here"):
        plot.compose(small(), scale="both")


def test_a_sheet_shows_each_map_on_its_own_scale():
    figure = plot.sheet(torch.randn(5, 3, 40, 30), title="unit 3")
    assert figure.axes[0].get_images()[0].get_array().shape == (2 * 42 + 2, 3 * 32 + 2, 3)
    assert png(figure).startswith(b"\x89PNG")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_what_it_cannot_show_stands_above_it_and_makes_room():
    plain, told = plot.draw(made()), plot.draw(made(note="The projections of a unit are nearly one. " * 4))
    assert any("nearly one" in text for text in texts(told)) and not any("nearly one" in text for text in texts(plain))
    assert told.get_figheight() > plain.get_figheight() and told.get_figwidth() == plain.get_figwidth()


def test_a_dead_unit_is_said_to_be_dead():
    ids = torch.arange(18).view(2, 9).clone()
    ids[1] = -1
    assert "3 (no response)" in texts(plot.draw(made(image_ids=ids)))
    assert "unit 3: no response" in texts(plot.draw(made(image_ids=ids), units=[3]))
    ids[1, 0] = 4
    shown = texts(plot.draw(made(image_ids=ids), units=[3]))
    assert "images 4" in shown and not any("-1" in text for text in shown)
