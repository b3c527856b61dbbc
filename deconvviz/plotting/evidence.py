"""Evidence as pictures: patches, and beside them the same with what does not excite the unit faded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import UnitError
from ..images.display import PERCENTILE, peak_of, rgb
from ..occlusion.field import Evidence, centres
from ..projection.result import Projections
from ..results.text import layer_name
from .projections import (
    Crops,
    Grid,
    draw_sides,
    numbers_above,
    photos_of,
    rows_of,
    said_of,
    say_lost,
    signal_of,
    silent_places,
)
from .style import COLOURS, picture, through

FADED = 0.82  # the gray that counts for nothing
KEPT = 0.12  # of a pixel's own colour, where it counts for nothing: one sees what was passed over


@picture
def draw(
    result: Evidence,
    figure: Figure | None = None,
    *,
    units: Sequence[int] | None = None,
    projections: Projections | None = None,
    columns: int | None = None,
    crop: str = "field",
    scale: str = "unit",
    smooth: float = 0.0,
    gray: bool = False,
    percentile: float = PERCENTILE,
    title: str | None = None,
    cmap: str | None = None,
) -> Figure:
    """Draw one block of tiles per unit: its patches at the left, its evidence beside them.

    Example:
        >>> draw(deconvviz.evidence(model, layer=5, rule="deconvnet"))  # doctest: +SKIP

    A pixel keeps its colour as far as covering it takes the unit's activation away (by the root of its share of the
    unit's largest), and fades to light gray where that changes nothing or lets it grow. One scale for the block of a
    unit. The frame is the unit's effective field.

    Args:
        result: What `evidence` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one of the fitting size if None.
        units: The units to draw, by number; None draws all, at most the first 64.
        projections: What `project` returned for the same units and images, drawn as a third block; None: those that
            came along with `rule`.
        columns: Blocks beside each other; None makes the sheet nearly square.
        crop: "field": tiles show the whole receptive field; "effective": of each unit its effective field, grown to the
            field's proportions; its height stands above the block.
        scale: Which projections share one scale, see `deconvviz.plotting.projections.draw`.
        smooth: Standard deviation in pixels of a Gaussian that the projections are shown through; 0: none.
        gray: Show the mean of a projection's channels.
        percentile: Of a projection's values that are not zero, how many percent span the colours.
        title: The line above; the layer's name if None.
        cmap: One of matplotlib's colour maps, for the projections, as `deconvviz.plotting.projections.draw` takes it.

    Returns:
        The figure.

    Raises:
        UnitError: A unit that a result does not hold.
        OptionError: An unknown scale or crop, or another option without meaning.
    """
    rows = rows_of(result, units)
    grid = Grid.of(result, len(rows), columns)
    photos = photos_of(result, rows)
    crops = Crops.of(crop, result, rows, result.field[rows].tolist())
    labels = crops.said(numbers_above(result, rows))
    silent = silent_places(result, rows)
    faded = fade(rgb(photos), strength(result, rows)).masked_fill(silent, 1.0)
    sides = [
        (crops.fill(grid, photos), "patches", labels),
        (crops.fill(grid, faded), f"evidence ({result.fill_name})", labels),
    ]
    note, third, others = "", result if projections is None else projections, rows
    if projections is not None:
        others = rows_of(projections, [int(result.units[row]) for row in rows])
        if not torch.equal(projections.image_ids[others], result.image_ids[rows]):
            raise UnitError("the projections are those of other images. Give project the images and k of evidence.")
    if third.projections is not None:
        look: dict[str, Any] = {"smooth": smooth, "gray": gray, "percentile": percentile}
        signal = through(cmap, crops.fill(grid, signal_of(third, others, scale=scale, **look)))
        name = "projections" if third.rule in (None, "deconvnet") else f"projections, {third.rule}"
        sides.append((signal, name + said_of(**look), labels))
        note = third.note
    shown = f" ({len(rows)} of {len(result.units):,} units)" if len(rows) < len(result.units) else ""
    figure = draw_sides(sides, grid, title or layer_name(result.layer, result.number) + shown, note, figure)
    _frame_fields(figure, len(sides), result, rows, grid, crops)
    if third.projections is not None:
        say_lost(figure.axes[-1], third, others, grid)
    return figure


def strength(result: Evidence, rows: Sequence[int]) -> Tensor:
    """Return (U, K, 1, h, w) within 0–1: each pixel's evidence, as the root of its share of the largest of the unit.

    A map's number stands at the centre of its occluder; what lies between centres is interpolated.
    """
    maps = result.maps[list(rows)].clamp_min(0)
    most = torch.stack([peak_of(unit.flatten()) for unit in maps])
    share = (maps / most[:, None, None, None]).clamp(max=1).sqrt()
    height, width = result.patches.shape[-2:]
    down = centres(result.rows, result.size[0], height)
    across = centres(result.cols, result.size[1], width)
    inner = down[1] - down[0] + 1, across[1] - across[0] + 1
    spread = interpolate(share, inner, mode="bilinear", align_corners=True)
    margins = across[0], width - 1 - across[1], down[0], height - 1 - down[1]
    return pad(spread, margins, mode="replicate")[:, :, None]


def fade(photos: Tensor, share: Tensor) -> Tensor:
    """Let pixels of a small share go to light gray."""
    kept = KEPT + (1 - KEPT) * share
    return photos * kept + FADED * (1 - kept)


def _frame_fields(figure: Figure, sides: int, result: Evidence, rows: Sequence[int], grid: Grid, crops: Crops) -> None:
    axes = figure.axes[1 - sides]  # of the blocks, the last that were drawn, the second
    height, width = result.patches.shape[-2:]
    for block, row in enumerate(rows):
        first, before, end, after = crops.boxes[block] if crops.boxes else (0, 0, height, width)
        down, across = grid.height / (end - first), grid.width / (after - before)
        top, left, bottom, right = result.field[row].tolist()
        top, bottom, left, right = top - first, bottom - first, left - before, right - before
        if bottom == top:
            continue
        for index, image in enumerate(result.image_ids[row].tolist()):
            if image < 0:
                continue
            x, y = grid.tile(block, index)
            corner = x + left * across - 0.5, y + top * down - 0.5
            size = (right - left) * across, (bottom - top) * down
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=COLOURS[1], linewidth=0.5))
