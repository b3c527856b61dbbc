"""Moves, scales and turns images: Fig. 5 of the ZFNet paper, invariance-samples.png and .json.

    python gallery/scripts/invariance.py
    python gallery/scripts/invariance.py --data TINY_IMAGENET

The first shows the sample photos (gallery/SOURCES.md). The second takes one validation image of each of
Tiny-ImageNet's 200 classes with its true label, and of three classes of round objects all 50, turned only; it draws
curves alone and writes invariance-tiny-imagenet.png and .json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from publishing import layers_of, publish
from tiny_imagenet import classes, pictures

import deconvviz
from deconvviz import Invariance

ROUND = {"n02802426": "basketball", "n07747607": "orange", "n07873807": "pizza"}  # look alike however they are turned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="TINY_IMAGENET")
    options = parser.parse_args()
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    usual: dict[str, Any] = {"model": "zfnet64", "weights": "bundled", "units": "all"}
    if options.data is None:
        found = deconvviz.invariance(model, progress=False)
        usual.update(images=f"the largest windows of the {len(found.targets)} sample photos; target: most probable")
        results = {**numbers(found), **blur(model, found)}
        usual.update(command="python gallery/scripts/invariance.py", results=results)
        publish("invariance-samples", found.plot(), layer=list(found.layers), **usual)
        return
    folders = classes(options.data)
    images = [pictures(folder, 1)[0] for folder in folders]
    found = deconvviz.invariance(model, images, targets=list(range(len(folders))), progress=False)
    usual.update(images="one validation image of each of Tiny-ImageNet's 200 classes; target: the true label")
    usual.update(command="python gallery/scripts/invariance.py --data TINY_IMAGENET")
    results = {**numbers(found), **blur(model, found, images), "round objects": symmetric(model, folders)}
    usual.update(results=results)
    publish("invariance-tiny-imagenet", found.plot(examples=False), layer=list(found.layers), **usual)


def blur(model: torch.nn.Module, before: Invariance, images: Any = None) -> dict[str, Any]:
    """Shift by half a pixel: resampled as enlarging and turning are, so what it adds to a shift by one is blur."""
    targets = None if images is None else before.targets.tolist()
    found = deconvviz.invariance(model, images, transforms={"vertical": [0.5]}, targets=targets, progress=False)
    distance = found.relative("vertical").mean(1)[:, 0].tolist()
    left = float(found["vertical"].probability.mean() / found.original.mean())
    return {
        "half a pixel": {"relative distance": dict(zip(layers_of(found.layers), distance, strict=True)), "left": left}
    }


def symmetric(model: torch.nn.Module, folders: list[Path]) -> dict[str, Any]:
    """Turn objects with rotational symmetry: what is left of the true label's probability."""
    chosen = [i for i, folder in enumerate(folders) if folder.name in ROUND]
    images = [image for i in chosen for image in pictures(folders[i], 50)]
    targets = [i for i in chosen for _ in range(50)]
    found = deconvviz.invariance(model, images, targets=targets, transforms=["rotation"], progress=False)
    return {"classes": list(ROUND.values()), "images": len(images), **output(found, "rotation")}


def numbers(found: Invariance) -> dict[str, Any]:
    names = layers_of(found.layers)
    return {
        "images": len(found.targets),
        **{
            curve.kind: {
                "relative distance at the smallest change": dict(zip(names, found.first_step(curve.kind), strict=True)),
                "relative distance, most": dict(
                    zip(names, found.relative(curve.kind).mean(1).amax(1).tolist(), strict=True)
                ),
                "R² of a line": dict(zip(names, found.linearity(curve.kind).tolist(), strict=True)),
                **output(found, curve.kind),
            }
            for curve in found.curves
        },
    }


def output(found: Invariance, kind: str) -> dict[str, Any]:
    """Return the target's mean probability: unchanged, and its share that is left over the range of changes."""
    curve, before = found[kind], float(found.original.mean())
    left = curve.probability.mean(0) / before
    change = (curve.amounts - (1.0 if kind == "scale" else 0.0)).abs()
    smaller = (change > 0) & (change <= change.max() / 2 + 1e-9)
    return {
        "probability": before,
        "share of it left, changes up to half of the range": float(left[smaller].mean()),
        "share of it left, whole range": float(left[change > 0].mean()),
        "share of it left, least": float(left.min()),
    }


if __name__ == "__main__":
    main()
