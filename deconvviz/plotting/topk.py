"""Draws how strong the strongest activations of each unit are."""

from __future__ import annotations

from typing import Any

from ..results.text import layer_name
from ..topk.result import TopK
from .style import colour, new_figure, picture


@picture
def draw(result: TopK, figure: Any = None) -> Any:
    """Draw each unit's strongest activations, units sorted, one panel per layer.

    Args:
        result: What `top` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
    """
    figure = new_figure(figure, 3 * len(result), 2.5)
    axes = figure.subplots(1, len(result), squeeze=False)[0]
    for axis, top in zip(axes, result.tops, strict=True):
        order = top.values[:, 0].argsort(descending=True, stable=True)
        for rank, values in enumerate(top.values[order].T):
            axis.plot(values.numpy(), linewidth=0.7, color=colour(rank))
        axis.set(title=layer_name(top.name, top.number), xlabel="unit, sorted", ylabel="activation")
    return figure
