"""Draws each query beside its nearest images."""

from __future__ import annotations

from typing import Any

from ..errors import OptionError
from ..studies.neighbours import Neighbours
from .style import brief, new_figure, picture, short


@picture
def draw(result: Neighbours, figure: Any = None, *, cmap: str | None = None) -> Any:
    """Draw a row per query: the query, then its nearest images with their distances and captions.

    Photos have their own colours: a `cmap` is refused.
    """
    if cmap is not None:
        raise OptionError(f"cmap={cmap!r}: these are photos in their own colours. Leave it out.")
    rows, columns = result.pictures.shape[:2]
    figure = new_figure(figure, 1.15 * columns + 0.2, 1.36 * rows + 0.3)
    ratios = [1.0, 0.12, *[1.0] * (columns - 1)]
    axes = figure.subplots(rows, columns + 1, squeeze=False, gridspec_kw={"width_ratios": ratios})
    for row in range(rows):
        axes[row, 1].set_axis_off()
        for column in range(columns):
            axis = axes[row, column + (column > 0)]
            axis.imshow(result.pictures[row, column].permute(1, 2, 0).numpy(), interpolation="antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(column == 0)
            if column:
                text = f"{_caption(result.names[row][column - 1])}\n{brief(float(result.distances[row, column - 1]))}"
                axis.set_xlabel(text, fontsize=6.5, labelpad=2, color="0.3")
    axes[0, 0].set_title("query", fontsize=8)
    text = f"nearest in layer {short(result.layer)}, {_METRICS[result.metric]}"
    # Outside the layout: a title as wide as three pictures would push them apart.
    head = axes[0, 2].text(0, 1.04, text, fontsize=8, transform=axes[0, 2].transAxes)
    head.set_in_layout(False)
    return figure


_METRICS = {"l2": "Euclidean distance", "cosine": "1 − cosine"}


def _caption(text: str) -> str:
    text = text.rsplit("/", 1)[-1].split(",")[0]
    return text if len(text) <= 18 else text[:17] + "…"
