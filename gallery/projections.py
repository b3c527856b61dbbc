"""Draws the top-9 grids of layers 1–5 of the two networks that ship: NETWORK-layer-N.png and .json.

    python gallery/projections.py

The photos and their licences are in gallery/SOURCES.md.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import deconvviz

FOLDER = Path(__file__).parent


def draw(network: str) -> None:
    model = deconvviz.zoo.create(network, weights="bundled")
    scan = deconvviz.top(model, layers=[1, 2, 3, 4, 5])
    for number in range(1, 6):
        result = deconvviz.project(model, layer=number, top=scan)
        name = f"{network}-layer-{number}"
        result.plot(title=f"{network}, layer {number}").savefig(FOLDER / f"{name}.png")
        conditions = {
            "figure": f"{name}.png",
            "model": network,
            "weights": "bundled",
            "layer": result.layer,
            "units": result.units.tolist(),
            "images": f"{scan.count} windows of the sample photos",
            "versions": {p: version(p) for p in ("deconvviz", "torch", "matplotlib", "scikit-image")},
            "command": "python gallery/projections.py",
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(conditions, indent=2) + "\n")


def sources() -> None:
    """Write SOURCES.md from the table of the sample photos."""
    from deconvviz.samples import PHOTOS

    lines = [
        "# Photos in this folder",
        "",
        "All come with Python packages, under the licences named here.",
        "",
        "| photo | title | author | licence | source |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {p.name} | {p.title} | {p.author} | {p.licence} | {p.source} |" for p in PHOTOS]
    (FOLDER / "SOURCES.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sources()
    for network in ("zfnet64", "alexnet64"):
        draw(network)
