"""What all pictures share: colours, sizes, letters."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure, FigureBase

DPI = 144  # two pixels to the point

WARNING = "#a8484b"  # of what a picture cannot show

# Okabe & Ito's colours, told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(figure: Any, width: float, height: float) -> Any:
    """Return `figure`, or a new one of this size in inches."""
    return figure if figure is not None else Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def plain(axis: Any) -> Any:
    """Take away what carries no information."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.title.set_fontsize(9)
    axis.xaxis.label.set_fontsize(8.5)
    axis.yaxis.label.set_fontsize(8.5)
    return axis


def colour(number: int) -> str:
    """Return the colour of the n-th curve."""
    return COLOURS[number % len(COLOURS)]


def short(name: str, length: int = 28) -> str:
    """Return the end of a long module path."""
    return name if len(name) <= length else "…" + name[1 - length :]


def inches(figure: FigureBase) -> float:
    """Return the width of a figure or of a subfigure."""
    return float(figure.bbox.width / figure.dpi)  # type: ignore[attr-defined]
