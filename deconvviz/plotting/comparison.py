"""Draws methods side by side, and what random weights make of their maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..comparison.result import TITLES, MethodComparison
from ..comparison.similarity import strength
from ..errors import OptionError
from ..images import display
from .style import DPI, brief, colour_map, inches, picture, short

_ROOM = {  # inches above all tiles, below them, left of them, under each
    "maps": {"head": 0.25, "foot": 0.0, "left": 0.09, "under": 0.0},
    "randomized": {"head": 0.5, "foot": 0.03, "left": 1.35, "under": 0.16},
}
_SIDE, _GAP = 1.3, 0.09  # inches: the longer side of a tile, between tiles


def title_of(method: str) -> str:
    """Return a method's name as it is written, an own one's as it was given."""
    return TITLES.get(method, method)


def signed(full: Tensor, cmap: str | None = None) -> np.ndarray:
    """Return (H, W, 3): colours around mid-gray for (C, H, W), blue to red through white for (1, H, W)."""
    level = display.signed(full.float()[None, None], per="tile")[0, 0]
    if len(full) == 1 or cmap is not None:
        return colour_map(cmap or "RdBu_r")(level.mean(0).numpy())[..., :3]
    return display.rgb(level[None, None])[0, 0].permute(1, 2, 0).numpy()


def dark(full: Tensor) -> np.ndarray:
    """Return (H, W): the strength of (C, H, W), white for none; its largest half percent is black."""
    level = display.signed(strength(full).float()[None, None, None], per="tile")[0, 0, 0]
    return 2 - 2 * level.numpy()


@picture
def draw(
    result: MethodComparison,
    figure: Any = None,
    *,
    what: str = "maps",
    title: str | None = None,
    cmap: str | None = None,
) -> Any:
    """Draw the methods side by side, or what the random weights make of them.

    Each tile has its own scale; its largest half percent saturates.

    Args:
        result: What `compare_methods` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        what: "maps": each map as its method draws it, signed and around gray, and below it the strength per pixel that
            is compared. "randomized": methods in rows, the trained network at the left, then more and more random
            layers; the number is ρ of the first draw.
        title: The line above.
        cmap: One of matplotlib's colour maps, for signed maps; None: blue to red for maps without channels, else their
            own colours.

    Raises:
        OptionError: Another `what`, or nothing was randomized.
    """
    if what not in ("maps", "randomized"):
        raise OptionError(f"what={what!r} has no meaning here. Give 'maps' or 'randomized'.")
    return _maps(result, figure, title, cmap) if what == "maps" else _randomized(result, figure, title)


def _maps(result: MethodComparison, figure: Any, title: str | None, cmap: str | None) -> Any:
    """Draw the image and each method's signed map, and below it its strength."""
    page = _Page(result, figure, columns=1 + len(result.methods), rows=2, **_ROOM["maps"], title=title)
    axes = page.tile(0, 0, result.picture.permute(1, 2, 0).numpy())
    page.above(axes, "image")
    page.note(
        0, 1, f"{_wrapped(result.target)}\nvalue {brief(result.value)}\n\nabove: signed\nright: strength per pixel"
    )
    for column, (name, full) in enumerate(zip(result.methods, result.maps, strict=True), 1):
        page.above(page.tile(column, 0, signed(full, cmap)), title_of(name))
        page.tile(column, 1, dark(full))
    return page.figure


def _randomized(result: MethodComparison, figure: Any, title: str | None) -> Any:
    """Draw the strength of each method's map: of the trained network, then of more and more random ones."""
    if not result.stages:
        raise OptionError("nothing was randomized in this comparison. Call compare_methods with stages=8.")
    count = len(result.methods)
    page = _Page(result, figure, columns=1 + len(result.stages), rows=count, **_ROOM["randomized"], title=title)
    for row, (name, full, drawn) in enumerate(zip(result.methods, result.maps, result.randomized, strict=True)):
        axes = page.tile(0, row, dark(full))
        page.beside(axes, title_of(name))
        if row == 0:
            page.above(axes, "trained")
        for stage, one in enumerate(drawn):
            axes = page.tile(1 + stage, row, dark(one))
            number = f"ρ = {float(result.rank_correlation[row, stage, 0]):.2f}".replace("-", "−")
            page.below(axes, number, "bold" if stage == len(drawn) - 1 else "normal")
            if row == 0:
                page.above(axes, short(result.stages[stage][-1] or "the model", 18))
    page.headline(1, "weights drawn at random, from the output down to …")
    return page.figure


class _Page:
    """A grid of tiles, placed in inches; a given figure is filled, with letters to its size."""

    def __init__(
        self,
        result: MethodComparison,
        figure: Any,
        *,
        columns: int,
        rows: int,
        head: float,
        foot: float,
        left: float,
        under: float,
        title: str | None,
    ) -> None:
        height, width = result.image.shape[1:]
        self.width, self.height = _SIDE * width / max(height, width), _SIDE * height / max(height, width)
        self.left, self.foot, self.under = left, foot, under
        above = 0.3 if title else 0.0
        self.across = left + columns * (self.width + _GAP)
        self.down = above + head + rows * (self.height + under + _GAP) + foot
        self.top, self.over = self.down - head - above, above
        if figure is None:
            figure = Figure(figsize=(self.across, self.down), dpi=2 * DPI, facecolor="white")
        self.figure, self.scale = figure, inches(figure) / self.across
        if title:
            figure.text(0.09 / self.across, 1 - 0.06 / self.down, title, fontsize=10 * self.scale, va="top")

    def place(self, column: int, row: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width, height of a tile in parts of the figure."""
        x = self.left + column * (self.width + _GAP)
        y = self.top - (row + 1) * self.height - row * (self.under + _GAP)
        return x / self.across, y / self.down, self.width / self.across, self.height / self.down

    def tile(self, column: int, row: int, picture: np.ndarray) -> Axes:
        """Draw one picture; (H, W) is gray, 1 white."""
        axes = self.figure.add_axes(self.place(column, row))
        axes.imshow(picture, "gray", vmin=0, vmax=1, interpolation="nearest" if len(picture) < 100 else "antialiased")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.4 * self.scale, color="0.6")
        return axes

    def above(self, axes: Axes, text: str) -> None:
        axes.set_title(text, fontsize=8 * self.scale, pad=3.5 * self.scale)

    def below(self, axes: Axes, text: str, weight: str) -> None:
        axes.set_xlabel(text, fontsize=7.5 * self.scale, labelpad=2 * self.scale, color="0.25", weight=weight)

    def beside(self, axes: Axes, text: str) -> None:
        axes.set_ylabel(text, fontsize=8 * self.scale, rotation=0, ha="right", va="center", labelpad=5 * self.scale)

    def note(self, column: int, row: int, text: str) -> None:
        x, y, _, height = self.place(column, row)
        self.figure.text(x, y + height, text, fontsize=7.5 * self.scale, va="top", color="0.25", linespacing=1.35)

    def headline(self, column: int, text: str) -> None:
        x = self.place(column, 0)[0]
        self.figure.text(x, 1 - (self.over + 0.1) / self.down, text, fontsize=9 * self.scale, va="top")


def _wrapped(text: str) -> str:
    """Break what the target is called into lines that fit beside the tiles."""
    import textwrap

    return "\n".join(textwrap.wrap(text, 22))
