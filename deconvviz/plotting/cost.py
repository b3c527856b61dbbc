"""Draws what networks cost: one network layer by layer, or several as circles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..errors import OptionError
from ..model.cost import Cost, short_number
from .style import colour, new_figure, picture, plain, short

_MANY = 28  # layers whose names fit under an axis
_LARGEST = 1500.0  # the largest circle, in square points
_WIDE = 8  # from this ratio of the most work to the least the axis is logarithmic
_LINE = 9  # points from one name to the next


@picture
def draw(
    result: Cost,
    figure: Any = None,
    *,
    name: str = "this network",
    others: Mapping[str, Cost] | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> Any:
    """Draw the multiply-adds and parameters of each layer; with `others`, the networks as circles.

    A circle stands at a network's multiply-adds and its accuracy, or its depth where no accuracies are given; its area
    is its parameters.

    Args:
        result: What `cost` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        name: What this network is called.
        others: Other networks' costs by name.
        accuracy: Percent by name, of this network and of all others.
    """
    networks = {name: result, **(others or {})}
    if accuracy is not None and (missing := [n for n in networks if n not in accuracy]):
        raise OptionError(f"accuracy has no number for {', '.join(missing)}: give one, in percent, for each network.")
    if others is None and accuracy is None:
        return _layers(result, figure)
    return _networks(networks, accuracy, figure)


def _layers(result: Cost, figure: Any) -> Any:
    shown = [layer for layer in result if layer.macs or layer.parameters]
    named = len(shown) <= _MANY
    figure = new_figure(figure, max(5.0, min(9.0, 2 + 0.24 * len(shown))), 4.6 if named else 4.0)
    axes = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(layer.kind for layer in shown))
    places = np.arange(1, len(shown) + 1)
    sums = (("macs", "multiply-adds", result.macs), ("parameters", "parameters", result.parameters))
    for axis, (what, said, total) in zip(axes, sums, strict=True):
        for number, kind in enumerate(kinds):
            own = [n for n, layer in enumerate(shown) if layer.kind == kind]
            heights = [getattr(shown[n], what) for n in own]
            axis.bar(places[own], heights, color=colour(number), width=0.8, label=kind)
        axis.set(title=f"{said}: {short_number(total).strip()} in all", ylabel=said)
        _in_thousands(axis.yaxis)
        plain(axis)
    if len(kinds) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    axes[1].set_xlabel("layer")
    if named:
        axes[1].set_xticks(places, [short(layer.name) for layer in shown], rotation=45, ha="right")
        axes[1].set_xlabel("")
        plain(axes[1]).tick_params(axis="x", labelsize=6.5)
    return figure


def _networks(networks: Mapping[str, Cost], accuracy: Mapping[str, float] | None, figure: Any) -> Any:
    figure = new_figure(figure, 6.4, 4.6)
    axis = figure.subplots()
    most = max(cost.parameters for cost in networks.values()) or 1
    heights = accuracy or {name: float(cost.depth) for name, cost in networks.items()}
    areas = {name: _LARGEST * cost.parameters / most for name, cost in networks.items()}
    for number, (name, cost) in enumerate(networks.items()):
        place = cost.macs, heights[name]
        axis.scatter(*place, s=areas[name], color=colour(number), alpha=0.45, linewidth=0)
        axis.scatter(*place, s=6, color=colour(number), linewidth=0)
    works = [cost.macs for cost in networks.values()]
    if min(works) and max(works) / min(works) > _WIDE:
        axis.set_xscale("log")
    axis.margins(0.3, 0.2)
    axis.set(xlabel="multiply-adds for one image; a circle's area is the parameters")
    axis.set_ylabel("layers with weights" if accuracy is None else "accuracy, %")
    _in_thousands(axis.xaxis)
    axis.xaxis.set_minor_formatter(NullFormatter())
    if accuracy is None:
        axis.set_ylim(0, None)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis)
    _label(axis, {name: (networks[name].macs, heights[name], areas[name]) for name in networks}, networks)
    return figure


def _label(axis: Any, circles: Mapping[str, tuple[int, float, float]], networks: Mapping[str, Cost]) -> None:
    """Write each name and its parameters beside its circle, upwards as far as others are in the way."""
    taken: list[tuple[float, float]] = []  # right ends and heights, in points
    points = 72 / axis.figure.figure.dpi
    colours = {name: colour(number) for number, name in enumerate(circles)}
    for name in sorted(circles, key=lambda name: circles[name][1]):
        x, y, area = circles[name]
        right, up = (float(v) * points for v in axis.transData.transform((x, y)))
        start, height = right + (area / np.pi) ** 0.5 + 3, up
        while any(abs(height - other) < _LINE and start < end for end, other in taken):
            height += 1
        text = short(f"{name}, {short_number(networks[name].parameters).strip()}", 40)
        taken.append((start + 3.9 * len(text), height))
        look = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "color": colours[name]}
        axis.annotate(text, (x, y), (start - right, height - up), **look)


def _in_thousands(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value).strip()))
