"""How projections are shown: options that change the picture and never the numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import deconvviz
from deconvviz.errors import OptionError
from deconvviz.images.display import signed, smoothed
from deconvviz.plotting.projections import Crops, energy_box


def values() -> torch.Tensor:
    return torch.randn(2, 3, 3, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_smoothing_is_a_gaussian_beyond_which_is_nothing(sigma):
    given = values().double()
    expected = gaussian_filter(
        given.numpy(), (0, 0, 0, sigma, sigma), mode="constant", radius=[0, 0, 0, *[math.ceil(3 * sigma)] * 2]
    )
    assert np.abs(smoothed(given, sigma).numpy() - expected).max() < 1e-12
    assert smoothed(given, 0) is given


@pytest.mark.parametrize("per", ["tile", "block", "sheet"])
def test_the_percentile_spans_the_colours_of_a_tile_a_unit_or_the_sheet(per):
    given = values()
    shown = signed(given, per=per, percentile=80)
    parts = {"tile": given.flatten(2).flatten(0, 1), "block": given.flatten(1), "sheet": given.flatten()[None]}[per]
    peaks = torch.stack([part.abs().sort().values[math.ceil(0.8 * len(part)) - 1] for part in parts])
    scale = peaks.view({"tile": (2, 3, 1, 1, 1), "block": (2, 1, 1, 1, 1), "sheet": (1, 1, 1, 1, 1)}[per])
    assert torch.allclose(shown, 0.5 + 0.5 * (given / scale).clamp(-1, 1), atol=1e-6)


def test_gray_is_the_mean_of_the_channels():
    shown = signed(values(), per="sheet", gray=True, percentile=100)
    mean = values().mean(2)
    assert torch.allclose(shown, (0.5 + 0.5 * mean / mean.abs().max())[:, :, None].expand_as(shown), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"percentile": 0}, {"percentile": 101}, {"smooth": -1}, {"smooth": math.nan}])
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        signed(values(), per="block", **wrong)


@pytest.fixture(scope="module")
def result():
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return deconvviz.project(model, x, layer=2, units=[0, 1], k=2, progress=False)


def test_the_picture_changes_the_numbers_do_not_and_the_caption_says_so(result):
    before = dataclasses.replace(result, projections=result.projections.clone())
    figure = result.plot(smooth=1, gray=True, percentile=99)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "projections (smoothed by 1 px, gray, 99 % span the colours)" in texts and "patches" in texts
    assert result == before
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.abs(shown - shown.mean(-1, keepdims=True)).max() < 1e-6
    for wrong in ({"scale": "x"}, {"crop": "x"}):
        with pytest.raises(OptionError, match="has no meaning here"):
            result.plot(**wrong)


def test_an_effective_crop_shows_the_box_that_holds_the_energy(result):
    tiles = torch.zeros_like(result.projections)
    tiles[0, 0, 0, 2:8, 3:7] = 1.0
    tiles[1, 1, 1, 10:21, 0:5] = -1.0
    assert energy_box(tiles[0]) == (2, 3, 8, 7) and energy_box(tiles[1]) == (10, 0, 21, 5)
    assert energy_box(torch.zeros(2, 3, 21, 21)) == (0, 0, 0, 0)
    some = dataclasses.replace(result, projections=tiles)
    crops = Crops.of("effective", some, [0, 1], [energy_box(part) for part in tiles])
    assert crops.boxes == [(2, 2, 8, 8), (10, 0, 21, 11)]  # squares, as the patches are, within them
    figure = some.plot(crop="effective")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "0 · 6 px" in texts and "1 · 11 px" in texts
    assert figure.axes[0].images[0].get_array().shape == some.plot().axes[0].images[0].get_array().shape


def test_a_box_is_found_in_cells_where_tiles_are_large():
    tiles = torch.zeros(1, 3, 200, 130)
    tiles[..., 101:149, 60:99] = 1.0
    top, left, bottom, right = energy_box(tiles)
    assert 96 <= top <= 105 and 145 <= bottom <= 150 and 55 <= left <= 64 and 95 <= right <= 100
