"""Draws a recording: Fig. 4, filters and convergence over the epochs, and the animation."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..errors import OptionError, UnitError
from ..images.display import GRAY, inside_image, rgb, signed, true_colours
from ..results import store as _store
from ..results.base import png
from ..training.recording import THRESHOLD, Recording, Track
from .style import DPI, colour_map, inches, picture, through

TILE = 72  # pixels, half an inch
FEW, MOST = 6, 64  # units of a layer where all layers are drawn, where one is
_GAP, _LABEL, _TITLE, _HEAD, _FOOT, _APART = 5, 40, 34, 24, 30, 14  # pixels
_MARK = (0.835, 0.369, 0.0)  # vermilion, which all eyes tell from gray


class Panel(NamedTuple):
    """Tiles (R, K, 3, TILE, TILE) in rows and columns, with their labels; `marks` (R, K) are bars at the left."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    tiles: Tensor
    marks: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the tiles alone."""
        rows, columns = self.tiles.shape[:2]
        return columns * (TILE + _GAP), rows * (TILE + _GAP)


@picture
def draw(
    recording: Recording,
    figure: Figure | None = None,
    *,
    layer: int | str | None = None,
    units: Sequence[int] | None = None,
    scale: str = "projection",
    title: str | None = None,
    cmap: str | None = None,
) -> Figure:
    """Draw units in rows and epochs in columns; a bar before a tile: another image became the strongest.

    Example:
        >>> figure = Recording.load("recording.safetensors").plot(layer=5)  # doctest: +SKIP

    Args:
        recording: what a `Recorder` kept.
        figure: a figure or subfigure to draw into; a new one of the fitting size if None.
        layer: number or module path: its projections and, at the right, the patches they come from. None: the
            projections of six units of every layer side by side, as in the paper.
        units: which to draw of the layer, by number; None: all, at most 64.
        scale: "projection": each tile stretched by itself, as in the paper; "unit": one symmetric scale for all
            epochs of a unit, so that its growth is seen. Zero is mid-gray in both.
        title: The line above.
        cmap: One of matplotlib's colour maps, for the mean of a projection's channels; None: their own colours.

    Returns:
        The figure.

    Raises:
        LayerError, UnitError: the recording does not hold it.
        OptionError: an unknown scale, `units` without `layer`, or a recording without epochs.

    Source: Zeiler & Fergus 2014, Fig. 4.
    """
    recording.check()
    if scale not in ("projection", "unit"):
        raise OptionError(f"scale={scale!r} has no meaning here. Give 'projection' or 'unit'.")
    if layer is None and units is not None:
        raise OptionError("units are those of one layer: give layer as well.")
    if layer is None:
        few = [(t, _spread(len(t.units), FEW)) for t in recording.layers]
        panels = [_panel(t, rows, _signal(t, rows, scale, cmap), name(t)) for t, rows in few]
        return _page(panels, figure, title=title)
    track = recording[layer]
    rows = _rows(track, units)
    left = _panel(track, rows, _signal(track, rows, scale, cmap), f"{name(track)}: projections")
    return _page([left, _panel(track, rows, _photos(track, rows, recording), "patches")], figure, title=title)


def name(track: Track) -> str:
    """Return what a picture calls the layer."""
    return track.name if track.number is None else f"layer {track.number}"


def _spread(count: int, most: int) -> list[int]:
    return [i * count // min(count, most) for i in range(min(count, most))]


def _rows(track: Track, units: Sequence[int] | None) -> list[int]:
    there = track.units.tolist()
    if units is None:
        return list(range(min(len(there), MOST)))
    missing = [unit for unit in units if unit not in there]
    if missing or not len(units):
        some = ", ".join(map(str, there[:20])) + (", …" if len(there) > 20 else "")
        raise UnitError(f"units={list(units)} cannot be drawn: layer {track.name!r} was recorded for units {some}.")
    return [there.index(unit) for unit in units]


def _panel(track: Track, rows: Sequence[int], tiles: Tensor, title: str) -> Panel:
    numbers = [str(int(track.units[row])) for row in rows]
    return Panel(title, numbers, [str(e) for e in track.epochs], tiles, track.changed().T[rows])


def _signal(track: Track, rows: Sequence[int], scale: str = "projection", cmap: str | None = None) -> Tensor:
    """Return the units' projections as tiles (R, E, 3, TILE, TILE) around mid-gray."""
    values = track.projections[:, rows].transpose(0, 1)
    return _colour(_fit(signed(values, per="tile" if scale == "projection" else "block")), cmap)


def _colour(tiles: Tensor, cmap: str | None) -> Tensor:
    """Return tiles (..., 3, h, w) through a colour map, if there is one."""
    return torch.from_numpy(through(cmap, tiles.movedim(-3, -1).numpy())).movedim(-1, -3)


def _photos(track: Track, rows: Sequence[int], recording: Recording) -> Tensor:
    """Return the units' patches as tiles (R, E, 3, TILE, TILE); gray where a unit was silent for all images."""
    patches, boxes = (x[:, rows].transpose(0, 1) for x in (track.patches, track.boxes))
    inside = inside_image(boxes, *patches.shape[-2:]) | (patches != 0).any(2, keepdim=True)
    photos = true_colours(patches, inside, recording.mean, recording.std)
    spoke = (track.activations[:, rows].T != 0)[..., None, None, None]
    return _fit(torch.where(inside & spoke, photos, GRAY))


def _fit(tiles: Tensor) -> Tensor:
    """Bring tiles (R, K, C, h, w) to (R, K, 3, TILE, TILE): small ones keep sharp pixels."""
    flat = rgb(tiles).flatten(0, 1)
    if 4 * max(flat.shape[-2:]) <= TILE:
        flat = torch.nn.functional.interpolate(flat, (TILE, TILE), mode="nearest")
    else:
        flat = torch.nn.functional.interpolate(flat, (TILE, TILE), mode="bilinear", antialias=True).clamp(0, 1)
    return flat.unflatten(0, tiles.shape[:2])


def _page(panels: Sequence[Panel], figure: Figure | None = None, note: str = "", title: str | None = None) -> Figure:
    """Put panels side by side, one pixel of the arrays to one of a figure of its own."""
    widths = [_LABEL + panel.size[0] + _APART for panel in panels]
    top = _TITLE + _HEAD + (_TITLE if title else 0)
    page = (sum(widths), top + max(panel.size[1] for panel in panels) + _FOOT)
    if figure is None:
        figure = Figure(figsize=(page[0] / DPI, page[1] / DPI), dpi=DPI, facecolor="white")
    left = 0
    for panel, width in zip(panels, widths, strict=True):
        _place(panel, figure, left, top, page)
        left += width
    if title:
        figure.text(_LABEL / page[0], 1 - 8 / page[1], title, fontsize=20 * _point(figure, page), va="top")
    marked = any(bool(panel.marks.any()) for panel in panels)
    note = note or ("▌another image became the strongest" if marked else "")
    axes = figure.add_axes((0, 0, 1, _FOOT / page[1]))
    axes.set_axis_off()
    axes.text(_LABEL / page[0], 0.45, note, fontsize=_point(figure, page) * 14, color=_MARK, va="center")
    return figure


def _place(panel: Panel, figure: Figure, left: int, above: int, page: tuple[int, int]) -> None:
    width, height = panel.size
    start = (left + _LABEL - _GAP) / page[0]
    top = 1 - (above + height) / page[1]
    axes = figure.add_axes((start, top, (width + _GAP) / page[0], height / page[1]), anchor="NW")
    axes.imshow(_compose(panel), origin="upper", aspect="equal", interpolation="antialiased", vmin=0, vmax=1)
    axes.set_axis_off()
    point = _point(figure, page)
    for column, label in enumerate(panel.columns):
        axes.text(_GAP + TILE / 2 + column * (TILE + _GAP), -5, label, fontsize=14 * point, ha="center", color="0.25")
    for row, label in enumerate(panel.rows):
        axes.text(-2, row * (TILE + _GAP) + TILE / 2, label, fontsize=12 * point, ha="right", va="center", color="0.45")
    axes.text(_GAP, -_HEAD - 2, panel.title, fontsize=18 * point)


def _compose(panel: Panel) -> np.ndarray:
    """Return the pixels (H, W, 3): each tile with the gap at its left, where its mark is, and the one below."""
    rows, columns = panel.tiles.shape[:2]
    picture = torch.ones(rows, columns, 3, TILE + _GAP, TILE + _GAP)
    picture[..., :TILE, _GAP:] = panel.tiles
    bar = torch.tensor(_MARK)[:, None, None]
    picture[..., :TILE, 1 : _GAP - 1] = torch.where(panel.marks[..., None, None, None], bar, 1.0)
    whole = picture.permute(0, 3, 1, 4, 2).reshape(rows * (TILE + _GAP), columns * (TILE + _GAP), 3)
    return torch.cat([whole, torch.ones(len(whole), _GAP, 3)], 1).numpy()


def _point(figure: Figure, page: tuple[int, int]) -> float:
    """Return the font size of one pixel of the page: a small figure has small letters."""
    return inches(figure) * 72 / page[0]


@picture
def draw_filters(
    recording: Recording, figure: Figure | None = None, *, title: str | None = None, cmap: str | None = None
) -> Figure:
    """Draw the first layer's filters: one near-square sheet per epoch, each on one symmetric scale."""
    recording.check()
    if not recording.filters.shape[1]:
        raise OptionError("this network has no convolution: there are no filters to draw.")
    sheets = signed(recording.filters, per="block")
    panels = [_sheet(f"epoch {e}", s[:MOST], cmap=cmap) for e, s in zip(recording.epochs, sheets, strict=True)]
    return _page(panels, figure, title=title)


def _sheet(title: str, tiles: Tensor, fitted: bool = False, cmap: str | None = None) -> Panel:
    """Return tiles (N, …) as a near-square panel without labels."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tiles = _colour(tiles if fitted else _fit(tiles[None])[0], cmap)
    filled = torch.cat([tiles, torch.ones(rows * columns - len(tiles), 3, TILE, TILE)]).unflatten(0, (rows, columns))
    return Panel(title, (), (), filled, torch.zeros(rows, columns, dtype=torch.bool))


@picture
def draw_convergence(
    recording: Recording, figure: Figure | None = None, *, threshold: float = THRESHOLD, cmap: str = "viridis_r"
) -> Figure:
    """Draw the mean similarity to the last epoch, one curve per layer."""
    curves, half = recording.convergence(), recording.half_settled(threshold)
    figure = figure or Figure(figsize=(6.4, 3.4), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    for i, (track, curve) in enumerate(zip(recording.layers, curves, strict=True)):
        epoch = half[track.name]
        label = f"{name(track)}: " + (f"epoch {epoch}" if epoch else f"after epoch {recording.epochs[-2:][0]}")
        colour = colour_map(cmap)(0.1 + 0.85 * i / max(1, len(curves) - 1))
        axes.plot(recording.epochs, curve.numpy(), color=colour, marker="o", markersize=3.5, label=label)
    axes.axhline(threshold, color="0.7", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(recording.epochs, list(map(str, recording.epochs)))
    axes.minorticks_off()
    axes.set(xlabel="epoch", ylabel=f"similarity to epoch {recording.epochs[-1]}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        title=f"half of the units stay\nat {threshold:g} or above from",
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        alignment="left",
    )
    return figure


def animate(
    recording: Recording, path: str | os.PathLike[str], *, layer: int | str | None = None, seconds: float = 0.8
) -> None:
    """Write a GIF: at each epoch the projections of the units, beside their patches where one layer is asked for.

    Example:
        >>> recording.animate("layer-5.gif", layer=5)  # doctest: +SKIP

    Args:
        recording: what a `Recorder` kept.
        path: the file to write.
        layer: number or module path; None: sixteen units of every layer.
        seconds: per epoch; the last one stays three times as long.

    Raises:
        LayerError: no such layer.
        OptionError: `seconds` is not above 0, or a recording without epochs.
        StoreError: the file cannot be written.
    """
    recording.check()
    if not seconds > 0:
        raise OptionError(f"seconds={seconds!r}: expected a number above 0.")
    sides = _sides(recording, layer)
    frames = []
    for i, epoch in enumerate(recording.epochs):
        panels = [_sheet(title, tiles[:, i], fitted=True) for title, tiles in sides]
        with Image.open(io.BytesIO(png(_page(panels, note=f"epoch {epoch}")))) as frame:
            frames.append(frame.convert("RGB").quantize(255, dither=Image.Dither.NONE))
    times = [round(1000 * seconds)] * (len(frames) - 1) + [round(3000 * seconds)]
    with _store.replacing(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)


def _sides(recording: Recording, layer: int | str | None) -> list[tuple[str, Tensor]]:
    if layer is None:
        return [(name(t), _signal(t, _spread(len(t.units), 16))) for t in recording.layers]
    track = recording[layer]
    rows = _rows(track, None)
    return [(f"{name(track)}: projections", _signal(track, rows)), ("patches", _photos(track, rows, recording))]
