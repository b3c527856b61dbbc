"""Measures what each ingredient of the papers' recipes gives, one at a time, over several seeds.

    python benchmarks/ingredients.py --data TINY-IMAGENET --out RUNS [--epochs 4] [--seeds 3] [--only tanh,dropout 0.5]
        [--classes 20 --images 300 --held 100]

TINY-IMAGENET holds train/<class>/* and val/<class>/*. Each run trains alexnet64 with one thing changed, into its own
folder of RUNS: the script goes on where it was stopped, and writes the table of the runs that have ended into
benchmarks/ingredients.md. `--budget MINUTES` starts no further run after that time. `--classes`, `--images` and `--held`
take the first classes, of each the first training images, and as validation images those of val and, where these do not
suffice, the training images that come next: `--classes 20 --images 300 --held 100 --epochs 6` takes an hour of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conditions import conditions

import deconvviz
from deconvviz.guard import seeded
from deconvviz.training.recipe import RECIPES, Recipe
from deconvviz.training.result import Training

TABLE = Path(__file__).with_name("ingredients.md")


class Ingredient(NamedTuple):
    """One row: what is changed from the first one, and what the paper says of it, in points of top-1 error."""

    name: str
    says: str
    options: Mapping[str, Any] = {}
    recipe: Mapping[str, Any] = {}


# The first row is what the others depart from: AlexNet's ReLUs and overlapping pools, no response norm, no dropout
# (a short training does not overfit), windows and mirror images.
INGREDIENTS = (
    Ingredient("as it is", "–"),
    Ingredient("tanh", "AlexNet, Fig. 1: six times as many epochs to 25 % training error", {"activation": "tanh"}),
    Ingredient("sigmoid", "–", {"activation": "sigmoid"}),
    Ingredient("pools side by side", "AlexNet, 3.4: 0.4 points worse", {"overlap": False}),
    Ingredient("response norm", "AlexNet, 3.3: 1.4 points better", {"norm": True}),
    Ingredient("dropout 0.5", "AlexNet, 4.2: against overfitting, twice the iterations", {}, {"dropout": 0.5}),
    Ingredient("colours moved", "AlexNet, 4.1: over 1 point better", {}, {"colour": 0.1}),
    Ingredient("scale jitter", "VGG, 4.1: better", {}, {"scales": (8 / 7, 16 / 7)}),
    Ingredient("area and aspect", "GoogLeNet, 6: works very well", {}, {"area": (0.08, 1.0)}),
    Ingredient("not mirrored", "–", {}, {"mirrored": False}),
)


def main() -> None:
    """Train what is not trained yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="TINY-IMAGENET")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of rows")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="MINUTES")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--classes", type=int, help="how many; all unless given")
    parser.add_argument("--images", type=int, help="training images of each class; all unless given")
    parser.add_argument("--held", type=int, help="validation images of each class; those of val unless given")
    options = parser.parse_args()
    began = time.monotonic()
    data = lay_out(options)
    chosen = [one for one in INGREDIENTS if options.only is None or one.name in (INGREDIENTS[0].name, *options.only)]
    for seed in range(options.seeds):  # a stop leaves whole rounds over the rows
        for one in chosen:
            if time.monotonic() - began < 60 * options.budget or done(options.out, one, seed, options.epochs):
                run(options, data, one, seed)
    TABLE.write_text(page(options, chosen), encoding="utf-8")
    print(f"wrote {TABLE.name}")


def lay_out(options: argparse.Namespace) -> Path:
    """Return the folder to train on: the given one, or links to the part of it that was asked for."""
    if options.classes is None and options.images is None and options.held is None:
        return options.data
    folder = options.out / f"images-{options.classes}-{options.images}-{options.held}"
    for name in sorted(path.name for path in (options.data / "train").iterdir() if path.is_dir())[: options.classes]:
        train, val = (pictures(options.data / part / name) for part in ("train", "val"))
        images = len(train) if options.images is None else options.images
        val = (val + train[images:])[: options.held] if options.held else val
        for part, paths in (("train", train[:images]), ("val", val)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for path in paths:
                link = folder / part / name / path.name
                if not link.is_symlink():
                    link.symlink_to(path.resolve())
    return folder


def part_of(options: argparse.Namespace) -> str:
    """Say which part of the data was taken."""
    if options.classes is None and options.images is None and options.held is None:
        return ""
    kinds = "all" if options.classes is None else f"its first {options.classes}"
    numbers = {"training": options.images, "validation": options.held}
    counts = [f"{'all' if n is None else n} {what}" for what, n in numbers.items()]
    chance = ""
    if options.classes and options.held:
        share = 50 / (options.classes * options.held) ** 0.5
        chance = f" (which validation images there are moves a top-1 near one half by ± {share:.1f} points)"
    return f", {kinds} classes with {' and '.join(counts)} images of each{chance}"


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def recipe_of(one: Ingredient, options: argparse.Namespace) -> Recipe:
    """Return the short recipe with the ingredient's change."""
    short = dataclasses.replace(
        RECIPES["modern"], name="short", epochs=options.epochs, batch_size=options.batch_size, dropout=0.0
    )
    return dataclasses.replace(short, **one.recipe)


def folder_of(out: Path, one: Ingredient, seed: int, epochs: int) -> Path:
    return out / f"{one.name.replace(' ', '-')}-{epochs}-{seed}"


def done(out: Path, one: Ingredient, seed: int, epochs: int) -> bool:
    return (folder_of(out, one, seed, epochs) / "training.safetensors").exists()


def run(options: argparse.Namespace, data: Path, one: Ingredient, seed: int) -> None:
    """Train once, or go on; a finished run is not repeated."""
    folder, recipe = folder_of(options.out, one, seed, options.epochs), recipe_of(one, options)
    if done(options.out, one, seed, options.epochs):
        return
    with seeded(seed, torch.device("cpu")):
        classes = sum(path.is_dir() for path in (data / "train").iterdir())
        model = deconvviz.zoo.create("alexnet64", num_classes=classes, dropout=recipe.dropout, **one.options)
    result = deconvviz.train(
        model, data, out=folder, recipe=recipe, seed=seed, cache=options.out / "pixels", progress=False
    )
    result.save(folder / "training.safetensors")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"{one.name}, seed {seed}: {result.history[-1]}", flush=True)


def page(options: argparse.Namespace, chosen: list[Ingredient]) -> str:
    """Return the table with its conditions."""
    histories = {
        one.name: [
            Training.load(folder_of(options.out, one, seed, options.epochs) / "training.safetensors").history
            for seed in range(options.seeds)
            if done(options.out, one, seed, options.epochs)
        ]
        for one in INGREDIENTS
    }
    base = histories[INGREDIENTS[0].name]
    target = max((h[-1].train_loss for h in base), default=0.0)
    lines = [
        "# What each ingredient gives",
        "",
        f"alexnet64 with one thing changed, {options.epochs} epochs of one cycle (lr 0.03, batches of "
        f"{options.batch_size}), {options.data.name}{part_of(options)}; mean ± standard deviation over the seeds that ran, "
        "in points; one seed has no spread. What fights overfitting (dropout, colours, jitter, windows of any area) has no "
        "overfitting to fight in so short a training. Written by `benchmarks/ingredients.py`.",
        "",
        conditions(torch.get_num_threads()) + ".",
        "",
        "| ingredient | the papers | seeds | top-1 | against the first row | training loss | epochs to its loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in INGREDIENTS:
        found = histories[one.name]
        if not found:
            lines.append(f"| {one.name} | {one.says} | 0 | not run | – | – | – |")
            continue
        top1 = [100 * history[-1].top1 for history in found]
        change = [a - 100 * b[-1].top1 for a, b in zip(top1, base, strict=False)]
        losses = [history[-1].train_loss for history in found]
        reached = [next((str(e.epoch) for e in h if e.train_loss <= target), f"> {h[-1].epoch}") for h in found]
        against = "–" if one is INGREDIENTS[0] else spread(change, 1, sign=True)
        numbers = [str(len(found)), spread(top1, 1), against, spread(losses, 2), ", ".join(reached)]
        lines.append(f"| {' | '.join([one.name, one.says, *numbers])} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int, *, sign: bool = False) -> str:
    """Return mean ± standard deviation, of one value the value alone."""
    shown = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return shown if len(values) < 2 else f"{shown} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
