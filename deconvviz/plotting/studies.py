"""Draws the results of the studies: curves, bars and rows of pictures. Figures are returned and never shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

if TYPE_CHECKING:
    from ..studies.correspondence import Correspondence
    from ..studies.invariance import Curve, Invariance
    from ..studies.neighbours import Neighbours
    from ..studies.probe import Probe
    from ..studies.responses import Responses

# Okabe & Ito's colours, told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MANY = 24  # layers whose names fit under an axis


def new_figure(figure: Any, width: float, height: float) -> Any:
    """Return `figure`, or a new one of this size in inches."""
    return figure if figure is not None else Figure(figsize=(width, height), dpi=144, layout="constrained")


def plain(axis: Any) -> Any:
    """Take away what carries no information."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.title.set_fontsize(9)
    axis.xaxis.label.set_fontsize(8.5)
    axis.yaxis.label.set_fontsize(8.5)
    return axis


def colour(number: int) -> str:
    """Return the colour of the n-th curve."""
    return COLOURS[number % len(COLOURS)]


def short(name: str, length: int = 28) -> str:
    """Return the end of a long module path."""
    return name if len(name) <= length else "…" + name[1 - length :]


# ---- response_std ----------------------------------------------------------------------------------------------------


def draw_responses(results: Mapping[str, Responses], figure: Any = None) -> Any:
    """Draw the standard deviations of one or several networks, in the order of the layers and sorted.

    As in Fig. 7 of He et al.; the names of the layers stand under the axis where they fit and are the same.

    Args:
        results: Name in the legend to result.
        figure: A matplotlib figure to draw into; a new one if None.
    """
    first = next(iter(results.values()))
    named = len(results) == 1 and len(first.names) <= _MANY
    figure = new_figure(figure, 6.5, 5.2 if named else 4.4)
    axes = figure.subplots(2, 1)
    for number, (name, result) in enumerate(results.items()):
        look = {"color": colour(number), "linewidth": 1.3, "marker": "o", "markersize": 2.5, "label": name}
        for axis, std in zip(axes, (result.std, result.sorted().std), strict=True):
            axis.plot(range(1, len(std) + 1), std.numpy(), **look)
    titles = (("in the order of execution", "layer"), ("sorted by size", "rank"))
    for axis, (what, below) in zip(axes, titles, strict=True):
        axis.set(title=what, ylabel="standard deviation", xlabel=below, ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis)
    if named:
        axes[0].set_xticks(range(1, len(first.names) + 1), [short(n) for n in first.names], rotation=45, ha="right")
        axes[0].set_xlabel("")
        plain(axes[0]).tick_params(axis="x", labelsize=6.5)
    if len(results) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return figure


# ---- invariance ------------------------------------------------------------------------------------------------------


def draw_invariance(result: Invariance, figure: Any = None, *, examples: bool = True) -> Any:
    """Draw a row per transformation: examples, each layer's relative distance, the target's probability."""
    columns = len(result.layers) + 1
    figure = new_figure(figure, 2.6 * columns, (3.5 if examples else 2.3) * len(result.curves))
    for row, part in enumerate(_rows(figure, len(result.curves))):
        curve = result.curves[row]
        upper, lower = part.subfigures(2, 1, height_ratios=[1.3, 2.4]) if examples else (None, part)
        if examples:
            _examples(upper, curve)
        axes = lower.subplots(1, columns)
        relative = result.relative(curve.kind)
        for column, axis in enumerate(axes):
            last = column == columns - 1
            _fan(axis, curve, curve.probability if last else relative[column])
            axis.set_title("probability of the target" if last else f"layer {short(result.layers[column])}")
            axis.set_ylim(0, 1.02 if last else 1.05 * max(float(relative.max()), 1e-12))
            axis.set_ylabel("probability" if last else "relative distance")
            plain(axis)
    return figure


def _rows(figure: Any, count: int) -> list[Any]:
    return list(figure.subfigures(count, 1, squeeze=False)[:, 0])


def _examples(figure: Any, curve: Curve) -> None:
    axes = figure.subplots(1, len(curve.examples), squeeze=False)[0]
    spread = torch.linspace(0, len(curve.amounts) - 1, len(curve.examples)).round().long()
    for axis, picture, amount in zip(axes, curve.examples, curve.amounts[spread].tolist(), strict=True):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axis.set_title(f"{curve.kind} {amount:.3g}", fontsize=7.5, pad=3)
        axis.set_axis_off()


def _fan(axis: Any, curve: Curve, values: Tensor) -> None:
    """Draw one thin line per image and a thick one for the mean; `values` is (N, A)."""
    from ..studies.transforms import UNITS

    for one in values[:40]:
        axis.plot(curve.amounts.numpy(), one.numpy(), color=COLOURS[5], linewidth=0.6, alpha=0.7)
    axis.plot(curve.amounts.numpy(), values.mean(0).numpy(), color=COLOURS[0], linewidth=1.8)
    axis.set_xlabel(f"{curve.kind} ({UNITS[curve.kind]})")


# ---- correspondence --------------------------------------------------------------------------------------------------


def draw_correspondence(result: Correspondence, figure: Any = None) -> Any:
    """Draw a panel per layer: each part's mean and spread over pairs beside its random control."""
    figure = new_figure(figure, max(3.0, 0.9 * len(result.parts) + 1.2) * len(result.layers), 3.0)
    axes = figure.subplots(1, len(result.layers), squeeze=False, sharey=True)[0]
    places = np.arange(len(result.parts))
    sides = (
        (-0.19, result.mean, result.std, COLOURS[0], "part masked"),
        (0.19, result.random_mean, result.random_std, "0.75", "random place"),
    )
    for number, axis in enumerate(axes):
        for shift, mean, std, shade, name in sides:
            error = {"linewidth": 1.0, "ecolor": "0.25"}
            bars = {"color": shade, "width": 0.36, "label": name, "capsize": 2.5, "error_kw": error}
            axis.bar(places + shift, mean[number].numpy(), yerr=std[number].numpy(), **bars)
        axis.set_xticks(places, result.parts)
        axis.set_title(f"layer {short(result.layers[number])}")
        plain(axis)
    axes[0].set_ylim(0, None)  # shared by all
    axes[0].set_ylabel("share of differing signs,\nmean ± std over pairs")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ---- nearest ---------------------------------------------------------------------------------------------------------


def draw_neighbours(result: Neighbours, figure: Any = None) -> Any:
    """Draw a row per query: the query, then its nearest images with their distances and captions."""
    rows, columns = result.pictures.shape[:2]
    figure = new_figure(figure, 1.15 * columns + 0.2, 1.36 * rows + 0.3)
    ratios = [1.0, 0.12, *[1.0] * (columns - 1)]
    axes = figure.subplots(rows, columns + 1, squeeze=False, gridspec_kw={"width_ratios": ratios})
    for row in range(rows):
        axes[row, 1].set_axis_off()
        for column in range(columns):
            axis = axes[row, column + (column > 0)]
            axis.imshow(result.pictures[row, column].permute(1, 2, 0).numpy(), interpolation="antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(column == 0)
            if column:
                text = f"{_caption(result.names[row][column - 1])}\n{result.distances[row, column - 1]:.3g}"
                axis.set_xlabel(text, fontsize=6.5, labelpad=2, color="0.3")
    axes[0, 0].set_title("query", fontsize=8)
    text = f"nearest in layer {short(result.layer)}, {_METRICS[result.metric]}"
    # Outside the layout: a title as wide as three pictures would push them apart.
    head = axes[0, 2].text(0, 1.04, text, fontsize=8, transform=axes[0, 2].transAxes)
    head.set_in_layout(False)
    return figure


_METRICS = {"l2": "Euclidean distance", "cosine": "1 − cosine"}


def _caption(text: str) -> str:
    text = text.rsplit("/", 1)[-1].split(",")[0]
    return text if len(text) <= 18 else text[:17] + "…"


# ---- probe -----------------------------------------------------------------------------------------------------------


def draw_probes(results: Mapping[str, Probe], figure: Any = None) -> Any:
    """Draw the accuracy over the layers of one or several networks with the same layers, and chance."""
    first = next(iter(results.values()))
    figure = new_figure(figure, max(3.6, 0.75 * len(first.layers) + 1.2), 3.2)
    axis = figure.subplots()
    places = range(len(first.layers))
    for number, (name, result) in enumerate(results.items()):
        look = {"color": colour(number), "marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.4}
        axis.errorbar(places, result.mean.numpy(), result.std.numpy(), label=name, **look)
    axis.axhline(first.chance, color="0.5", linewidth=0.9, linestyle="--")
    axis.text(len(first.layers) - 1, first.chance, "chance ", fontsize=8, color="0.4", ha="right", va="bottom")
    axis.set_xticks(places, [short(n, 20) for n in first.layers], rotation=30, ha="right")
    axis.set(ylabel="accuracy, mean ± std over folds", xlabel="layer", ylim=(0, None))
    top = max(float((r.mean + r.std).max()) for r in results.values())
    axis.set_ylim(0, min(1.0, math.ceil(top * 10 + 0.5) / 10))
    if len(results) > 1:
        axis.legend(frameon=False, fontsize=8)
    return plain(axis).figure
