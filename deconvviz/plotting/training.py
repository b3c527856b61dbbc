"""Draws loss and accuracy over the epochs of a training run."""

from __future__ import annotations

from typing import Any

from ..training.result import Training
from .style import colour, new_figure, picture


@picture
def draw(result: Training, figure: Any = None) -> Any:
    """Draw loss and accuracy over the epochs.

    Args:
        result: What `train` returned.
        figure: A matplotlib figure or subfigure to draw into; a new one if None.
    """
    figure = new_figure(figure, 9, 3.5)
    left, right = figure.subplots(1, 2)
    epochs = [e.epoch for e in result.history]
    left.plot(epochs, [e.train_loss for e in result.history], label="training", color=colour(0))
    left.plot(epochs, [e.val_loss for e in result.history], label="validation", color=colour(1))
    right.plot(epochs, [e.train_accuracy for e in result.history], label="training, top-1", color=colour(0))
    right.plot(epochs, [e.top1 for e in result.history], label="validation, top-1", color=colour(1))
    right.plot(epochs, [e.top5 for e in result.history], label="validation, top-5", color=colour(2))
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend(frameon=False)
    return figure
