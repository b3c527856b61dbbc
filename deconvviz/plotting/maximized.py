"""Draws images made by optimization, and beside them what photographs show of the same units."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import OptionError, UnitError
from ..images.display import GRAY, inside_image, rgb, signed, true_colours
from ..optimization.result import Maximized
from ..projection.result import Projections
from .style import new_figure, picture, short

_TILE = 1.5  # inches: the side of an image
MOST = 64  # objectives in one picture


@picture
def draw(
    result: Maximized,
    figure: Figure | None = None,
    *,
    beside: Projections | None = None,
    transparency: bool = False,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each objective's images; with `beside`, its nine patches and projections at the right.

    Args:
        result: What `maximize` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one of the fitting size if None.
        beside: What `project` returned for the same units.
        transparency: Whether pixels that did not matter fade into gray.
        columns: Objectives in one row; None: as many as make the picture about square, one with `beside`.
        title: The line above; the layer's name if None.

    Returns:
        The figure.

    Raises:
        UnitError: `beside` lacks a unit.
        OptionError: `columns` is not at least 1.
    """
    if columns is not None and columns < 1:
        raise OptionError(f"columns={columns}: expected at least 1.")
    count = min(len(result.names), MOST)
    rows = [_row(result, i, beside, transparency) for i in range(count)]
    wide = sum(tile.shape[1] / tile.shape[0] for tile in rows[0])
    columns = columns or (1 if beside is not None else max(1, round(math.sqrt(count / wide))))
    lines = -(-count // columns)
    figure = new_figure(figure, columns * (wide * _TILE + 0.15) + 0.1, lines * (_TILE + 0.28) + 0.4)
    figure.suptitle(title or _title(result), fontsize=10)
    ratios = [tile.shape[1] / tile.shape[0] for tile in rows[0]] * columns
    axes = figure.subplots(lines, len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios})
    for axis in axes.flat:
        axis.set_axis_off()
    for i, tiles in enumerate(rows):
        line, column = divmod(i, columns)
        for place, tile in enumerate(tiles):
            axis = axes[line, column * len(tiles) + place]
            axis.imshow(tile.numpy(), interpolation="antialiased", vmin=0, vmax=1)
            if place == 0:
                axis.set_title(_caption(result, i), fontsize=7.5, loc="left", pad=3)
            elif line == 0 and place >= len(tiles) - 2 and beside is not None:
                axis.set_title(("patches", "projections")[place - len(tiles) + 2], fontsize=7.5, loc="left", pad=3)
    return figure


def _row(result: Maximized, index: int, beside: Projections | None, transparency: bool) -> list[Tensor]:
    images = result.images[index]
    if transparency:
        seen = result.transparency[index].flatten(1)
        alpha = (
            (seen / seen.quantile(0.95, 1, keepdim=True).clamp(min=1e-12)).clamp(0, 1).view(-1, 1, *images.shape[-2:])
        )
        images = images * alpha + GRAY * (1 - alpha)
    tiles = [image.movedim(0, -1) for image in rgb(images[None])[0]]
    return tiles if beside is None else [*tiles, *_nine(beside, int(result.units[index]))]


def _nine(beside: Projections, unit: int) -> tuple[Tensor, Tensor]:
    """Return a unit's patches and projections as one square each (h, w, 3)."""
    found = (beside.units == unit).nonzero().flatten().tolist()
    if not found:
        raise UnitError(f"beside= holds no unit {unit}: give projections of the same units.")
    own = slice(found[0], found[0] + 1)
    inside = inside_image(beside.boxes[own], *beside.patches.shape[-2:])
    patches = rgb(true_colours(beside.patches[own], inside, beside.mean, beside.std))[0]
    return _square(patches), _square(rgb(signed(beside.projections[own], per="block"))[0])


def _square(tiles: Tensor) -> Tensor:
    """Lay (K, 3, h, w) out in a square with lines of white between."""
    side = math.ceil(math.sqrt(len(tiles)))
    height, width = tiles.shape[-2:]
    line = max(1, height // 40)
    sheet = torch.ones(side * (height + line) - line, side * (width + line) - line, 3)
    for place, tile in enumerate(tiles):
        top, left = place // side * (height + line), place % side * (width + line)
        sheet[top : top + height, left : left + width] = tile.movedim(0, -1)
    return sheet


def _caption(result: Maximized, index: int) -> str:
    reached = float(result.activations[index, :, -1].max())
    text = f"{short(result.names[index], 22)}: {reached:.3g}"
    if result.best_photo is not None:
        text += f" (photo {float(result.best_photo[index]):.3g})"
    return text


def _title(result: Maximized) -> str:
    kind = dict(result.settings).get("parametrization", "")
    what = result.layer if result.number is None else f"layer {result.number} ({result.layer})"
    return f"What excites {what or 'the output'} most · {kind}, {len(result.steps) - 1} steps"
