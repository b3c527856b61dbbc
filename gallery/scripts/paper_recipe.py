"""Trains zfnet64 and alexnet64 as the ZFNet paper did, recorded and drawn: one command that goes on where it was stopped.

    python gallery/scripts/paper_recipe.py --data TINY-IMAGENET --out RUNS [--amp bfloat16] [--epochs 70] [--seed 0]

N(0, 0.01²) first weights, momentum 0.9, a rate of 0.01 lowered on plateaus, dropout 0.5, filters held to a root mean
square of 0.1 or not held; 70 epochs, what units see recorded at 1, 2, 5, 10, 20, 30, 40 and 64 over the validation
images. For each of the four runs RUNS/<network>-clamped or -free holds the checkpoint, the weights and their card, the
recording, and in grids the pictures and their page. Four times 70 epochs of 100,000 images take days on a processor.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

import deconvviz
from deconvviz.training.recipe import RECIPES
from deconvviz.training.recorder import EPOCHS

NETWORKS = ("zfnet64", "alexnet64")


def main() -> None:
    """Train the four, one after the other; those that have ended are left as they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="TINY-IMAGENET")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    parser.add_argument("--epochs", type=int, default=RECIPES["paper"].epochs)
    parser.add_argument("--batch-size", type=int, default=RECIPES["paper"].batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", choices=("float16", "bfloat16"))
    parser.add_argument("--device")
    parser.add_argument("--only", type=lambda text: text.split(","), default=NETWORKS, metavar="NETWORKS")
    options = parser.parse_args()
    for network in options.only:
        for clamped in (True, False):
            print(run(options, network, clamped))


def run(options: argparse.Namespace, network: str, clamped: bool) -> Any:
    """Train, record and draw one network; the same call goes on, whatever it was doing when it was stopped."""
    folder = options.out / f"{network}-{'clamped' if clamped else 'free'}"
    recipe = RECIPES["paper"] if clamped else dataclasses.replace(RECIPES["paper"], clamp_rms=None)
    return deconvviz.train(
        network,
        options.data,
        out=folder,
        recipe=recipe,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        dtype=None if options.amp is None else getattr(torch, options.amp),
        cache=options.out / "pixels",
        recorder=deconvviz.Recorder(folder / "recording.safetensors", options.data / "val", epochs=EPOCHS),
        render=folder / "grids",
    )


if __name__ == "__main__":
    main()
