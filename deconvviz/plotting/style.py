"""What all pictures share: colours, sizes, letters, and the options that every drawing takes."""

from __future__ import annotations

import contextvars
import functools
import inspect
import statistics
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text

from ..errors import OptionError

DPI = 144  # two pixels to the point

WARNING = "#a8484b"  # of what a picture cannot show

# Okabe & Ito's colours, told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_palette: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("palette", default=COLOURS)


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


def colour(number: int) -> Any:
    """Return the colour of the n-th curve."""
    palette = _palette.get()
    return palette[number % len(palette)]


def short(name: str, length: int = 28) -> str:
    """Return the end of a long module path."""
    return written(name if len(name) <= length else "…" + name[1 - length :])


def brief(value: float) -> str:
    """Return a number with three digits, and with all before the point up to a million: 4071, not 4.07e+03."""
    return f"{value:.0f}" if 999 < abs(value) < 1e6 else f"{value:.3g}"


def written(text: str) -> str:
    """Return a name as it can be drawn: of a file name that is no text the bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def inches(figure: FigureBase) -> float:
    """Return the width of a figure or of a subfigure."""
    return float(figure.bbox.width / figure.dpi)  # type: ignore[attr-defined]


def through(cmap: str | None, tiles: np.ndarray) -> np.ndarray:
    """Return tiles (…, 3), 0.5 for zero, as they are or, through a colour map, the mean of their channels."""
    return tiles if cmap is None else colour_map(cmap)(tiles.mean(-1))[..., :3].astype(np.float32)


def colour_map(name: Any) -> Any:
    """Return one of matplotlib's colour maps by name."""
    if not isinstance(name, str):
        return name
    if name not in matplotlib.colormaps:
        raise OptionError(f"cmap={name!r} is none of matplotlib's colour maps. Give one such as 'viridis' or 'gray'.")
    return matplotlib.colormaps[name]


# ---- the options that every drawing takes ----------------------------------------------------------------------------

_LOOK = ("ax", "title", "figsize", "dpi", "fontsize", "cmap")


def picture(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Let `draw(result, figure=None, *, ...)` take what every drawing takes, and write names as they are.

    `ax`, `figsize`, `dpi` and `fontsize` are seen to here, and so are `title` and `cmap` where `draw` has none of its
    own: a line above all, the colours of the curves. Names come from data: a dollar sign in them starts no formula.
    """
    own = inspect.signature(draw)
    more = [p for p in inspect.signature(_look).parameters.values() if p.name not in own.parameters]
    whole = own.replace(parameters=[*own.parameters.values(), *more])

    @functools.wraps(draw)
    def drawn(*given: Any, **named: Any) -> Any:
        result, figure, *_ = [*whole.bind(*given, **named).args, None]
        options = {name: value for name, value in named.items() if name != "figure"}
        look = {name: options.pop(name, None) for name in _LOOK if name not in own.parameters}
        title = look.get("title") or options.get("title")
        place = _place(figure, look["ax"], look["figsize"])
        token = _palette.set(_sampled(look.get("cmap")))
        try:
            done = draw(result, place, **options)
        finally:
            _palette.reset(token)
        if look["figsize"] is not None and not any(axes.get_subplotspec() for axes in done.axes):
            done.set_layout_engine("none")  # its axes have places of their own: there is nothing to lay out
        if look.get("title"):
            done.suptitle(look["title"], fontsize=10)
        _letter(done, look["fontsize"], title)
        if look["dpi"] is not None:
            done.figure.set_dpi(look["dpi"])
            done.figure._original_dpi = look["dpi"]  # which `savefig` takes as the figure's own
        return done

    drawn.__signature__ = whole  # type: ignore[attr-defined]
    del drawn.__wrapped__  # whose own signature lacks what was added
    return drawn


def _look(
    *,
    ax: Axes | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    fontsize: float | None = None,
    cmap: str | None = None,
) -> None:
    """Say what the options are called, with their types."""


def _place(figure: Any, ax: Any, figsize: tuple[float, float] | None) -> Any:
    """Return the figure or subfigure to draw into, None for a new one of its own size."""
    if (figure is not None) + (ax is not None) + (figsize is not None) > 1:
        raise OptionError("figure, ax and figsize exclude each other: give one place to draw into, or a size.")
    given = figure if ax is None else ax
    if given is None:
        return None if figsize is None else Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    if isinstance(given, Axes):
        return _instead_of(given)
    if not isinstance(given, FigureBase):
        raise OptionError(
            f"figure={given!r:.60}: expected a matplotlib figure, a subfigure or axes, or None for a new figure."
        )
    return given


def _instead_of(axes: Axes) -> SubFigure:
    """Return a subfigure where the axes are, which show nothing themselves."""
    parent, cell, box = axes.figure, axes.get_subplotspec(), axes.get_position()
    if cell is None and parent.figure.get_layout_engine() is not None:
        raise OptionError(
            "these axes have no place in their figure's layout: give axes from subplots(), or a subfigure."
        )
    axes.set_axis_off()
    part = parent.add_subfigure(GridSpec(1, 1, figure=parent)[0] if cell is None else cell)  # type: ignore[arg-type]
    part.bbox_relative.set_points(box.get_points())
    return part


def _sampled(cmap: Any) -> tuple[Any, ...]:
    return COLOURS if cmap is None else tuple(map(tuple, colour_map(cmap)(np.linspace(0.05, 0.9, len(COLOURS)))))


def _letter(figure: Any, fontsize: float | None, title: str | None) -> None:
    """Show texts as they are, but for the user's own title, and bring the usual size to `fontsize` points."""
    axes = [axis for one in figure.findobj(Axes) for axis in (one.xaxis, one.yaxis)]
    labels = [axis.get_ticklabels() for axis in axes]  # asking makes them: else they are made at the drawing
    ticks = {id(text) for axis in axes for tick in axis.majorTicks for text in (tick.label1, tick.label2)}
    texts = figure.findobj(Text)
    for text in texts:
        if text.get_text() != title:
            text.set_parse_math(False)
            text.set_text(written(text.get_text()))
    if fontsize is None:
        return
    factor = fontsize / statistics.median([t.get_fontsize() for t in texts if t.get_text().strip()] or [fontsize])
    for text in texts:
        if id(text) not in ticks:
            text.set_fontsize(factor * text.get_fontsize())
    for axis, some in zip(axes, labels, strict=True):
        if some:
            axis.set_tick_params(labelsize=factor * some[0].get_fontsize())
