"""Draws an image before and after it was changed to excite a unit more, and less."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..images.display import rgb, signed
from ..optimization.result import Accentuated
from .style import brief, new_figure, picture


@picture
def draw(result: Accentuated, figure: Figure | None = None, *, title: str | None = None) -> Figure:
    """Draw the image, the two changed ones and, below them, what was changed.

    Args:
        result: What `accentuate` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
        title: The line above; the unit's name if None.

    Returns:
        The figure.
    """
    figure = new_figure(figure, 6.2, 4.6)
    figure.suptitle(title or f"What unit {result.unit} of {result.layer} sees in this image", fontsize=10)
    axes = figure.subplots(2, 3)
    values = result.activations.tolist()
    for column, (name, image) in enumerate((("image", result.image), ("more", result.more), ("less", result.less))):
        axes[0, column].imshow(rgb(image[None, None])[0, 0].movedim(0, -1).numpy(), vmin=0, vmax=1)
        axes[0, column].set_title(f"{name}: activation {brief(values[column])}", fontsize=8)
        if column:
            change = rgb(signed((image - result.image)[None, None], per="tile"))[0, 0]
            axes[1, column].imshow(change.movedim(0, -1).numpy(), vmin=0, vmax=1)
            axes[1, column].set_title(f"change, {float(result.distances[column - 1]):.2g} per pixel", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
