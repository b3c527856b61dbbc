"""Draws how strong the loss's gradient is at each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..studies.gradients import Gradients
from ..studies.responses import Responses
from .responses import curves
from .style import picture


@picture
def draw(
    result: Gradients,
    figure: Any = None,
    *,
    name: str = "this network",
    others: Mapping[str, Responses] | None = None,
) -> Any:
    """Draw the gradients of one or several networks, in the order of the layers and sorted, on a logarithmic scale.

    Args:
        result: What `gradient_std` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        name: What this network is called in the legend.
        others: Other networks' results by name, drawn into the same axes.
    """
    return curves({name: result, **(others or {})}, figure, "std of the gradient", log=True)
