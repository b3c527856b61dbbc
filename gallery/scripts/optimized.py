"""Draws images made by optimization: optimized-NETWORK-layer-N.png, optimized-randomized.png, inversion.png and .json.

    python gallery/scripts/optimized.py [--keep DIR] [--only squeezenet-1.1,randomized,inversion]

Units of the numbered layers of two ImageNet networks as `deconvviz.maximize` draws what they would like to see, the same
with random weights, and a photo as `deconvviz.invert` rebuilds it from one layer's response after the other; all at 224
pixels. What is in the folder is
not computed again: a call that was killed goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from publishing import publish

import deconvviz
from deconvviz.cli.demo import TELLING
from deconvviz.images import PHOTOS
from deconvviz.images.preprocess import preprocess_for

SIDE, UNITS, STEPS, SEED = 224, 16, 48, 0
NETWORKS = {"squeezenet-1.1": "bundled", "efficientnet-lite0": "pretrained"}
RANDOM_LAYER = 4
PHOTO, INVERTED_STEPS = "chelsea", 150
TILE, GAP, HEAD, ACROSS, DPI = 144, 6, 16, 8, 100
COMMAND = "python gallery/scripts/optimized.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for what is made on the way; default: one that goes")
    parser.add_argument("--only", default=",".join((*NETWORKS, "randomized", "inversion")))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same last digits everywhere
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        for name in options.only.split(","):
            if name in NETWORKS:
                network(name, keep)
            else:
                {"randomized": randomized, "inversion": inversion}[name](keep)


def network(name: str, keep: Path) -> None:
    """Publish five layers of a network."""
    model = deconvviz.zoo.create(name, weights=NETWORKS[name]).eval()
    file = keep / f"{name}-top.safetensors"
    if not file.exists():
        deconvviz.top(model, layers=[1, 2, 3, 4, 5], k=1, progress=False, out=file)
    scan = deconvviz.TopK.load(file)
    for number in range(1, 6):
        units = chosen(name, number, len(scan[number].values))
        given: dict[str, Any] = {"units": units, "steps": STEPS, "input_size": SIDE, "seed": SEED, "top": scan}
        found = made(model, number, keep / f"{name}-{number}.safetensors", **given)
        publish(
            f"optimized-{name}-layer-{number}",
            draw([(f"unit {unit}", image[0]) for unit, image in zip(units, found.images, strict=True)], ACROSS),
            model=name,
            weights=NETWORKS[name],
            layer=found.layer,
            units=units,
            images=f"none: each is made from noise, {STEPS} steps at {SIDE} px",
            seed=SEED,
            command=COMMAND,
            shown=dict(found.settings),
            results={
                "units above the strongest sample photo": int(found.stronger().sum()),
                "units": len(units),
                "activation": found.activations[:, 0, -1],
                "of the strongest sample photo": found.best_photo,
            },
        )


def made(model: torch.nn.Module, layer: int, file: Path, **options: Any) -> deconvviz.Maximized:
    """Return optimized images, from a file if they are there."""
    if not file.exists():
        deconvviz.maximize(model, layer=layer, **options, out=file, progress=False)
    return deconvviz.Maximized.load(file)


def randomized(keep: Path) -> None:
    """Publish eight units of one layer, and below each the unit of that place in a network with random weights."""
    name = "squeezenet-1.1"
    model = deconvviz.zoo.create(name, weights=NETWORKS[name]).eval()
    units = list(TELLING[name][RANDOM_LAYER][:ACROSS])
    given: dict[str, Any] = {"units": units, "steps": STEPS, "input_size": SIDE, "seed": SEED}
    both = [
        made(one, RANDOM_LAYER, keep / f"{weights}-{RANDOM_LAYER}.safetensors", **given)
        for weights, one in (("trained", model), ("random", deconvviz.randomize(model)))
    ]
    heads = [f"unit {unit}" for unit in units] + ["random weights"] * len(units)
    publish(
        "optimized-randomized",
        draw(list(zip(heads, torch.cat([one.images[:, 0] for one in both]), strict=True)), ACROSS),
        model=name,
        weights=f"above {NETWORKS[name]}, below random",
        layer=both[0].layer,
        units=units,
        images=f"none: each is made from noise, {STEPS} steps at {SIDE} px",
        seed=SEED,
        command=COMMAND,
        shown=dict(both[0].settings),
        results={"activation": {"trained": both[0].activations[:, 0, -1], "random": both[1].activations[:, 0, -1]}},
    )


def chosen(name: str, number: int, count: int) -> list[int]:
    """Return 16 units: those that a person can name, where some are known, then units spread evenly."""
    known = TELLING.get(name, {}).get(number, ())
    spread = [i * count // UNITS for i in range(UNITS)]
    return sorted(list(dict.fromkeys([*known, *spread]))[:UNITS])


def inversion(keep: Path) -> None:
    """Publish a photo rebuilt from each layer of SqueezeNet, the last of them its logits."""
    name = "squeezenet-1.1"
    model = deconvviz.zoo.create(name, weights=NETWORKS[name]).eval()
    known = dataclasses.replace(preprocess_for(model), size=(SIDE, SIDE))
    path = next(photo.path for photo in PHOTOS if photo.name == PHOTO)
    rows = []
    for layer in (1, 2, 3, 4, 5, "classifier"):
        file = keep / f"inversion-{layer}.safetensors"
        if not file.exists():
            given: dict[str, Any] = {"layer": layer, "steps": INVERTED_STEPS, "seed": SEED, "preprocess": known}
            deconvviz.invert(model, path, **given, progress=False).save(file)
        rows.append(deconvviz.Inversion.load(file))
    heads = [f"layer {row.numbers[0]}" if row.numbers[0] > 0 else "logits" for row in rows]
    shares = [float(row.distances[0, 0]) for row in rows]
    names = [f"{head}: {100 * share:.2g} %" for head, share in zip(heads, shares, strict=True)]
    tiles = [(name, row.images[0, 0]) for name, row in zip(names, rows, strict=True)]
    publish(
        "inversion",
        draw([("the photo", rows[0].image), *tiles], len(tiles) + 1),
        model=name,
        weights=NETWORKS[name],
        layer=[row.layers[0] for row in rows],
        units="all",
        images=f"the sample photo {PHOTO}",
        seed=SEED,
        command=COMMAND,
        shown=dict(rows[0].settings),
        results={"relative distance of the response": dict(zip(heads, shares, strict=True))},
    )


def draw(tiles: list[tuple[str, torch.Tensor]], across: int) -> Figure:
    """Draw pictures (3, H, W) with their names, pixel by pixel but for their size."""
    down = -(-len(tiles) // across)
    width, height = across * (TILE + GAP) - GAP, down * (TILE + HEAD + GAP) - GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    for place, (name, image) in enumerate(tiles):
        x, y = place % across * (TILE + GAP), HEAD + place // across * (TILE + HEAD + GAP)
        axes = figure.add_axes((x / width, 1 - (y + TILE) / height, TILE / width, TILE / height))
        axes.imshow(image.movedim(0, -1).numpy(), interpolation="antialiased", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=8, pad=2, loc="left")
    return figure


if __name__ == "__main__":
    main()
