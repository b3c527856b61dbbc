"""Masks eyes and noses: Table 1 of the ZFNet paper, correspondence.png and .json.

    python gallery/scripts/correspondence.py --data TINY_IMAGENET

The boxes are in part_boxes.json, drawn by eye on validation images before anything was measured. Beside the trained
network stands one with random weights: what it has in common between images is the parts' similar places.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from publishing import layers_of, publish
from tiny_imagenet import opened

import deconvviz
from deconvviz import Correspondence

SEED, DRAWS = 0, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="TINY_IMAGENET")
    data = parser.parse_args().data
    models = {"trained": deconvviz.zoo.create("zfnet64", weights="bundled")}
    torch.manual_seed(SEED)
    models["random weights"] = deconvviz.zoo.create("zfnet64", num_classes=200)
    sets = json.loads((Path(__file__).with_name("part_boxes.json")).read_text(encoding="utf-8"))["sets"]
    figure = Figure(figsize=(8.6, 2.9 * len(sets)), dpi=144, layout="constrained")
    results, layers = {}, []
    parts = figure.subfigures(len(sets), 1, squeeze=False)[:, 0]
    for part, (name, content) in zip(parts, sets.items(), strict=True):
        images = [opened(data / path) for path in content["images"]]
        options = {"parts": content["parts"], "draws": DRAWS, "seed": SEED, "progress": False}
        found = {weights: deconvviz.correspondence(model, images, **options) for weights, model in models.items()}
        print(name, *(f"{weights}\n{one.table()}" for weights, one in found.items()), sep="\n")
        found["trained"].plot(part)
        part.suptitle(f"{name}, {len(images)} images", fontsize=9.5, x=0.02, ha="left")
        results[name] = {"images": len(images), **{weights: numbers(one) for weights, one in found.items()}}
        layers = list(found["trained"].layers)
    publish(
        "correspondence",
        figure,
        model="zfnet64",
        weights="bundled; random for comparison",
        layer=layers,
        units="all",
        images="Tiny-ImageNet validation images named in part_boxes.json",
        seed=SEED,
        draws=DRAWS,
        command="python gallery/scripts/correspondence.py --data TINY_IMAGENET",
        results=results,
    )


def numbers(found: Correspondence) -> dict[str, Any]:
    """Return, per layer and part, Δ with the part masked and with a box of its size at a random place."""
    tables = {"part": found.mean, "part, std": found.std, "random": found.random_mean, "random, std": found.random_std}
    tables |= {"changed": found.changed, "random, changed": found.random_changed}
    return {
        layer: {name: {k: float(v[i, j]) for k, v in tables.items()} for j, name in enumerate(found.parts)}
        for i, layer in enumerate(layers_of(found.layers))
    }


if __name__ == "__main__":
    main()
