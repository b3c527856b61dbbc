"""Draws how alike the parts' masks change the features, Table 1 as bars."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..studies.correspondence import Correspondence
from .style import colour, new_figure, picture, plain, short, written


@picture
def draw(result: Correspondence, figure: Any = None) -> Any:
    """Draw a panel per layer: each part's mean and spread over pairs beside its random control."""
    figure = new_figure(figure, max(3.0, 0.9 * len(result.parts) + 1.2) * len(result.layers), 3.0)
    axes = figure.subplots(1, len(result.layers), squeeze=False, sharey=True)[0]
    places = np.arange(len(result.parts))
    sides = (
        (-0.19, result.mean, result.std, colour(0), "part masked"),
        (0.19, result.random_mean, result.random_std, "0.75", "random place"),
    )
    for number, axis in enumerate(axes):
        for shift, mean, std, shade, name in sides:
            error = {"linewidth": 1.0, "ecolor": "0.25"}
            bars = {"color": shade, "width": 0.36, "label": name, "capsize": 2.5, "error_kw": error}
            axis.bar(places + shift, mean[number].numpy(), yerr=std[number].numpy(), **bars)
        axis.set_xticks(places, list(map(written, result.parts)))
        axis.set_title(f"layer {short(result.layers[number])}")
        plain(axis)
    axes[0].set_ylim(0, None)  # shared by all
    axes[0].set_ylabel("share of differing signs,\nmean ± std over pairs")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
