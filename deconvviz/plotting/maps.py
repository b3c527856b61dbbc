"""Draws the response maps of one image, layer by layer, and what changes of the image make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..checks import whole
from ..results.text import layer_name
from ..studies.maps import LayerMaps, Maps
from .style import colour_map, new_figure, picture, short

_TILE, _GAP = 48, 4  # pixels of a small map's side at least, and between maps
_ROW, _HEAD = 0.62, 0.26  # inches of a row of maps, and of what stands above it


@picture
def draw(result: Maps, figure: Any = None, *, shown: int = 12, title: str | None = None, cmap: str = "gray") -> Any:
    """Draw for each layer its strongest maps, strongest first; below them the same units for each changed image.

    All maps of a layer share one scale: its darkest is the least response that is shown or zero, its brightest the
    largest. Numbers beside changed maps are the relative distance from the original's, of all the layer's maps.

    Args:
        result: What `maps` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        shown: How many maps of each layer.
        title: The line above.
        cmap: The colours of the maps, one of matplotlib's.
    """
    shown, colours = whole(shown, "shown", 1), colour_map(cmap)
    variants = 1 + len(result.changes)
    columns = min(shown, max(len(layer.maps) for layer in result.layers))
    rows = len(result.layers)
    photos = 1.15 if result.changes else 0.9
    width = max(5.0, 1.1 + 0.6 * columns)
    figure = new_figure(figure, width, photos + 0.3 + rows * (variants * _ROW + _HEAD))
    if title:
        figure.suptitle(title, fontsize=10)
    heights = [photos, *[variants * _ROW + _HEAD] * rows]
    parts = figure.subfigures(rows + 1, 1, height_ratios=heights)
    _photos(parts[0], result)
    for number, (part, layer) in enumerate(zip(parts[1:], result.layers, strict=True)):
        _layer(part, result, layer, number, columns, colours)
    return figure


def _photos(figure: Any, result: Maps) -> None:
    pictures = [("image", result.picture), *((change.describe(), change.picture) for change in result.changes)]
    axes = figure.subplots(1, max(4, len(pictures)), squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, pixels) in zip(axes, pictures, strict=False):
        axis.imshow(pixels.movedim(0, -1).numpy(), vmin=0, vmax=1, interpolation="antialiased")
        axis.set_title(name, fontsize=8)


def _layer(figure: Any, result: Maps, layer: LayerMaps, number: int, columns: int, colours: Any) -> None:
    units = layer.ranking[:columns]
    rows = [layer.maps[units], *(change.maps[number][units] for change in result.changes)]
    low = min(0.0, *(float(row.min()) for row in rows))
    high = max(float(row.max()) for row in rows)
    count, height, width = layer.maps.shape
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    title = f"{short(layer_name(layer.name, layer.number), 40)}: {len(units)} of {count} maps, {height}×{width}"
    axes[0].set_title(title, fontsize=8, loc="left")
    notes = ["", *(f"{c.kind}\n{float(c.distance[number]):.2f}" for c in result.changes)]
    for axis, row, note in zip(axes, rows, notes, strict=True):
        axis.imshow(
            _strip(row.float(), columns),
            cmap=colours,
            vmin=low,
            vmax=high if high > low else low + 1,
            interpolation="nearest",
        )
        axis.set(xticks=[], yticks=[], ylabel=note, anchor="W")
        axis.yaxis.label.set(fontsize=7, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)


def _strip(maps: Tensor, columns: int) -> np.ndarray:
    """Lay maps (k, h, w) side by side, small ones enlarged in whole steps; places without a map are blank."""
    times = max(1, -(-_TILE // max(maps.shape[1:])))
    tiles: np.ndarray = maps.repeat_interleave(times, 1).repeat_interleave(times, 2).numpy()
    height, width = tiles[0].shape
    gap = max(1, _GAP * max(height, width) // _TILE)
    strip = np.full((height, columns * (width + gap) - gap), np.nan, dtype=np.float32)
    for place, tile in enumerate(tiles):
        strip[:, place * (width + gap) : place * (width + gap) + width] = tile
    return strip
