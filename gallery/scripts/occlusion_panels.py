"""Draws the five panels of the ZFNet paper's Fig. 7 for free photos: occlusion-<photo>.png and .json.

    python gallery/scripts/occlusion_panels.py

Three photos for zfnet64, three that SqueezeNet 1.1 names rightly, as occlusion-squeezenet-<photo>. The photos and their
licences are in gallery/SOURCES.md; the weights are the ones that come with the package.
"""

from __future__ import annotations

from typing import Any

from publishing import publish

import deconvviz
from deconvviz.images import PHOTOS, open_images, preprocess_for, samples
from deconvviz.images.photos import Photo

SHOWN = {"zfnet64": ("chelsea", "coffee", "hopper"), "squeezenet-1.1": ("koala", "lemurs", "lighthouse")}
# Size and stride: the paper states neither; about a fifth of the side, as its figure looks.
GRID = {"zfnet64": (14, 2), "squeezenet-1.1": (48, 8)}
WINDOWS = 1200  # of the sample photos, for zfnet64: the other images of panel (c)


def draw(network: str, photo: Photo) -> None:
    model = deconvviz.zoo.create(network, weights="bundled")
    size, stride = GRID[network]
    images = samples(64, WINDOWS, preprocess=preprocess_for(model)) if network == "zfnet64" else open_images(model)
    others = images.take([i for i, name in enumerate(images.labels or ()) if name != photo.name])
    options: dict[str, Any] = {"layer": 5, "size": size, "stride": stride, "others": others, "progress": False}
    result = deconvviz.occlude(model, photo.path, **options)
    assert result.activation is not None and not isinstance(result.target, tuple)  # a layer and one target were given
    unoccluded = {name: value.item() for name, value in result.unoccluded.items()}
    what = "windows of the others" if network == "zfnet64" else "others"
    publish(
        f"occlusion-{photo.name}" if network == "zfnet64" else f"occlusion-squeezenet-{photo.name}",
        result.plot(title=f"{photo.title}, seen by {network}"),
        model=network,
        weights="bundled",
        layer=result.layer,
        units=[result.unit],
        images=f"{photo.title} ({photo.author}, {photo.licence}); panel (c) also {len(others)} {what}",
        command="python gallery/scripts/occlusion_panels.py",
        occluder={"size": size, "stride": stride, "fill": result.fill_name, "positions": list(result.label.shape)},
        results={
            "target": result.name_of(result.target),
            "most probable, unoccluded": result.name_of(int(unoccluded["label"])),
            "unoccluded": {k: unoccluded[k] for k in ("probability", "activation")},
            "lowest": {"probability": result.probability.min().item(), "activation": result.activation.min().item()},
        },
    )


if __name__ == "__main__":
    for network, names in SHOWN.items():
        for photo in PHOTOS:
            if photo.name in names:
                draw(network, photo)
