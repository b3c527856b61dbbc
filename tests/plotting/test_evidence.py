"""Evidence as a picture: what counts keeps its colour, what does not fades, and the field is framed."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

import deconvviz
from deconvviz.errors import UnitError
from deconvviz.occlusion.field import Evidence
from deconvviz.plotting import evidence as plot


def made(units=2, k=4, side=20):
    """Patches of one colour, and evidence in their upper left quarter alone; the last unit is dead."""
    maps = torch.zeros(units, k, 10, 10)
    maps[:-1, :, :4, :4] = 1.0
    maps[:-1, :, 8, 8] = -5.0
    ids = torch.arange(units * k).view(units, k).clone()
    ids[-1] = -1
    starts = torch.arange(10) * 2
    boxes = torch.tensor([5, 6, 5 + side, 6 + side]).expand(units, k, 4).clone()
    field = torch.tensor([0, 0, 8, 8]).expand(units, 4).clone()
    patches = torch.full((units, k, 3, side, side), 0.3)
    patches[-1], field[-1], boxes[-1] = 0, 0, 0
    positions = torch.zeros(units, k, 2, dtype=torch.long)
    arrays = (torch.arange(units), torch.ones(units, k), ids, positions, boxes, patches, maps, starts, starts, field)
    in_full = torch.zeros(units, k, dtype=torch.bool)
    facts = ((2, 2), (2, 2), "mid-gray", 3, (0.0,) * 3, (1.0,) * 3)
    return Evidence("features.7", *arrays, in_full, *facts)


def test_what_counts_keeps_its_colour_and_the_rest_fades():
    share = plot.strength(made(), [0])[0, 0, 0]
    assert share[:6, :6].min() == 1 and share[12:, 12:].max() == 0
    faded = plot.fade(torch.full((1, 1, 3, 20, 20), 0.3), share[None, None, None])[0, 0, 0]
    assert torch.allclose(faded[:6, :6], torch.tensor(0.3)) and (faded[12:, 12:] > 0.7).all()


def test_the_figure_has_both_sides_and_frames_the_field():
    figure = made().plot()
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["patches", "evidence (mid-gray)"]
    frames = [p for p in figure.axes[1].patches if isinstance(p, Rectangle)]
    assert len(frames) == 4 and not figure.axes[0].patches  # none for the dead unit
    shown = np.asarray(figure.axes[1].images[0].get_array())
    x, y = frames[0].get_xy()
    inside = shown[
        round(y) + 2 : round(y + frames[0].get_height()) - 2, round(x) + 2 : round(x + frames[0].get_width()) - 2
    ]
    assert inside.mean() == pytest.approx(0.3, abs=0.05)
    assert "1 (no response)" in [text.get_text() for text in figure.axes[0].texts]


def test_projections_make_a_third_side():
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    images, chosen = torch.randn(6, 3, 64, 64), {"layer": 1, "units": [0, 3], "k": 2, "progress": False}
    found, others = deconvviz.evidence(model, images, **chosen), deconvviz.project(model, images, **chosen)
    assert len(found.plot(projections=others, units=[3]).axes) == 3
    with pytest.raises(UnitError, match="those of other images"):
        found.plot(projections=deconvviz.project(model, images.flip(0), **chosen))
    with pytest.raises(UnitError, match="cannot be drawn"):
        found.plot(units=[7])


def test_it_is_a_picture_in_a_notebook():
    assert made()._repr_png_()[:4] == b"\x89PNG"
