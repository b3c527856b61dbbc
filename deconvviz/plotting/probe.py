"""Draws what a linear classifier reads out of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..studies.probe import Probe
from ..studies.sift import TITLE
from .style import colour, new_figure, picture, plain, short


@picture
def draw(
    result: Probe, figure: Any = None, *, name: str = "this network", others: Mapping[str, Probe] | None = None
) -> Any:
    """Draw the accuracy over the layers of one or several networks with the same layers, and chance.

    Args:
        result: What `probe` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        name: What this network is called in the legend.
        others: Other networks' results by name, drawn into the same axes.
    """
    results = {name: result, **(others or {})}
    first = next(iter(results.values()))
    figure = new_figure(figure, max(3.6, 0.75 * len(first.layers) + 1.2), 3.2)
    axis = figure.subplots()
    places = range(len(first.layers))
    for number, (name, result) in enumerate(results.items()):
        look = {"color": colour(number), "marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.4}
        mean, std = result.mean.numpy(), result.std.numpy()
        own = [place for place in places if result.layers[place] != TITLE]
        axis.errorbar(own, mean[own], std[own], label=name, **look)
        for place in set(places) - set(own):  # no layer: no line leads there
            axis.errorbar([place], mean[[place]], std[[place]], **look)
    axis.axhline(first.chance, color="0.5", linewidth=0.9, linestyle="--")
    axis.text(len(first.layers) - 1, first.chance, "chance ", fontsize=8, color="0.4", ha="right", va="bottom")
    axis.set_xticks(places, [short(n, 20) for n in first.layers], rotation=30, ha="right")
    axis.set(ylabel="accuracy, mean ± std over folds", xlabel="layer", ylim=(0, None))
    top = max(float((r.mean + r.std).max()) for r in results.values())
    axis.set_ylim(0, min(1.0, math.ceil(top * 10 + 0.5) / 10))
    if len(results) > 1:
        axis.legend(frameon=False, fontsize=8)
    return plain(axis).figure
