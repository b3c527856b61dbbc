"""Draws the first layers of alexnet64, zfnet64 and SqueezeNet 1.1 side by side: first-layers.png and .json.

    python gallery/scripts/first_layers.py

11×11/4 and 7×7/2, trained alike on 64-pixel images, and 3×3/2, trained on ImageNet.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from publishing import publish

import deconvviz

NETWORKS = ("alexnet64", "zfnet64", "squeezenet-1.1")


def main() -> None:
    models = {name: deconvviz.zoo.create(name, weights="bundled") for name in NETWORKS}
    found = deconvviz.compare_filters(models, progress=False)
    room = ConstrainedLayoutEngine(rect=(0, 0, 1, 0.985))  # for the titles below the edge
    figure = Figure(figsize=(11, 9), dpi=110, layout=room)
    publish(
        "first-layers",
        found.plot(figure),
        model=list(NETWORKS),
        weights="bundled",
        layer=[one.name for one in found.filters],
        units="all",
        images="none",
        command="python gallery/scripts/first_layers.py",
        results=found.summary(),
    )


if __name__ == "__main__":
    main()
