"""Draws patches, evidence and projections of units beside each other: evidence-NETWORK-layer-N.png and .json.

    python gallery/scripts/evidence_grids.py [--only NETWORK] [--layers 3,4]

SqueezeNet 1.1, layers 1–5, and efficientnet-lite0, layers 3 and 4, both trained on ImageNet; the nine photos that excite
a unit most, of the 72 sample photos (gallery/SOURCES.md), each once. Units were chosen by eye, as ones that a person can
name. One pixel of smoothing changes the pictures of projections, not the numbers.
"""

from __future__ import annotations

import argparse
from typing import Any

from publishing import publish

import deconvviz

UNITS: dict[str, dict[int, tuple[int, ...]]] = {
    "squeezenet-1.1": {
        1: (8, 21, 35, 57),
        2: (12, 56, 85, 99),
        3: (125, 150, 210, 217),
        4: (185, 206, 246, 294),
        5: (33, 354),
    },
    "efficientnet-lite0": {3: (55, 218), 4: (126, 308)},
}
WEIGHTS = {"squeezenet-1.1": "bundled", "efficientnet-lite0": "pretrained"}
SHORT = {"squeezenet-1.1": "squeezenet", "efficientnet-lite0": "efficientnet"}
WIDTH, DPI = 12.4, 144
COMMAND = "python gallery/scripts/evidence_grids.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=UNITS)
    parser.add_argument("--layers", help="of it; default: all")
    options = parser.parse_args()
    for name in [options.only] if options.only else UNITS:
        model = deconvviz.zoo.create(name, weights=WEIGHTS[name])
        layers = [int(n) for n in options.layers.split(",")] if options.layers else list(UNITS[name])
        scan = deconvviz.top(model, layers=layers, distinct="source", progress=False)
        for number in layers:
            show(name, model, scan, number, UNITS[name][number])


def show(name: str, model: Any, scan: deconvviz.TopK, number: int, units: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"layer": number, "units": units, "top": scan, "rule": "deconvnet"}
    found = deconvviz.evidence(model, **options, progress=False)
    size = WIDTH, 0.55 + 2.1 * -(-len(units) // 2)
    smooth = 1.0 if max(found.patches.shape[-2:]) > 20 else 0.0
    title = f"{name}, layer {number} ({found.layer})"
    high, wide = found.field[:, 2] - found.field[:, 0], found.field[:, 3] - found.field[:, 1]
    publish(
        f"evidence-{SHORT[name]}-layer-{number}",
        found.plot(smooth=smooth, columns=2, title=title, figsize=size, dpi=DPI),
        model=name,
        weights=WEIGHTS[name],
        layer=found.layer,
        units=list(units),
        images=f"the {scan.count} sample photos, each once",
        command=COMMAND,
        shown={"rule": "deconvnet", "smoothed by, pixels": smooth, "occluder, pixels": list(found.size)},
        results={
            "effective field, pixels": [list(pair) for pair in zip(high.tolist(), wide.tolist(), strict=True)],
            "receptive field, pixels": list(found.patches.shape[-2:]),
            "mean cosine between a unit's nine projections": found.likeness,
        },
    )


if __name__ == "__main__":
    main()
