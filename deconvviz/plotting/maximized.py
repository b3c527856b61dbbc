"""Draws images made by optimization, and beside them what photographs show of the same units."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import OptionError
from ..images.display import GRAY, in_order, rgb, signed
from ..occlusion.field import Evidence
from ..optimization.result import Maximized
from ..projection.result import Projections
from .evidence import fade, strength
from .projections import photos_of, rows_of, silent_places
from .style import brief, new_figure, picture, short

_TILE = 1.5  # inches: the side of an image
MOST = 64  # objectives in one picture


@picture
def draw(
    result: Maximized,
    figure: Figure | None = None,
    *,
    beside: Projections | Evidence | Maximized | None = None,
    transparency: bool = False,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each objective's images; with `beside`, at the right its nine patches and what in them excited the unit.

    Example:
        >>> result = deconvviz.maximize(model, layer=5, units=[3, 7])  # doctest: +SKIP
        >>> draw(result, beside=deconvviz.project(model, layer=5, units=[3, 7]))  # doctest: +SKIP

    Args:
        result: What `maximize` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one of the fitting size if None.
        beside: What `project` or `evidence` returned for the same units; or what `maximize` did for the same
            objectives with other weights or settings.
        transparency: Whether pixels that did not matter fade into gray.
        columns: Objectives in one row; None: as many as make the picture about square, one with `beside`.
        title: The line above; the layer's name if None.

    Returns:
        The figure.

    Raises:
        UnitError: `beside` lacks a unit.
        OptionError: `columns` is not at least 1, or `beside` is of another layer or of other objectives.
    """
    if columns is not None and columns < 1:
        raise OptionError(f"columns={columns}: expected at least 1.")
    count = min(len(result.names), MOST)
    heads = _heads(result, beside)
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
                axis.set_title(_caption(result, i, isinstance(beside, Maximized)), fontsize=7.5, loc="left", pad=3)
            elif place >= result.images.shape[1]:
                text = heads[place - result.images.shape[1]] if line == 0 else ""
                if isinstance(beside, Maximized) and place == result.images.shape[1]:
                    text = f"{text} {brief(_reached(beside, i))}"
                axis.set_title(text.strip(), fontsize=7.5, loc="left", pad=3)
    return figure


def _heads(result: Maximized, beside: Projections | Evidence | Maximized | None) -> tuple[str, ...]:
    """Return what stands above the tiles at the right; refuse those of something else."""
    if beside is None:
        return ()
    if isinstance(beside, Maximized):
        if (beside.layer, beside.names) != (result.layer, result.names):
            raise OptionError("beside= holds other objectives: give the result of the same call with another model.")
        return ("beside:", *[""] * (beside.images.shape[1] - 1))
    if beside.layer != result.layer and (beside.number is None or beside.number != result.number):
        raise OptionError(f"beside= is of layer {beside.layer!r}, the images are of {result.layer or 'the output'!r}.")
    return ("patches", "projections" if isinstance(beside, Projections) else "evidence")


def _row(
    result: Maximized, index: int, beside: Projections | Evidence | Maximized | None, transparency: bool
) -> list[Tensor]:
    images = result.images[index]
    if transparency:
        seen = result.transparency[index].flatten(1)
        alpha = (
            (seen / seen.quantile(0.95, 1, keepdim=True).clamp(min=1e-12)).clamp(0, 1).view(-1, 1, *images.shape[-2:])
        )
        images = images * alpha + GRAY * (1 - alpha)
    tiles = [image.movedim(0, -1) for image in rgb(images[None])[0]]
    if beside is None:
        return tiles
    if isinstance(beside, Maximized):
        return [*tiles, *_row(beside, index, None, transparency)]
    return [*tiles, *_nine(beside, int(result.units[index]))]


def _nine(beside: Projections | Evidence, unit: int) -> tuple[Tensor, Tensor]:
    """Return a unit's patches, and what in them excited it, as one square each (h, w, 3)."""
    row = rows_of(beside, [unit])
    photos, silent = photos_of(beside, row), silent_places(beside, row)
    if isinstance(beside, Evidence):
        cause = fade(rgb(photos), strength(beside, row))
    else:
        cause = rgb(in_order(signed(beside.projections[row].float(), per="block"), beside.order))
    return _square(rgb(photos)[0]), _square(cause.masked_fill(silent, 1.0)[0])


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


def _caption(result: Maximized, index: int, compared: bool) -> str:
    """Return what stands above an objective's first tile; two results side by side are compared with each other alone."""
    text = f"{short(result.names[index], 22)}: {brief(_reached(result, index))}"
    if result.best_photo is not None and not compared:
        text += f" (photo {brief(float(result.best_photo[index]))})"
    return text


def _reached(result: Maximized, index: int) -> float:
    return float(result.activations[index, :, -1].max())


def _title(result: Maximized) -> str:
    kind = dict(result.settings).get("parametrization", "")
    what = result.layer if result.number is None else f"layer {result.number} ({result.layer})"
    return f"What excites {what or 'the output'} most · {kind}, {len(result.steps) - 1} steps"
