"""Draws results into matplotlib figures, which are returned and never shown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage.util import montage

from ..errors import OptionError, UnitError
from ..images.display import GRAY, PERCENTILE, in_order, inside_image, rgb, signed, true_colours
from ..occlusion.field import smallest_box
from ..projection.result import Projections
from .style import DPI, WARNING, brief, inches, picture, through, written

MOST = 64  # blocks in one picture; more would be dots
_RULE, _GAP, _HEAD, _MIDDLE = 1, 22, 62, 14  # pixels: between tiles, blocks, above all, between the sides
_LETTER, _LINE = 8, 18  # pixels: what a letter of a note takes, and a line of it
_SCALES = {"unit": "block", "projection": "tile", "sheet": "sheet"}
_CROPS = ("field", "effective")
ENERGY = 0.95  # of a unit's projections, which an effective crop of them holds
_CELLS = 48  # per side, in which that box is looked for
_LEAST = 6  # pixels: a crop is no smaller


@picture
def draw(
    result: Projections,
    figure: Figure | None = None,
    *,
    units: Sequence[int] | None = None,
    scale: str = "unit",
    columns: int | None = None,
    crop: str = "field",
    smooth: float = 0.0,
    gray: bool = False,
    percentile: float = PERCENTILE,
    title: str | None = None,
    cmap: str | None = None,
) -> Figure:
    """Draw one block of tiles per unit, its projections at the left and their patches at the right.

    Those of other rules, where there are any, stand between. A tile whose signal was lost on the way says where.

    Example:
        >>> figure = draw(deconvviz.project(model, layer=5))  # doctest: +SKIP
        >>> figure.savefig("layer-5.png")  # doctest: +SKIP

    In a figure of its own one pixel of the composed arrays is one pixel of the picture.

    Args:
        result: What `project` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one of the fitting size if None.
        units: The units to draw, by number; None draws all, at most the first 64.
        scale: "unit": one symmetric scale for the block of a unit, so that its tiles can be compared;
            "projection": each tile stretched by itself, as in the paper; "sheet": one for all units.
            Zero is mid-gray in all.
        columns: Blocks beside each other; None makes the sheet nearly square.
        crop: "field": tiles show the whole receptive field; "effective": of each unit the smallest box, of the
            field's proportions, that holds 95 % of its projections' energy; its height stands above the block.
        smooth: Standard deviation in pixels of a Gaussian that the projections are shown through; 0: none.
        gray: Show the mean of a projection's channels.
        percentile: Of the values that are not zero, how many percent span the colours; the rest saturates.
        title: The line above; the layer's name if None.
        cmap: One of matplotlib's colour maps, for the mean of a projection's channels; None: their own colours.

    Returns:
        The figure.

    Raises:
        UnitError: A unit that the result does not hold.
        OptionError: An unknown scale or crop, or another option without meaning.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", Fig. 2.
    """
    rows = rows_of(result, units)
    grid = Grid.of(result, len(rows), columns)
    shown: dict[str, Any] = {"scale": scale, "smooth": smooth, "gray": gray, "percentile": percentile}
    crops = Crops.of(
        crop, result, rows, [energy_box(result.projections[row]) for row in rows] if crop != "field" else []
    )
    stories = [[_story(result, row, side) for row in rows] for side in (0, 1)]
    labels = stories if len(rows) == 1 else [crops.said(numbers_above(result, rows))] * 2
    between = [""] * len(rows) if len(rows) == 1 else labels[0]
    sides: list[tuple[np.ndarray, str, Sequence[str]]] = []
    for one in (result, *result.beside):
        name = "projections" + f", {one.rule}" * bool(result.beside) + said_of(smooth, gray, percentile)
        signal = through(cmap, crops.fill(grid, signal_of(one, rows, **shown)))
        sides.append((signal, name, between if sides else labels[0]))
    sides.append((crops.fill(grid, photos_of(result, rows)), "patches", labels[1]))
    note = " ".join(filter(None, [result.note, *(f"{one.rule}: {one.loss}" for one in result.beside if one.loss)]))
    figure = draw_sides(sides, grid, title or _title(result, len(rows)), note, figure)
    for side, one in enumerate((result, *result.beside)):
        say_lost(figure.axes[side - len(sides)], one, rows, grid)
    return figure


def draw_sides(
    sides: Sequence[tuple[np.ndarray, str, Sequence[str]]],
    grid: Grid,
    title: str,
    note: str = "",
    figure: Figure | None = None,
) -> Figure:
    """Draw composed arrays beside each other, each with its name and a label for each block; `note` stands above all."""
    height, width = sides[0][0].shape[:2]
    across = len(sides) * (width + _MIDDLE) - _MIDDLE
    lines = textwrap.wrap(note, max(30, (across - 2 * _GAP) // _LETTER))
    frame = (across, height + _HEAD + _LINE * len(lines))
    if figure is None:
        figure = Figure(figsize=(frame[0] / DPI, frame[1] / DPI), dpi=DPI, facecolor="white")
    for side, (array, name, labels) in enumerate(sides):
        start = side * (width + _MIDDLE) / frame[0]
        axes = figure.add_axes((start, 0.0, width / frame[0], height / frame[1]), anchor="N")
        axes.imshow(array, origin="upper", aspect="equal", interpolation="antialiased", vmin=0, vmax=1)
        axes.set_axis_off()
        # Font sizes follow the array, so that a small given figure has small numbers.
        point = axes.get_position().width * inches(figure) * 72 / width
        axes.text(_GAP, -2, name, fontsize=15 * point, color="0.35", va="bottom")
        for block, label in enumerate(labels):
            x, y = grid.corner(block)
            axes.text(x + 1, y - 2, label, fontsize=13 * point, color="0.35", va="bottom")
        if side == 0:
            told = "\n".join(lines)
            axes.text(_GAP, -_HEAD + 6, told, fontsize=13 * point, color=WARNING, va="bottom", linespacing=1.1)
            axes.text(_GAP, -26, title, fontsize=20 * point, va="bottom")
    return figure


def say_lost(axes: Axes, result: Any, rows: Sequence[int], grid: Grid) -> None:
    """Cross out the tiles of a side whose signals were lost on the way, and write where."""
    point = axes.get_position().width * inches(axes.figure) * 72 / np.ptp(axes.get_xlim())
    letters = max(6, grid.width // 6)
    for block, row in enumerate(rows):
        for index in range(grid.tiles):
            step = result.lost_at(row, index)
            if not step:
                continue
            x, y = grid.tile(block, index)
            middle = (x + grid.width / 2, y + grid.height / 2)
            axes.add_patch(Rectangle((x, y), grid.width - 1, grid.height - 1, **_CROSSED))
            text = "\n".join(["lost at", *textwrap.wrap(written(step), letters)][: max(1, grid.height // 12)])
            box = {"facecolor": "0.5", "edgecolor": "none", "pad": 1.5 * point}
            axes.text(*middle, text, fontsize=10 * point, color="white", ha="center", va="center", bbox=box)


_CROSSED: dict[str, Any] = {"fill": False, "hatch": "//", "edgecolor": "0.62", "linewidth": 0}


def compose(
    result: Projections, *, units: Sequence[int] | None = None, scale: str = "unit", columns: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the two sides of the picture, projections and patches, each (H, W, 3) float32 within 0–1.

    Example:
        >>> left, right = compose(deconvviz.project(model, layer=5))  # doctest: +SKIP
        >>> left.shape == right.shape  # doctest: +SKIP
        True
    """
    rows = rows_of(result, units)
    grid = Grid.of(result, len(rows), columns)
    return grid.fill(signal_of(result, rows, scale=scale)), grid.fill(photos_of(result, rows))


def signal_of(result: Any, rows: Sequence[int], *, scale: str, **look: Any) -> torch.Tensor:
    """Return the projections (U, K, C, h, w) of some units around mid-gray; `look` is what `signed` takes."""
    if scale not in _SCALES:
        raise OptionError(f"scale={scale!r} has no meaning here. Give {' or '.join(map(repr, _SCALES))}.")
    signal = in_order(signed(result.projections[rows].float(), per=_SCALES[scale], **look), result.order)
    return signal.masked_fill(silent_places(result, rows), 1.0)


def said_of(smooth: float, gray: bool, percentile: float) -> str:
    """Return how projections are shown, as the caption says it where that is not as usual."""
    said = [f"smoothed by {smooth:g} px"] * (smooth > 0) + ["gray"] * gray
    said += [f"{percentile:g} % span the colours"] * (percentile != PERCENTILE)
    return f" ({', '.join(said)})" if said else ""


def photos_of(result: Any, rows: Sequence[int]) -> torch.Tensor:
    """Return the patches (U, K, C, h, w) of some units in true colours, gray beyond the image's edge."""
    patches = result.patches[rows].float()
    # What is not zero is no padding, whatever the boxes of an odd geometry say.
    inside = inside_image(result.boxes[rows], *patches.shape[-2:]) | (patches != 0).any(2, keepdim=True)
    photos = torch.where(inside, true_colours(patches, inside, result.mean, result.std), GRAY)
    photos = in_order(photos, result.order)
    return photos.masked_fill(silent_places(result, rows), 1.0)


def silent_places(result: Any, rows: Sequence[int]) -> torch.Tensor:
    """Mark the tiles (U, K, 1, 1, 1) of places that no image excites: there is nothing to show."""
    return (result.image_ids[rows] < 0)[..., None, None, None]


def sheet(values: torch.Tensor, figure: Figure | None = None, *, title: str = "") -> Figure:
    """Draw signed maps (N, C, H, W) as a near-square sheet of tiles, each around mid-gray on its own scale.

    Example:
        >>> sheet(deconvviz.deconv(model, images, layer=5, unit=3)).savefig("unit-3.png")  # doctest: +SKIP
    """
    tiles = rgb(signed(values.detach().cpu().float()[None], per="tile"))[0].permute(0, 2, 3, 1).numpy()
    array = _montage(tiles, Grid.square(len(tiles)), 2 * _RULE)
    height, width = array.shape[:2]
    if figure is None:
        size = (max(width, 320) / DPI, (height + _HEAD // 2) / DPI)
        figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + _HEAD // 2)), anchor="SW")
    axes.imshow(array, origin="upper", aspect="equal", interpolation="antialiased")
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=8, pad=3)
    return figure


class Crops(NamedTuple):
    """The part (top, left, bottom, right) of each unit's tiles that is shown; none: all of them."""

    boxes: Sequence[tuple[int, int, int, int]]

    @classmethod
    def of(cls, crop: str, result: Any, rows: Sequence[int], fields: Sequence[Sequence[int]]) -> Crops:
        """Choose the effective fields, grown to the proportions of the patches; an empty one is the whole patch."""
        if crop not in _CROPS:
            raise OptionError(f"crop={crop!r} has no meaning here. Give {' or '.join(map(repr, _CROPS))}.")
        height, width = result.patches.shape[-2:]
        return cls([] if crop == "field" else [_in_proportion(box, height, width) for box in fields])

    def fill(self, grid: Grid, tiles: torch.Tensor) -> np.ndarray:
        """Put the parts of tiles (U, K, C, h, w) in their places."""
        if not self.boxes:
            return grid.fill(tiles)
        parts = []
        for unit, (top, left, bottom, right) in zip(tiles, self.boxes, strict=True):
            parts.append(grid.resized(unit[:, :, top:bottom, left:right]))
        return grid.fill(torch.stack(parts))

    def said(self, labels: Sequence[str]) -> list[str]:
        """Add to each unit's label how many pixels high its part is."""
        if not self.boxes:
            return list(labels)
        return [f"{text} · {bottom - top} px" for text, (top, _, bottom, _) in zip(labels, self.boxes, strict=True)]


def energy_box(projections: torch.Tensor) -> Sequence[int]:
    """Return the smallest box (top, left, bottom, right) with 95 % of the energy of projections (K, C, h, w).

    It is looked for in cells of a few pixels where the tiles are large. All 0 where there is no energy.
    """
    energy = projections.double().square().sum((0, 1))
    cell = math.ceil(max(energy.shape) / _CELLS)
    height, width = energy.shape
    padded = torch.nn.functional.pad(energy, (0, -width % cell, 0, -height % cell))
    cells = padded.unflatten(1, (-1, cell)).sum(2).unflatten(0, (-1, cell)).sum(1)
    found = smallest_box(cells, ENERGY)
    if found is None:
        return (0, 0, 0, 0)
    top, left, bottom, right = (cell * edge for edge in found)
    return top, left, min(bottom, height), min(right, width)


def _in_proportion(box: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    """Grow a box to the proportions of a patch of `height` × `width`, around its middle where there is room."""
    top, left, bottom, right = (int(edge) for edge in box)
    if bottom <= top:
        return 0, 0, height, width
    share = min(1.0, max((bottom - top) / height, (right - left) / width, _LEAST / min(height, width)))
    high, wide = math.ceil(share * height), math.ceil(share * width)
    first = [(low + end - size) // 2 for low, end, size in ((top, bottom, high), (left, right, wide))]
    top, left = (
        max(0, min(at, length - size)) for at, length, size in zip(first, (height, width), (high, wide), strict=True)
    )
    return top, left, top + high, left + wide


class Grid(NamedTuple):
    """Where the tiles of every block are, in pixels."""

    tiles: int  # per block
    blocks: int
    height: int  # of a tile as it is shown
    width: int
    across: int  # blocks beside each other

    @classmethod
    def of(cls, result: Any, blocks: int, columns: int | None = None) -> Grid:
        """Choose for the patches of a result."""
        if columns is not None and columns < 1:
            raise OptionError(f"columns={columns}: expected a number of blocks beside each other, at least 1.")
        height, width = result.patches.shape[-2:]
        # One unit alone is shown large; every layer's tiles have about the same size on paper.
        goal, limit = (240, 240) if blocks == 1 else (160, 224) if blocks <= 4 else (80, 112)
        side = max(height, width)
        factor = limit / side if side > limit else max(1, round(goal / side))
        across = min(columns or cls.square(blocks)[1], blocks)
        return cls(result.patches.shape[1], blocks, round(height * factor), round(width * factor), across)

    @staticmethod
    def square(count: int) -> tuple[int, int]:
        """Return rows and columns of a near-square of so many."""
        columns = math.ceil(math.sqrt(count))
        return math.ceil(count / columns), columns

    def corner(self, block: int) -> tuple[int, int]:
        """Return x and y of a block's upper left corner."""
        rows, columns = self.square(self.tiles)
        row, column = divmod(block, self.across)
        step_x = columns * (self.width + _RULE) + _RULE + _GAP
        step_y = rows * (self.height + _RULE) + _RULE + _GAP
        return _GAP + column * step_x, _GAP + row * step_y

    def tile(self, block: int, index: int) -> tuple[int, int]:
        """Return x and y of a tile's upper left corner."""
        x, y = self.corner(block)
        row, column = divmod(index, self.square(self.tiles)[1])
        return x + _RULE + column * (self.width + _RULE), y + _RULE + row * (self.height + _RULE)

    def fill(self, tiles: torch.Tensor) -> np.ndarray:
        """Put tiles (U, K, C, h, w) in their places: (H, W, 3)."""
        tiles = self.resized(rgb(tiles).flatten(0, 1)).unflatten(0, tiles.shape[:2])
        shape = self.square(self.tiles)
        blocks = [_montage(block, shape, _RULE) for block in tiles.permute(0, 1, 3, 4, 2).numpy()]
        return _montage(np.stack(blocks), (math.ceil(self.blocks / self.across), self.across), _GAP)

    def resized(self, tiles: torch.Tensor) -> torch.Tensor:
        """Bring tiles (n, C, h, w) to the size that is shown."""
        factor, rest = divmod(self.width, tiles.shape[-1])
        if rest == 0 and self.height == factor * tiles.shape[-2]:
            return tiles.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        size = (self.height, self.width)
        return torch.nn.functional.interpolate(tiles, size, mode="bilinear", antialias=True).clamp(0, 1)


def _montage(images: np.ndarray, shape: tuple[int, int], padding: int) -> np.ndarray:
    return montage(images, fill=(1.0, 1.0, 1.0), grid_shape=shape, padding_width=padding, channel_axis=-1)


def rows_of(result: Any, units: Sequence[int] | None) -> list[int]:
    """Return where the units to draw are in a result; None: the first `MOST`."""
    there = [int(unit) for unit in result.units]
    if units is None:
        return list(range(min(len(there), MOST)))
    missing = [unit for unit in units if unit not in there]
    if missing or not len(units):
        some = ", ".join(map(str, there[:20])) + (", …" if len(there) > 20 else "")
        raise UnitError(f"units={list(units)} cannot be drawn: this result holds {len(there)} units ({some}).")
    return [there.index(unit) for unit in units]


def _title(result: Projections, shown: int) -> str:
    title = result.layer if result.number is None else f"layer {result.number}: {result.layer}"
    title += "" if result.rule == "deconvnet" or result.beside else f", {result.rule}"
    return title + (f" ({shown} of {len(result.units):,} units)" if shown < len(result.units) else "")


def numbers_above(result: Any, rows: Sequence[int]) -> list[str]:
    """Return what stands above each of several blocks: the unit, and whether it is dead on these images."""
    dead = (result.image_ids[list(rows)] < 0).all(1).tolist()
    return [f"{int(result.units[row])}{' (no response)' * gone}" for row, gone in zip(rows, dead, strict=True)]


def _story(result: Projections, row: int, side: int) -> str:
    """Return the line above a unit drawn alone: its activations at the left, its images at the right."""
    there = [k for k, i in enumerate(result.image_ids[row].tolist()) if i >= 0]
    if not there:
        return "" if side else f"unit {int(result.units[row])}: no response"
    if side:
        return "images " + ", ".join(str(int(result.image_ids[row, k])) for k in there)
    values = ", ".join(brief(float(result.activations[row, k])) for k in there)
    return f"unit {int(result.units[row])}: {values}"
