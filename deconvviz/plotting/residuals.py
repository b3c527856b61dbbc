"""Draws what residual blocks add to what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from ..studies.residuals import ResidualShares
from .style import colour, new_figure, picture, plain


@picture
def draw(
    result: ResidualShares,
    figure: Any = None,
    *,
    name: str = "this network",
    others: Mapping[str, ResidualShares] | None = None,
) -> Any:
    """Draw the standard deviations of x and F at each addition, and their ratio, of one or several networks.

    Args:
        result: What `residual_share` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        name: What this network is called in the legend.
        others: Other networks' results by name, drawn into the same axes.
    """
    results = {name: result, **(others or {})}
    figure = new_figure(figure, 6.5, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (name, one) in enumerate(results.items()):
        places, look = range(1, len(one.names) + 1), {"color": colour(number), "linewidth": 1.3, "markersize": 3}
        beside = f", {name}" if len(results) > 1 else ""
        above.plot(places, one.shortcut.numpy(), marker="o", label=f"x, the shortcut{beside}", **look)
        above.plot(places, one.branch.numpy(), marker="o", linestyle="--", label=f"F(x), the branch{beside}", **look)
        below.plot(places, one.share.numpy(), marker="o", label=name, **look)
        changed = [n for n, same in zip(places, one.identity, strict=True) if not same]
        values = [float(one.share[n - 1]) for n in changed]
        mark = "no identity shortcut" if number == 0 and changed else None
        below.plot(changed, values, "s", markersize=7, fillstyle="none", color=colour(number), label=mark)
    above.set(ylabel="standard deviation", ylim=(0, None))
    below.set(ylabel="std of F / std of x", xlabel="addition", ylim=(0, None))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (above, below):
        plain(axis)
        handles, texts = axis.get_legend_handles_labels()
        if len(texts) > 1:
            axis.legend(handles, texts, frameon=False, fontsize=8)
    return figure
