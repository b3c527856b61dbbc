"""Draws how often a classifier is right: the error over the number of guesses, and which classes are mixed up."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..studies.evaluate import Evaluation
from .style import colour, colour_map, new_figure, picture, plain, short

_NAMED = 20  # classes whose names fit along an axis
_GUESSES = 20


@picture
def draw(result: Evaluation, figure: Any = None, *, title: str | None = None, cmap: str = "Blues") -> Any:
    """Draw the top-k error over k, and the confusion matrix: each true class is a row that sums to 1.

    Args:
        result: What `evaluate` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        title: The line above; the conditions and the errors if None.
        cmap: The colours of the matrix, one of matplotlib's.
    """
    figure = new_figure(figure, 8.4, 4.4)
    figure.suptitle(title or result.describe(), fontsize=9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    classes = result.probabilities.shape[1]
    guesses = range(1, min(_GUESSES, classes) + 1)
    errors = [100 * result.error(k) for k in guesses]
    left.plot(guesses, errors, color=colour(0), marker="o", markersize=3, linewidth=1.3)
    for k in sorted({1, result.k} & set(guesses)):
        left.annotate(f"{errors[k - 1]:.1f} %", (k, errors[k - 1]), (5, 5), textcoords="offset points", fontsize=8)
    left.set(xlabel="guesses", ylabel="error, %", ylim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(left)
    counts = result.confusion.double()
    shares = (counts / counts.sum(1, keepdim=True)).numpy()  # a class without images stays blank
    image = right.imshow(np.ma.masked_invalid(shares), colour_map(cmap), vmin=0, vmax=1, interpolation="nearest")
    right.set(xlabel="taken for", ylabel="true class")
    plain(right)
    if classes <= _NAMED:
        names = [short(result.class_name(n).split(",")[0], 18) for n in range(classes)]
        right.set_xticks(range(classes), names, rotation=45, ha="right", fontsize=7)
        right.set_yticks(range(classes), names, fontsize=7)
    bar = figure.colorbar(image, ax=right, shrink=0.8, label="share of the true class")
    bar.ax.tick_params(labelsize=7)
    return figure
