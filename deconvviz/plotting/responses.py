"""Draws how strong the responses of each layer are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator, NullFormatter

from ..studies.responses import Responses
from .style import colour, new_figure, picture, plain, short

_MANY = 24  # layers whose names fit under an axis


@picture
def draw(
    result: Responses,
    figure: Any = None,
    *,
    name: str = "this network",
    others: Mapping[str, Responses] | None = None,
) -> Any:
    """Draw the standard deviations of one or several networks, in the order of the layers and sorted.

    As in Fig. 7 of He et al.; the names of the layers stand under the axis where they fit and are the same.

    Args:
        result: What `response_std` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        name: What this network is called in the legend.
        others: Other networks' results by name, drawn into the same axes.
    """
    return curves({name: result, **(others or {})}, figure, "standard deviation")


def curves(results: Mapping[str, Responses], figure: Any, what: str, *, log: bool = False) -> Any:
    """Draw each network's standard deviations of `what`, in order above and sorted below; `log` for many magnitudes."""
    first = next(iter(results.values()))
    named = len(results) == 1 and len(first.names) <= _MANY
    figure = new_figure(figure, 6.5, 5.2 if named else 4.4)
    axes = figure.subplots(2, 1)
    for number, (name, result) in enumerate(results.items()):
        look = {"color": colour(number), "linewidth": 1.3, "marker": "o", "markersize": 2.5, "label": name}
        for axis, std in zip(axes, (result.std, result.sorted().std), strict=True):
            axis.plot(range(1, len(std) + 1), std.numpy(), **look)
    titles = (("in the order of execution", "layer"), ("sorted by size", "rank"))
    for axis, (how, below) in zip(axes, titles, strict=True):
        axis.set(title=how, ylabel=what, xlabel=below)
        if log:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")  # the usual powers of ten are formulas, which texts here never are
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.set_ylim(0, None)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis)
    if named:
        axes[0].set_xticks(range(1, len(first.names) + 1), [short(n) for n in first.names], rotation=45, ha="right")
        axes[0].set_xlabel("")
        plain(axes[0]).tick_params(axis="x", labelsize=6.5)
    if len(results) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return figure
