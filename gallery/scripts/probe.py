"""Trains a linear classifier on the features of each layer: probe.png and .json.

    python gallery/scripts/probe.py --data CIFAR

Section 5.2 and Table 7 of the ZFNet paper: features learnt on one set of images (Tiny-ImageNet) serve another one.
CIFAR holds train/<class>/*; its images are enlarged to 64 pixels. Beside the trained network stands one with random
weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from publishing import layers_of, publish
from tiny_imagenet import opened

import deconvviz

EACH, FOLDS, MOST, SEED = 300, 5, 1024, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="CIFAR")
    folders = sorted(path for path in (parser.parse_args().data / "train").iterdir() if path.is_dir())
    images = [opened(path) for folder in folders for path in sorted(folder.iterdir())[:EACH]]
    labels = [folder.name for folder in folders for _ in range(EACH)]
    models = {"trained": deconvviz.zoo.create("zfnet64", weights="bundled")}
    torch.manual_seed(SEED)
    models["random weights"] = deconvviz.zoo.create("zfnet64", num_classes=200)
    options: dict[str, Any] = {
        "labels": labels,
        "folds": FOLDS,
        "most": MOST,
        "seed": SEED,
        "strength": 0.01,
        "progress": False,
    }
    found = {}
    for name, model in models.items():
        found[name] = deconvviz.probe(model, images, **options)
        print(name, found[name].table(), sep="\n")
    names = layers_of(found["trained"].layers)
    publish(
        "probe",
        found["trained"].plot(name="trained", others={"random weights": found["random weights"]}),
        packages=("scikit-learn",),
        model="zfnet64",
        weights="bundled; random for comparison",
        layer=list(found["trained"].layers),
        units="all",
        images=f"{len(images):,} CIFAR-10 training images, {EACH} a class, enlarged to 64 pixels",
        seed=SEED,
        settings={"folds": FOLDS, "features per layer, at most": MOST, "scikit-learn's C": options["strength"]},
        command="python gallery/scripts/probe.py --data CIFAR",
        results={
            "images": len(images),
            "chance": found["trained"].chance,
            **{
                name: {
                    "accuracy": dict(zip(names, one.mean.tolist(), strict=True)),
                    "std over folds": dict(zip(names, one.std.tolist(), strict=True)),
                    "features": dict(zip(names, one.features, strict=True)),
                    "converged": bool(one.converged.all()),
                }
                for name, one in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()
