"""interior=True: only places whose field lies inside the image, or as much of it as can be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import OptionError
from deconvviz.tape.receptive_field import Span


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()
        ).double()


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 20, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_places_are_the_strongest_of_those_whose_field_is_whole():
    model, x = network(), images()
    found = deconvviz.top(model, x, layers=["4"], k=6, interior=True, progress=False)["4"]
    maps = model(x).detach()  # (6, 6, 10, 8): a position sees 10 of 20 rows, from 2 * row - 3 on
    inside = maps[:, :, 2:8, 2:6].flatten(2)
    for unit in range(6):
        best = inside[:, unit].max(1)
        values, order = best.values.sort(descending=True)
        some = values > 0
        assert torch.allclose(found.values[unit][some], values[some], rtol=1e-12, atol=0)
        assert torch.equal(found.image_ids[unit][some], order[some])
        at = best.indices[order][some]
        assert torch.equal(found.positions[unit][some], torch.stack([at // 4 + 2, at % 4 + 2], 1))


def test_patches_lie_inside_and_others_do_not():
    model, x = network(), images()
    chosen = {"layer": "4", "units": "all", "k": 3, "progress": False}
    for result in (
        deconvviz.project(model, x, **chosen, interior=True),
        deconvviz.evidence(model, x, **chosen, interior=True, size=5, stride=5),
    ):
        boxes = result.boxes[result.mask]
        assert len(boxes) and (boxes[:, 2:] - boxes[:, :2] == torch.tensor(result.patches.shape[-2:])).all()
    usual = deconvviz.project(model, x, **chosen)
    sides = usual.boxes[usual.mask]
    assert (sides[:, 2:] - sides[:, :2] < torch.tensor(usual.patches.shape[-2:])).any()


def test_where_no_field_fits_those_count_that_see_most():
    span = Span(np.array([0, 0, 0, 2, 9]), np.array([7, 9, 10, 10, 10]), 2, -9, 20)
    assert span.inner() == slice(2, 3)
    whole = Span(np.zeros(4, int), np.full(4, 6), 6, 0, 6)
    assert whole.inner() == slice(0, 4)
    two_runs = Span(np.arange(7), np.arange(7) + np.array([3, 3, 2, 3, 3, 3, 1]), 1, 0, 3)
    assert two_runs.inner() == slice(3, 6)


def test_a_scan_that_was_made_otherwise_is_not_taken_for_it(tmp_path):
    model, x = network(), images()
    scan = deconvviz.top(model, x, layers=["4"], k=2, progress=False)
    with pytest.raises(OptionError, match="interior=True: the scan in top= was made without it"):
        deconvviz.project(model, x, layer="4", top=scan, interior=True, progress=False)
    inner = deconvviz.top(model, x, layers=["4"], k=2, interior=True, out=tmp_path / "top", progress=False)
    deconvviz.project(model, x, layer="4", units=[0], top=inner, interior=True, progress=False)
    assert deconvviz.TopK.load(tmp_path / "top") == inner and inner.interior
    with pytest.raises(OptionError, match="interior="):
        scan.merge(dataclasses.replace(inner, interior=True))
