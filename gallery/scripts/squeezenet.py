"""Draws units of layers 1–5 of SqueezeNet 1.1, trained on ImageNet: squeezenet-layer-N.png and .json.

    python gallery/scripts/squeezenet.py

Each unit has three blocks of nine: the deconvnet's projections, guided backpropagation's and the patches. Images: the
72 sample photos, each once (gallery/SOURCES.md). Layers 3–5 show units that were chosen by eye among all, layers 1 and
2 units spread evenly. One pixel of smoothing changes the pictures of layers 2–5, not the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from publishing import publish
from skimage.transform import resize
from torchvision.transforms.functional import gaussian_blur

import deconvviz
from deconvviz import Projections
from deconvviz.cli.demo import TELLING

NETWORK, FIRST = "squeezenet-1.1", (125, 150, 171, 210, 217, 232)  # of layer 3, on the first page
SIGMA, TILE, GAP, HEAD, DPI = 1.0, {2: 72, 3: 48}, 14, 20, 100
RULES = ("deconvnet", "guided")


def main() -> None:
    model = deconvviz.zoo.create(NETWORK, weights="bundled")
    scan = deconvviz.top(model, layers=[1, 2, 3, 4, 5], progress=False)
    for number in range(1, 6):
        count = len(scan[number].values)
        units = TELLING[NETWORK].get(number) or [i * count // 9 for i in range(9)]
        show(f"squeezenet-layer-{number}", model, scan, number, units)
    show("squeezenet-units", model, scan, 3, FIRST, across=2)


def show(
    name: str, model: torch.nn.Module, scan: deconvviz.TopK, number: int, units: Sequence[int], across: int = 3
) -> None:
    found = {}
    for rule in RULES:
        options: dict[str, Any] = {"layer": number, "units": sorted(units), "top": scan, "rule": rule}
        found[rule] = deconvviz.project(model, **options, progress=False)
    cosine = {rule: mean_cosine(one) for rule, one in found.items()}
    photos = [len(set(row)) for row in found["deconvnet"].image_ids.tolist()]
    publish(
        name,
        draw([smooth(found[rule], SIGMA if number > 1 else 0) for rule in RULES], across),
        model=NETWORK,
        weights="bundled",
        layer=found["deconvnet"].layer,
        units=list(units),
        images=f"the {scan.count} sample photos, each once",
        command="python gallery/scripts/squeezenet.py",
        shown={"rules": list(RULES), "smoothed by, pixels": SIGMA if number > 1 else 0},
        results={"mean cosine between a unit's nine projections": cosine, "photos per unit": min(photos)},
    )


def mean_cosine(result: Projections) -> float:
    """Return how alike a unit's nine projections are, place by place of their tiles: 1 is the same."""
    flat = torch.nn.functional.normalize(result.projections.flatten(2).double(), dim=2)
    cosines = flat @ flat.transpose(1, 2)
    k = flat.shape[1]
    return float((cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)).mean() / (k * (k - 1)))


def smooth(result: Projections, sigma: float) -> Projections:
    if not sigma:
        return result
    blurred = gaussian_blur(result.projections.flatten(0, 1), [7, 7], [sigma, sigma])
    return dataclasses.replace(result, projections=blurred.view_as(result.projections))


def draw(results: list[Projections], across: int) -> Figure:
    """Draw the units' blocks beside each other: projections by each rule, patches."""
    side = 3 * TILE[across] + 4
    order = results[0].units.tolist()
    down = -(-len(order) // across)
    width, height = across * (3 * side + 2 * GAP) - GAP, down * (side + HEAD) + HEAD
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    for place, unit in enumerate(order):
        x, y = place % across * (3 * side + 2 * GAP), HEAD + place // across * (side + HEAD)
        blocks = [deconvviz.plotting.projections.compose(one, units=[unit])[0] for one in results]
        blocks.append(deconvviz.plotting.projections.compose(results[0], units=[unit])[1])
        for column, block in enumerate(blocks):
            left = x + column * (side + (GAP // 4 if column else 0))
            axes = figure.add_axes((left / width, 1 - (y + side) / height, side / width, side / height))
            axes.imshow(fitted(block, side), interpolation="nearest", vmin=0, vmax=1)
            axes.set_axis_off()
            name = (*RULES, "patches")[column]
            title = (f"unit {unit}: {name}" if column == 0 else name) if place < across or column == 0 else ""
            axes.set_title(title if place < across else f"unit {unit}" * (column == 0), fontsize=8, pad=2, loc="left")
    return figure


def fitted(block: np.ndarray, side: int) -> np.ndarray:
    """Bring a composed block to `side` pixels without the white around it."""
    rows, cols = (np.where((block < 1).any(axis=(axis, 2)))[0] for axis in (1, 0))
    cut = block[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return resize(cut, (side, side), order=1, anti_aliasing=cut.shape[0] > side)


if __name__ == "__main__":
    main()
