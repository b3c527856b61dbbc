"""Draws an occlusion scan: the five panels of the ZFNet paper's Fig. 7, and the attribution over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ..images.display import rgb, signed
from ..occlusion.cells import cell_edges, covered, label_index, over_image, pixels, score, short
from ..occlusion.result import Occlusion
from .style import DPI, brief, colour_map, inches, picture

WIDTH, HEIGHT = 13.0, 4.3  # inches of a figure of its own; all places below are in these
SIDE, STEP, LEFT, FLOOR = 2.4, 2.58, 0.14, 1.38  # panels: side, one to the next, the first's left, all bottoms
MAPS = "viridis"
EMPTY = "0.93"  # where the occluder's centre never is


@picture
def draw(
    result: Occlusion,
    figure: Figure | None = None,
    *,
    target: int | str | None = None,
    title: str | None = None,
    cmap: str = MAPS,
) -> Figure:
    """Draw the five panels of one scan.

    Example:
        >>> deconvviz.occlude(model, image).plot().savefig("panels.png")  # doctest: +SKIP

    (a) the image with the occluder to scale, where it lowers the target most; (b) the followed map's summed
    activation; (c) that map's strongest activation carried back to pixels, and its top patches from other images;
    (d) the target's probability; (e) the most probable class, or where there are no classes the mean drop per pixel. Maps
    have one cell per position, at the centre of what the occluder covered; the unoccluded value is marked on the colour
    bar. Masks are painted with their values.

    Args:
        result: What `occlude` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
        target: Which of several targets; the first if None.
        title: The line above.
        cmap: The colours of the maps, one of matplotlib's.

    Returns:
        The figure.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", Fig. 7.
    """
    first = result.target[0] if isinstance(result.target, tuple) else result.target
    result = result.only(first if target is None else target)
    if figure is None:
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    page = _Page(figure, result, colour_map(cmap))
    if title:
        figure.text(LEFT / WIDTH, 1 - 0.1 / HEIGHT, title, fontsize=10 * page.scale, va="top")
    page.photo(0)
    page.activation(1)
    page.projection(2)
    page.probability(3)
    if bool((result.label < 0).all()):
        page.drop(4)
    else:
        page.labels(4)
    return figure


@picture
def overlay(
    result: Occlusion,
    figure: Figure | None = None,
    *,
    of: str | None = None,
    target: int | str | None = None,
    title: str | None = None,
    cmap: str = "RdBu_r",
) -> Figure:
    """Draw the attribution over the gray image: red is what the target loses by being covered.

    Example:
        >>> deconvviz.occlude(model, image).overlay().savefig("overlay.png")  # doctest: +SKIP

    Args:
        result: What `occlude` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
        of: As for `Occlusion.attribution`.
        target: Which of several targets; the first if None.
        title: The line above; the target's name if None.
        cmap: Its middle is no drop; one of matplotlib's.

    Returns:
        The figure.
    """
    first = result.target[0] if isinstance(result.target, tuple) else result.target
    result = result.only(first if target is None else target)
    drop, colours = result.attribution(of).numpy(), colour_map(cmap)
    limit = float(np.nanmax(np.abs(drop))) if np.isfinite(drop).any() else 0.0
    scale = Normalize(-(limit or 1.0), limit or 1.0)
    if figure is None:
        figure = Figure(figsize=(4.2, 4.9), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.03, 0.17, 0.94, 0.76))
    height, width = result.image_size
    frame = (0, width, height, 0)
    axes.imshow(pixels(result, result.image).mean(2), "gray", vmin=0, vmax=1, extent=frame, interpolation="nearest")
    axes.imshow(drop, colours, scale, alpha=0.55, extent=frame, interpolation="nearest")
    axes.set_axis_off()
    what = of or ("value" if result.probability.isnan().all() else "probability")
    name = "summed activation" if of == "activation" else result.name_of(result.target)  # type: ignore[arg-type]
    axes.set_title(title or short(name, 44), fontsize=9, loc="left")
    bar = figure.colorbar(ScalarMappable(scale, colours), cax=figure.add_axes((0.03, 0.115, 0.94, 0.025)),
                          orientation="horizontal", alpha=0.55)  # fmt: skip
    _quiet(bar, 1)
    bar.set_label(f"mean drop of the {what} when covered", fontsize=8)
    return figure


class _Page:
    """Five columns of a figure; `scale` fits the letters to its width."""

    def __init__(self, figure: Figure, result: Occlusion, cmap: Any) -> None:
        self.figure, self.result, self.cmap = figure, result, cmap
        self.scale = inches(figure) / WIDTH

    def axes(self, column: int, box: tuple[float, float, float, float] = (0, FLOOR, SIDE, SIDE)) -> Axes:
        """Add axes; `box` is left, bottom, width, height within the column, in inches."""
        x, y, width, height = box
        place = ((LEFT + column * STEP + x) / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT)
        return self.figure.add_axes(place)

    def panel(self, column: int, title: str) -> Axes:
        """Add the square of a column, its axes in image pixels."""
        axes = self.axes(column)
        height, width = self.result.image_size
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[], facecolor=EMPTY)
        axes.spines[:].set(linewidth=0.5 * self.scale, color="0.5")
        letter = f"({'abcde'[column]})  "
        axes.set_title(letter + title, fontsize=8.5 * self.scale, loc="left", pad=5 * self.scale)
        return axes

    def picture(self, axes: Axes, array: np.ndarray) -> None:
        height, width = self.result.image_size
        axes.imshow(array, extent=(0, width, height, 0), interpolation="antialiased", vmin=0, vmax=1)

    def mesh(self, axes: Axes, values: Tensor, norm: Normalize, cmap: Any = None) -> ScalarMappable:
        """Draw one cell per position, or the masks with their values."""
        result, cmap = self.result, self.cmap if cmap is None else cmap
        height, width = result.image_size
        if result.size is None:
            array = over_image(result, values)
            return axes.imshow(array, cmap, norm, extent=(0, width, height, 0), interpolation="nearest")
        x, y = (
            cell_edges(*z) for z in zip((result.cols, result.rows), result.size[::-1], (width, height), strict=True)
        )
        mesh = axes.pcolormesh(x, y, values.numpy(), cmap=cmap, norm=norm)
        axes.set(xlim=(0, width), ylim=(height, 0))
        return mesh

    def note(self, column: int, lines: Sequence[str]) -> None:
        x, y = (LEFT + column * STEP) / WIDTH, (FLOOR - 0.12) / HEIGHT
        self.figure.text(x, y, "\n".join(lines), fontsize=7.5 * self.scale, color="0.3", va="top", linespacing=1.5)

    def bar(self, column: int, mesh: ScalarMappable, unit: str, usual: float) -> None:
        """Add a colour bar with the unoccluded value marked."""
        axes = self.axes(column, (0.1, FLOOR - 0.38, SIDE - 0.2, 0.1))
        _quiet(self.figure.colorbar(mesh, cax=axes, orientation="horizontal"), self.scale)
        axes.plot([usual], [1.45], marker="v", markersize=5 * self.scale, color="black", clip_on=False,
                  transform=axes.get_xaxis_transform())  # fmt: skip
        text = f"{unit}   (▼ unoccluded: {brief(usual)})"
        axes.set_xlabel(text, fontsize=7.5 * self.scale, color="0.3", labelpad=3 * self.scale)

    def photo(self, column: int) -> None:
        result = self.result
        axes = self.panel(column, "image, occluder to scale" if result.size else "image, one mask covered")
        _, values, _ = score(result)
        worst = int(values.flatten().argmin())
        image, _ = covered(result, worst)
        self.picture(axes, pixels(result, image))
        count = f"{result.label.numel():,} masks"
        lines = []
        if result.size is not None and result.stride is not None:
            row, col = divmod(worst, len(result.cols))
            corner = int(result.cols[col]), int(result.rows[row])
            axes.add_patch(Rectangle(corner, *result.size[::-1], fill=False, color="white", linewidth=self.scale))
            lines = [f"occluder {_pair(result.size)} px, {_pair(result.stride)} px apart"]
            count = f"{_pair(result.label.shape)} positions"
        if not result.measured.all():
            count += f", {int(result.measured.sum()):,} measured"
        self.note(column, [*lines, f"filled with {result.fill_name}", count, "shown: where (d) is lowest"])

    def activation(self, column: int) -> None:
        result = self.result
        if result.activation is None:
            self.panel(column, "no layer was followed")
            return
        where = result.layer if result.number is None else f"layer {result.number}"
        axes = self.panel(column, f"{short(str(where))}, unit {result.unit}")
        usual = float(result.unoccluded["activation"])
        mesh = self.mesh(axes, result.activation, range_of(result.activation, usual))
        self.bar(column, mesh, "summed activation", usual)

    def projection(self, column: int) -> None:
        result = self.result
        if result.projection is None:
            self.panel(column, "no projection")
            why = ["no layer was followed"] if result.layer is None else ["an operation on the path has no rule"]
            self.note(column, why)
            return
        axes = self.panel(column, f"unit {result.unit}, projected")
        self.picture(axes, _signed(result.projection[None])[0])
        if result.other_patches is None or result.other_projections is None:
            self.note(column, ["its strongest activation in this image,", "carried back to pixels; gray is zero"])
            return
        self.note(column, ["the same unit in other images:"])
        patches = np.stack([pixels(result, patch) for patch in result.other_patches])
        for line, tiles in enumerate((_signed(result.other_projections), patches)):
            for i, tile in enumerate(tiles):
                small = self.axes(column, (i * 0.6, FLOOR - 0.82 - line * 0.54, 0.52, 0.5))
                small.imshow(tile, interpolation="antialiased", vmin=0, vmax=1)
                small.set_axis_off()

    def probability(self, column: int) -> None:
        unit, values, usual = score(self.result)
        name = short(self.result.name_of(self.result.target))  # type: ignore[arg-type]
        axes = self.panel(column, f"p({name})" if unit == "probability" else name)
        self.bar(column, self.mesh(axes, values, range_of(values, usual)), unit, usual)

    def drop(self, column: int) -> None:
        """Draw the mean drop per pixel, in place of the classes of a network that has none."""
        values = self.result.attribution()
        axes = self.panel(column, "mean drop where covered")
        height, width = self.result.image_size
        largest = max(float(values.nan_to_num().abs().max()), 1e-12)
        both = Normalize(-largest, largest)
        drawn = axes.imshow(values.numpy(), "RdBu_r", both, extent=(0, width, height, 0), interpolation="nearest")
        below = self.axes(column, (0.1, FLOOR - 0.38, SIDE - 0.2, 0.1))
        _quiet(self.figure.colorbar(drawn, cax=below, orientation="horizontal"), self.scale)
        below.set_xlabel("value", fontsize=7.5 * self.scale, color="0.3", labelpad=3 * self.scale)

    def labels(self, column: int) -> None:
        axes = self.panel(column, "most probable class")
        index, legend = label_index(self.result)
        cmap, norm = ListedColormap([colour for _, colour in legend]), Normalize(-0.5, len(legend) - 0.5)
        if self.result.size is None:  # of masks that overlap the last is seen
            flat = np.full(self.result.image_size, np.nan)
            assert self.result.masks is not None
            for mask, i in zip(self.result.masks.numpy() > 0.5, index[:, 0], strict=True):
                flat[mask] = i
            height, width = self.result.image_size
            axes.imshow(flat, cmap, norm, extent=(0, width, height, 0), interpolation="nearest")
        else:
            self.mesh(axes, torch.from_numpy(index), norm, cmap)
        below = self.axes(column, (0, 0.02, SIDE, FLOOR - 0.1))
        below.set_axis_off()
        below.legend(handles=[Patch(color=colour, label=text) for text, colour in legend], loc="upper left",
                     fontsize=7.5 * self.scale, frameon=False, borderaxespad=0, borderpad=0, handlelength=1,
                     handleheight=0.9, labelspacing=0.28, labelcolor="0.2")  # fmt: skip


def range_of(values: Tensor, usual: float) -> Normalize:
    """Return the scale of a map's colours: its least to its largest value, the unoccluded one among them."""
    low, high = min(float(values.min()), usual), max(float(values.max()), usual)
    return Normalize(low, high if high > low else low + 1e-6)


def _quiet(bar: object, scale: float) -> None:
    bar.outline.set_linewidth(0.4 * scale)  # type: ignore[attr-defined]
    bar.ax.tick_params(labelsize=7 * scale, length=2 * scale, width=0.4 * scale, pad=2 * scale)  # type: ignore
    bar.ax.locator_params(nbins=5)  # type: ignore[attr-defined]


def _signed(projections: Tensor) -> np.ndarray:
    """Return projections (N, C, h, w) as (N, h, w, 3) around mid-gray, each on its own scale."""
    return rgb(signed(projections.float()[None], per="tile"))[0].permute(0, 2, 3, 1).numpy()


def _pair(pair: Sequence[int]) -> str:
    return f"{pair[0]}×{pair[1]}"
