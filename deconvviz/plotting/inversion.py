"""Draws images rebuilt from layers' responses, one column per layer."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..images.display import rgb
from ..optimization.result import Inversion
from .style import new_figure, picture, short


@picture
def draw(result: Inversion, figure: Figure | None = None, *, title: str | None = None) -> Figure:
    """Draw the image and, right of it, what each layer's response alone gives back; one row per start.

    Args:
        result: What `invert` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
        title: The line above; None for none.

    Returns:
        The figure.
    """
    rows, columns = result.images.shape[1], len(result.layers) + 1
    figure = new_figure(figure, 1.6 * columns, 1.6 * rows + 0.5)
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(rgb(result.image[None, None])[0, 0].movedim(0, -1).numpy(), vmin=0, vmax=1)
    axes[0, 0].set_title("image", fontsize=8)
    for column, (name, number) in enumerate(zip(result.layers, result.numbers, strict=True), 1):
        for row in range(rows):
            tile = rgb(result.images[None, column - 1, row : row + 1])[0, 0]
            axes[row, column].imshow(tile.movedim(0, -1).numpy(), vmin=0, vmax=1)
            head = (f"{number}: " if number >= 0 else "") + short(name, 16)
            text = f"{100 * float(result.distances[column - 1, row]):.1f} %"
            axes[row, column].set_title(f"{head}\n{text}" if row == 0 else text, fontsize=8)
    return figure
