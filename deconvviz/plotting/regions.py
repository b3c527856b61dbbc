"""Draws the regions that excite units most, with the part of each that the response depends on."""

from __future__ import annotations

from typing import Any

from matplotlib.patches import Rectangle

from ..results.text import layer_name
from ..studies.regions import TopRegions
from .style import brief, new_figure, picture


@picture
def draw(result: TopRegions, figure: Any = None, *, title: str | None = None) -> Any:
    """Draw a row for each unit: its regions as the network saw them, strongest first, with their responses.

    The white frame is the receptive field of the response, as in Fig. 4 of R-CNN's paper.

    Args:
        result: What `top_regions` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        title: The line above; the layer if None.
    """
    units, k = result.values.shape
    figure = new_figure(figure, 0.9 + 0.95 * k, 0.5 + 1.0 * units)
    figure.suptitle(title or f"strongest regions, {layer_name(result.layer, result.number)}", fontsize=10)
    height, width = result.patches.shape[3:]
    for row, axes in enumerate(figure.subplots(units, k, squeeze=False)):
        axes[0].set_ylabel(f"unit {int(result.units[row])}", fontsize=8)
        for rank, axis in enumerate(axes):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if result.image_ids[row, rank] < 0:
                continue
            axis.imshow(result.patches[row, rank].movedim(0, -1).numpy(), extent=(0, width, height, 0))
            top, left, bottom, right = result.fields[row, rank].tolist()
            frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2)
            axis.add_patch(frame)
            axis.text(
                *(0.04 * width, 0.06 * height, brief(float(result.values[row, rank]))),
                **{"fontsize": 6.5, "color": "white", "va": "top"},
                bbox={"facecolor": "black", "alpha": 0.5, "pad": 1, "linewidth": 0},
            )
    return figure
