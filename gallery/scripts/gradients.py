"""Measures what the papers argue with that needs no training: gradients.png and .json.

    python gallery/scripts/gradients.py --data CIFAR

CIFAR holds train/<class>/*. The gradients are GoogLeNet's with random weights, with its auxiliary heads and without, on
the sample photos with arbitrary labels: what reaches the first layers at the start of a training. Beside them: the work
that a 1×1 convolution saves before a 3×3 and a 5×5, the two halves of alexnet64's first filters, the top-1 of the shipped
networks, and how many of 2,000 training images the shipped plain networks get wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from publishing import publish

import deconvviz

STEPS, BATCH = 3, 8


def main() -> None:
    """Measure, draw, publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="CIFAR")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = deconvviz.zoo.create("googlenet")
    photos = deconvviz.images.open_images(model)
    given: dict[str, Any] = {"labels": range(len(photos)), "iterations": STEPS, "batch_size": BATCH, "kind": "conv"}
    found = {
        name: deconvviz.gradient_std(model, photos, auxiliary=weight, progress=False, **given)
        for name, weight in (("with both heads", 0.3), ("without them", 0.0))
    }
    heads, without = found["with both heads"], found["without them"]
    publish(
        "gradients",
        heads.plot(name="with both heads", others={"without them": without}),
        model="googlenet",
        weights="random, seed 0",
        layer=f"{len(heads.names)} convolutions",
        units="all",
        images=f"{STEPS} steps of {BATCH} of the {len(photos)} sample photos, arbitrary labels",
        seed=0,
        command="python gallery/scripts/gradients.py --data CIFAR",
        results={
            "gradients": {name: one.std for name, one in found.items()},
            "layers": list(heads.names),
            "first layer": float(heads.std[0] / without.std[0]),
            "reductions": reductions(),
            "halves": halves(),
            "top1": {name: training(name)["top1"] for name in SMALL},
            "training error": {name: training_error(name, options.data / "train") for name in ("plain-20", "plain-56")},
        },
    )


SMALL = ("alexnet64", "zfnet64")


def training(name: str) -> Mapping[str, Any]:
    """Return what the card of a trained network says of its training."""
    said = deconvviz.zoo.create(name, weights="bundled").card.training
    assert said is not None
    return said


def reductions() -> dict[str, dict[str, float]]:
    """Return the share of the weights that the 1×1 convolution of GoogLeNet's 3(a) saves before its 3×3 and 5×5."""
    block: Any = deconvviz.zoo.create("googlenet").inception3a
    saved = {}
    for name, path in (("3×3", block.three), ("5×5", block.five)):
        first, second = (part[0].weight for part in path)
        direct = first.shape[1] * second.shape[0] * second.shape[2] * second.shape[3]
        with_it, without_it = first.numel() + second.numel(), second.numel()
        saved[name] = {"counted": 1 - with_it / direct, "as quoted": 1 - without_it / direct}
    return saved


def halves() -> list[dict[str, float]]:
    """Return how colourful alexnet64's first filters are in each half of them, which another half of layer 2 reads."""
    features: Any = deconvviz.zoo.create("alexnet64", weights="bundled").features
    weight = features[0].weight.detach().double()
    gray = weight.mean(1, keepdim=True).expand_as(weight)
    share = 1 - gray.square().sum((1, 2, 3)) / weight.square().sum((1, 2, 3))
    return [{"mean": float(half.mean()), "std": float(half.std())} for half in share.chunk(2)]


@torch.no_grad()
def training_error(name: str, folder: Path, each: int = 200) -> float:
    """Return the share of the first `each` training images of every class that a shipped network gets wrong."""
    model = deconvviz.zoo.create(name, weights="bundled")
    classes = training(name)["folders"]
    wrong, count = 0, 0
    for number, label in enumerate(classes):
        paths = [str(path) for path in sorted((folder / label).iterdir())[:each]]
        images = deconvviz.images.open_images(model, paths)
        answers = torch.cat([model(batch).argmax(1) for _, batch in images.batches(100)])
        wrong, count = wrong + int((answers != number).sum()), count + len(paths)
    return wrong / count


if __name__ == "__main__":
    main()
