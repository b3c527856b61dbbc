"""Draws what transformations of the images do to features and answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..studies.invariance import Curve, Invariance
from ..studies.transforms import UNITS
from .style import colour, new_figure, picture, plain, short


@picture
def draw(result: Invariance, figure: Any = None, *, examples: bool = True) -> Any:
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
    for axis, example, amount in zip(axes, curve.examples, curve.amounts[spread].tolist(), strict=True):
        axis.imshow(example.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axis.set_title(f"{curve.kind} {amount:.3g}", fontsize=7.5, pad=3)
        axis.set_axis_off()


def _fan(axis: Any, curve: Curve, values: Tensor) -> None:
    """Draw one thin line per image and a thick one for the mean; `values` is (N, A)."""
    for one in values[:40]:
        axis.plot(curve.amounts.numpy(), one.numpy(), color=colour(5), linewidth=0.6, alpha=0.7)
    axis.plot(curve.amounts.numpy(), values.mean(0).numpy(), color=colour(0), linewidth=1.8)
    axis.set_xlabel(f"{curve.kind} ({UNITS[curve.kind]})")
