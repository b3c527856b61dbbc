"""Draws a classifier's answer at every place of a free photo beside an occlusion scan: class-map-<photo>.png and .json.

    python gallery/scripts/class_maps.py

SqueezeNet 1.1 is convolutions up to the mean over its last map: without it there is an answer for each of the map's
positions. The photos and their licences are in gallery/SOURCES.md.
"""

from __future__ import annotations

from publishing import publish

import deconvviz
from deconvviz.images import PHOTOS

SHOWN = ("koala", "lighthouse")
SIZE, STRIDE = 48, 12  # of the occluder

if __name__ == "__main__":
    model = deconvviz.zoo.create("squeezenet-1.1", weights="bundled")
    dense = deconvviz.convolutional(model, pooled=False)
    for photo in PHOTOS:
        if photo.name not in SHOWN:
            continue
        found = dense.look(photo.path)
        scan = deconvviz.occlude(model, photo.path, target=found.target, size=SIZE, stride=STRIDE, progress=False)
        usual = scan.unoccluded["probability"].item()
        publish(
            f"class-map-{photo.name}",
            found.plot(occlusion=scan, title=f"{photo.title}: {found.name.split(',')[0]}, {100 * usual:.1f} %"),
            model="squeezenet-1.1",
            weights="bundled",
            layer="classifier",
            units=[found.target],
            images=f"{photo.title} ({photo.author}, {photo.licence})",
            command="python gallery/scripts/class_maps.py",
            occluder={"size": SIZE, "stride": STRIDE, "fill": scan.fill_name, "positions": list(scan.label.shape)},
            results={"target": found.name, "probability": usual, "places": list(found.probability.shape)},
        )
