"""Draws first-layer filters: a sheet per network, marks for the faults, figures below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from torch import Tensor

from ..errors import OptionError
from ..images.display import GRAY, signed
from ..studies.filters import FilterComparison, Filters
from .style import COLOURS, new_figure, picture, through

_GAP = 2  # pixels of a sheet between tiles
_SHARES = ("filters", "median RMS")  # the figures that are no shares
_SHADES = (COLOURS[5], "0.6", COLOURS[2], COLOURS[4], COLOURS[3])


@picture
def draw(result: Filters | FilterComparison, figure: Any = None, *, scale: str = "all", cmap: str | None = None) -> Any:
    """Draw each network's filters by falling RMS, its figures below, frames around the faulty ones.

    Args:
        result: What `filters` or `compare_filters` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        scale: "all": one symmetric scale for a network's filters, so that dead ones are gray; "filter": each
            stretched by itself. Zero is mid-gray in both.
        cmap: One of matplotlib's colour maps, for the mean of a filter's channels; None: their own colours.
    """
    results = {"": result} if isinstance(result, Filters) else dict(zip(result.names, result.filters, strict=True))
    if scale not in ("all", "filter"):
        raise OptionError(f"scale={scale!r} has no meaning here. Give 'all' or 'filter'.")
    columns = len(results)
    below = 1.2 + 1.1 * columns  # inches: a line of print for each bar
    figure = new_figure(figure, max(4.6, 3.3 * columns), 3.4 + below)
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.4, below])
    axes = upper.subplots(1, columns, squeeze=False)[0]
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        _sheet(axis, result, scale, cmap)
        height, width = result.weights.shape[2:]
        text = f"{len(result.rms)} filters {height}×{width}/{'×'.join(map(str, sorted(set(result.stride))))}"
        axis.set_title(f"{name or result.name}: {text}", fontsize=9)
    _bars(lower.subplots(), results)
    _legend(lower, results)
    return figure


def _sheet(axis: Any, result: Filters, scale: str, cmap: str | None) -> None:
    order = result.rms.argsort(descending=True, stable=True)
    tiles = through(cmap, _tiles(result.weights[order], scale))
    columns = math.ceil(math.sqrt(len(tiles)))
    height, width = tiles.shape[1] + _GAP, tiles.shape[2] + _GAP
    array = np.ones((math.ceil(len(tiles) / columns) * height + _GAP, columns * width + _GAP, 3), np.float32)
    twins = set(result.duplicates.flatten().tolist())
    for place, (unit, tile) in enumerate(zip(order.tolist(), tiles, strict=True)):
        y, x = place // columns * height + _GAP, place % columns * width + _GAP
        array[y : y + height - _GAP, x : x + width - _GAP] = tile
        marks = (bool(result.dead[unit]), bool(result.dominant[unit]), unit in twins)
        if any(marks):
            shade = _MARKS[marks.index(True)][1]
            corner, size = (x - _GAP / 2 - 0.5, y - _GAP / 2 - 0.5), (width - _GAP + _GAP, height - _GAP + _GAP)
            axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=shade, linewidth=1.2))
    axis.imshow(array, interpolation="nearest", aspect="equal")
    axis.set_axis_off()


_MARKS = (("dead", COLOURS[1]), ("dominant", COLOURS[4]), ("has a duplicate", COLOURS[0]))


def _tiles(weights: Tensor, scale: str) -> np.ndarray:
    """Return (F, h', w', 3) within 0–1, enlarged; other than 3 channels are shown as their mean."""
    seen = weights.float()
    if seen.shape[1] != 3:
        seen = seen.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    seen = signed(seen[None], per="block" if scale == "all" else "tile")[0] if bool(seen.any()) else seen + GRAY
    factor = max(1, round(21 / max(weights.shape[2:])))
    return seen.permute(0, 2, 3, 1).repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy()


def _bars(axis: Any, results: Mapping[str, Filters]) -> None:
    """Draw the figures that are shares as bars with their values, a colour per network."""
    tables = [result.summary() for result in results.values()]
    names = [k for k in tables[0] if k not in _SHARES and not all(math.isnan(t[k]) for t in tables)]
    thick = 0.8 / len(tables)
    for number, (name, table) in enumerate(zip(results, tables, strict=True)):
        places = [row + (number - (len(tables) - 1) / 2) * thick for row in range(len(names))]
        axis.barh(places, [table[k] for k in names], color=_SHADES[number % len(_SHADES)], height=thick, label=name)
        for place, key in zip(places, names, strict=True):
            value = table[key]
            text = "" if math.isnan(value) else f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"
            axis.text(value + 0.01, place, text, va="center", fontsize=7)
    axis.set(xlim=(0, 1.08), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=range(len(names)))
    axis.set_yticklabels(names, fontsize=7.5)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    if len(tables) > 1:
        axis.legend(frameon=False, fontsize=8, loc="upper right")


def _legend(figure: Any, results: Mapping[str, Filters]) -> None:
    """Say what the frames mean, those that there are."""
    there = [any(bool(r.dead.any()) for r in results.values()), any(bool(r.dominant.any()) for r in results.values())]
    there.append(any(len(r.duplicates) for r in results.values()))
    marks = [mark for mark, seen in zip(_MARKS, there, strict=True) if seen]
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=shade, linewidth=1.4) for _, shade in marks]
    if handles:
        where = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
        figure.legend(handles, [name for name, _ in marks], **where)
