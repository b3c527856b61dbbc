"""Draws the five panels of the ZFNet paper's Fig. 7 for three free photos: occlusion-<photo>.png and .json.

    python gallery/scripts/occlusion_panels.py

The photos and their licences are in gallery/SOURCES.md; the weights are the ones that come with the package.
"""

from __future__ import annotations

from typing import Any

from publishing import publish

import deconvviz
from deconvviz.images import samples
from deconvviz.images.photos import PHOTOS, Photo
from deconvviz.images.preprocess import preprocess_for

SHOWN = ("chelsea", "coffee", "hopper")
SIZE, STRIDE = 14, 2  # the paper states neither; about a fifth of the side, as its figure looks
WINDOWS = 1200  # of the sample photos: the other images of panel (c)


def draw(photo: Photo) -> None:
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    windows = samples(64, WINDOWS, preprocess=preprocess_for(model))
    others = windows.take([i for i, name in enumerate(windows.labels or ()) if name != photo.name])
    options: dict[str, Any] = {"layer": 5, "size": SIZE, "stride": STRIDE, "others": others, "progress": False}
    result = deconvviz.occlude(model, photo.path, **options)
    assert result.activation is not None and not isinstance(result.target, tuple)  # a layer and one target were given
    unoccluded = {name: value.item() for name, value in result.unoccluded.items()}
    publish(
        f"occlusion-{photo.name}",
        result.plot(title=f"{photo.title}, seen by zfnet64"),
        model="zfnet64",
        weights="bundled",
        layer=result.layer,
        units=[result.unit],
        images=f"{photo.title} ({photo.author}, {photo.licence}); panel (c) also {len(others)} windows of the others",
        command="python gallery/scripts/occlusion_panels.py",
        occluder={"size": SIZE, "stride": STRIDE, "fill": result.fill_name, "positions": list(result.label.shape)},
        results={
            "target": result.name_of(result.target),
            "most probable, unoccluded": result.name_of(int(unoccluded["label"])),
            "unoccluded": {k: unoccluded[k] for k in ("probability", "activation")},
            "lowest": {"probability": result.probability.min().item(), "activation": result.activation.min().item()},
        },
    )


if __name__ == "__main__":
    for photo in PHOTOS:
        if photo.name in SHOWN:
            draw(photo)
