"""Draws images rebuilt from layers' responses, one column per layer."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..images.display import rgb
from ..optimization.result import Inversion
from .style import new_figure, picture, short

_ANYTHING = 12**-0.5  # the standard deviation of pixels that are anything from 0 to 1


@picture
def draw(result: Inversion, figure: Figure | None = None, *, spread: bool = False, title: str | None = None) -> Figure:
    """Draw the image and, right of it, what each layer's response alone gives back; one row per start.

    Args:
        result: What `invert` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
        spread: Whether to draw, in place of all starts, the first, the mean of them, and how much they differ: what
            the layer does not know, from black (they agree) to white (anything from black to white).
        title: The line above; None for none.

    Returns:
        The figure.

    Raises:
        OptionError: `spread` of one start.
    """
    rows, columns = 3 if spread else result.images.shape[1], len(result.layers) + 1
    figure = new_figure(figure, 1.6 * columns, 1.6 * rows + 0.5)
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(rgb(result.image[None, None])[0, 0].movedim(0, -1).numpy(), vmin=0, vmax=1)
    axes[0, 0].set_title("image", fontsize=8)
    if spread:
        count = result.images.shape[1]
        for row, name in ((1, f"mean of {count} starts"), (2, "how they differ")):
            axes[row, 0].text(0.98, 0.5, name, fontsize=8, ha="right", va="center", transform=axes[row, 0].transAxes)
    unknown = result.spread() / _ANYTHING if spread else None
    for column, (name, number) in enumerate(zip(result.layers, result.numbers, strict=True), 1):
        for row in range(rows):
            if unknown is None or row == 0:
                shown = result.images[column - 1, row]
            else:
                shown = result.images[column - 1].mean(0) if row == 1 else unknown[column - 1].clamp(max=1)[None]
            tile = rgb(shown[None, None])[0, 0]
            axes[row, column].imshow(tile.movedim(0, -1).numpy(), vmin=0, vmax=1)
            head = (f"{number}: " if number >= 0 else "") + short(name, 16)
            text = f"{100 * float(result.distances[column - 1, row]):.1f} %"
            if row == 0 or unknown is None:
                axes[row, column].set_title(f"{head}\n{text}" if row == 0 else text, fontsize=8)
    return figure
