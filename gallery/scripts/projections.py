"""Draws the top-9 grids of layers 1–5 of the two networks that ship: NETWORK-layer-N.png and .json.

    python gallery/scripts/projections.py

Fig. 2 of the ZFNet paper. The photos and their licences are in gallery/SOURCES.md, which this script writes, too.
"""

from __future__ import annotations

from publishing import GALLERY, publish
from torch import nn

import deconvviz
from deconvviz.images import PHOTOS

UNITS = {1: 16, 2: 16, 3: 9, 4: 9, 5: 9}  # upper layers have larger tiles


def draw(network: str) -> None:
    model = deconvviz.zoo.create(network, weights="bundled")
    scan = deconvviz.top(model, layers=[1, 2, 3, 4, 5], progress=False)
    for number, count in UNITS.items():
        there = len(scan[number].values)
        units = [i * there // count for i in range(count)]
        result = deconvviz.project(model, layer=number, top=scan, units=units, progress=False)
        publish(
            f"{network}-layer-{number}",
            result.plot(title=f"{network}, layer {number}"),
            model=network,
            weights="bundled",
            layer=result.layer,
            units=units,
            images=f"{scan.count} windows of the sample photos",
            command="python gallery/scripts/projections.py",
            results={
                "receptive field": list(result.patches.shape[-2:]),
                "photos per unit": _photos_per_unit(model, result),
            },
        )


def _photos_per_unit(model: nn.Module, result: deconvviz.Projections) -> float:
    """Return from how many of the sample photos the nine strongest windows of a unit come, mean over units."""
    from deconvviz.images import samples
    from deconvviz.images.preprocess import preprocess_for

    labels = samples(64, preprocess=preprocess_for(model)).labels or []
    return sum(len({labels[i] for i in row}) for row in result.image_ids.tolist()) / len(result.image_ids)


def sources() -> None:
    lines = [
        "# Photos in this folder",
        "",
        "Every photo that a picture here shows, whole, in part or in windows, is one of these. Twelve come with the Python",
        "packages scikit-image and matplotlib, sixty with this one",
        "([its own list](../deconvviz/images/sample_photos/SOURCES.md)), under the licences named here. Where a study",
        "needs images that may not be published (Tiny-ImageNet, CIFAR-10), its picture shows numbers only.",
        "",
        "| photo | title | author | licence | source |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {p.name} | {p.title} | {p.author} | {p.licence} | {p.source} |" for p in PHOTOS]
    (GALLERY / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sources()
    for network in ("zfnet64", "alexnet64"):
        draw(network)
