"""Evidence as pictures: patches, and beside them the same with what does not excite the unit faded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import UnitError
from ..images.display import peak_of, rgb, signed
from ..occlusion.field import Evidence
from ..projection.result import Projections
from ..results.text import layer_name
from .projections import Grid, draw_sides, numbers_above, photos_of, rows_of, silent_places
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
    title: str | None = None,
    cmap: str | None = None,
) -> Figure:
    """Draw one block of tiles per unit: its patches at the left, its evidence beside them.

    Example:
        >>> result = deconvviz.evidence(model, layer=5)  # doctest: +SKIP
        >>> draw(result, projections=deconvviz.project(model, layer=5))  # doctest: +SKIP

    A pixel keeps its colour as far as covering it takes the unit's activation away (by the root of its share of the
    unit's largest), and fades to light gray where that changes nothing or lets it grow. One scale for the block of a
    unit. The frame is the unit's effective field.

    Args:
        result: What `evidence` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one of the fitting size if None.
        units: The units to draw, by number; None draws all, at most the first 64.
        projections: What `project` returned for the same units and images: drawn as a third block.
        columns: Blocks beside each other; None makes the sheet nearly square.
        title: The line above; the layer's name if None.
        cmap: One of matplotlib's colour maps, for the projections, as `deconvviz.plotting.projections.draw` takes it.

    Returns:
        The figure.

    Raises:
        UnitError: A unit that a result does not hold.
    """
    rows = rows_of(result, units)
    grid = Grid.of(result, len(rows), columns)
    photos = photos_of(result, rows)
    labels = numbers_above(result, rows)
    silent = silent_places(result, rows)
    faded = fade(rgb(photos), strength(result, rows)).masked_fill(silent, 1.0)
    sides = [(grid.fill(photos), "patches", labels), (grid.fill(faded), f"evidence ({result.fill_name})", labels)]
    note = ""
    if projections is not None:
        others = rows_of(projections, [int(result.units[row]) for row in rows])
        if not torch.equal(projections.image_ids[others], result.image_ids[rows]):
            raise UnitError("the projections are those of other images. Give project the images and k of evidence.")
        signal = signed(projections.projections[others].float(), per="block").masked_fill(silent, 1.0)
        sides.append((through(cmap, grid.fill(signal)), "projections", labels))
        note = projections.note
    shown = f" ({len(rows)} of {len(result.units):,} units)" if len(rows) < len(result.units) else ""
    figure = draw_sides(sides, grid, title or layer_name(result.layer, result.number) + shown, note, figure)
    _frame_fields(figure, result, rows, grid)
    return figure


def strength(result: Evidence, rows: Sequence[int]) -> Tensor:
    """Return (U, K, 1, h, w) within 0–1: each pixel's evidence, as the root of its share of the largest of the unit.

    A map's number stands at the centre of its occluder; what lies between centres is interpolated.
    """
    maps = result.maps[list(rows)].clamp_min(0)
    most = torch.stack([peak_of(unit.flatten()) for unit in maps])
    share = (maps / most[:, None, None, None]).clamp(max=1).sqrt()
    height, width = result.patches.shape[-2:]
    down = _centres(result.rows, result.size[0], height)
    across = _centres(result.cols, result.size[1], width)
    inner = down[1] - down[0] + 1, across[1] - across[0] + 1
    spread = interpolate(share, inner, mode="bilinear", align_corners=True)
    margins = across[0], width - 1 - across[1], down[0], height - 1 - down[1]
    return pad(spread, margins, mode="replicate")[:, :, None]


def _centres(first: Tensor, window: int, length: int) -> tuple[int, int]:
    """Return the pixels at the centres of the first and the last occluder along one dimension."""
    low, high = int(first[0]), int(first[-1])
    return (low + min(low + window, length)) // 2, max((high + min(high + window, length)) // 2, (low + window) // 2)


def fade(photos: Tensor, share: Tensor) -> Tensor:
    """Let pixels of a small share go to light gray."""
    kept = KEPT + (1 - KEPT) * share
    return photos * kept + FADED * (1 - kept)


def _frame_fields(figure: Figure, result: Evidence, rows: Sequence[int], grid: Grid) -> None:
    axes = figure.axes[-1 if len(figure.axes) == 2 else 1]
    height, width = result.patches.shape[-2:]
    down, across = grid.height / height, grid.width / width
    for block, row in enumerate(rows):
        top, left, bottom, right = result.field[row].tolist()
        if bottom == top:
            continue
        for index, image in enumerate(result.image_ids[row].tolist()):
            if image < 0:
                continue
            x, y = grid.tile(block, index)
            corner = x + left * across - 0.5, y + top * down - 0.5
            size = (right - left) * across, (bottom - top) * down
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=COLOURS[1], linewidth=0.5))
