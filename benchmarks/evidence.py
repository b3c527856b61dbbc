"""Evidence against the usual way of occluding for a unit, and what a sheet of it takes.

speed: `deconvviz.evidence` against covering whole images and running the network up to the layer, in batches of 32 that
are as fast as any. Both cover the same places of the same patches with the same gray. The usual way is timed on a few
batches, in turn with ours, and its cost per covered image taken times the number of covered images; its activations are
compared with ours. Time is that of the processor, which other work on the machine does not stretch.
sheet: `deconvviz.evidence(model, layer=N, units=16 units, k=9)` on SqueezeNet 1.1 over the sample photos, from the scan to
the result.

    python benchmarks/evidence.py --keep DIR [--part speed,sheet]

Parts whose numbers are in the folder are not computed again; the table is written when all are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from conditions import conditions, load, report

import deconvviz

BATCH = 32
NETWORKS = {"squeezenet-1.1": (3, 5), "efficientnet-lite0": (3, 4), "resnet50": (3, 4)}
WEIGHTS = {"squeezenet-1.1": "bundled", "efficientnet-lite0": "pretrained"}
BOUNDS = {3: 15, 5: 90}  # seconds for a sheet


def network(name):
    if name == "resnet50":
        torch.manual_seed(0)
        return torchvision.models.resnet50().eval()  # weights play no part in the time
    return deconvviz.zoo.create(name, weights=WEIGHTS[name]).eval()


class Reached(Exception):
    """The layer has answered; the network need not go on."""


class Usual:
    """The usual way: a hook on the layer, whole covered images, the network up to there."""

    def __init__(self, model, layer, images):
        self.model, self.layer, self.images, self.found = model, layer, images, []
        path, _, call = layer.name.partition("#")
        self.calls = int(call or 1)
        model.get_submodule(path).register_forward_hook(self._take)

    def _take(self, module, inputs, output):
        self.seen += 1
        if self.seen == self.calls:
            self.found = output
            raise Reached

    def responses(self, images):
        """Return the layer's response to images (n, C, H, W)."""
        self.seen = 0
        with torch.inference_mode():
            try:
                self.model(images)
            except Reached:
                return self.found
        raise RuntimeError(f"{self.layer.name} was not reached")

    def cover(self, result, gray, unit, image, places):
        """Return the unit's activation with the occluder at each of the places (row, column) of a patch."""
        top, left, bottom, right = result.boxes[unit, image].tolist()
        y0, x0 = (int(n) for n in result.corners[unit, image])
        batch = self.images[int(result.image_ids[unit, image])].repeat(len(places), 1, 1, 1)
        for covered, (row, col) in zip(batch, places, strict=True):
            y, x = y0 + row, x0 + col
            rows = slice(max(top, y), max(0, min(bottom, y + result.size[0])))
            cols = slice(max(left, x), max(0, min(right, x + result.size[1])))
            covered[:, rows, cols] = gray
        position = result.positions[unit, image].tolist()
        return self.responses(batch)[:, int(result.units[unit]), position[0], position[1]]


class Placed:
    """A result, and where in its image the upper left corner of each patch is."""

    def __init__(self, result, layer):
        self.result = result
        shift = torch.from_numpy(layer.reach.frame_shift(result.positions.numpy()))
        self.corners = result.boxes[..., :2] - shift

    def __getattr__(self, name):
        return getattr(self.result, name)

    def difference(self, unit, image, places, left):
        """Return by how much other activations (n,) differ from the map's, as a share of the uncovered one."""
        index = [self.rows.tolist().index(r) for r, _ in places], [self.cols.tolist().index(c) for _, c in places]
        drops = self.activations[unit, image] - left
        return float((drops - self.maps[unit, image][index]).abs().max() / self.activations[unit, image].abs())

    def places(self, unit, image):
        """Return the places (row, column) at which the occluder covers some of what the image has of the patch."""
        top, left, bottom, right = self.boxes[unit, image].tolist()
        y0, x0 = self.corners[unit, image].tolist()
        return [
            (row, col)
            for row in self.rows.tolist()
            for col in self.cols.tolist()
            if top < y0 + row + self.size[0] and y0 + row < bottom
            if left < x0 + col + self.size[1] and x0 + col < right
        ]


def speed(options):
    """Return, per network and layer, seconds of the processor for all covered images both ways."""
    rows = []
    for name, numbers in NETWORKS.items():
        model = network(name)
        photos = deconvviz.images.open_images(model, None)
        images = photos.take(list(range(options.photos)))
        gray = photos.preprocess.colour((0.5,) * 3).view(-1, 1, 1).to(images)
        for number in numbers:
            layer = deconvviz.layers(model, tuple(images.shape[1:]))[number]
            units = torch.linspace(0, layer.units - 1, options.units).long().tolist()
            chosen: dict[str, Any] = {
                "top": deconvviz.top(model, images, layers=[layer.name], k=options.k, progress=False)
            }
            chosen |= {"fill": gray.expand_as(images[0]), "units": units, "progress": False}
            result = Placed(deconvviz.evidence(model, images, layer=layer.name, **chosen), layer)  # warms up, too
            usual = Usual(network(name), layer, images)
            pairs = [pair for pair in result.mask.nonzero().tolist() if len(result.places(*pair)) >= BATCH]
            covered = sum(len(result.places(*pair)) for pair in result.mask.nonzero().tolist())
            mine, each, worst = [], [], 0.0
            for turn in range(options.rounds + 1):
                unit, image = pairs[turn % len(pairs)]
                places = result.places(unit, image)
                some = [places[n * len(places) // BATCH] for n in range(BATCH)]
                start = time.process_time()
                left = usual.cover(result, gray, unit, image, some)
                each.append((time.process_time() - start) / BATCH)
                start = time.process_time()
                if turn:  # the first round warms up
                    deconvviz.evidence(model, images, layer=layer.name, **chosen)
                    mine.append(time.process_time() - start)
                worst = max(worst, result.difference(unit, image, some, left))
            per_image = statistics.median(each[1:])
            rows.append(
                {
                    "network": name,
                    "layer": f"{number} ({layer.name})",
                    "patch": max(result.patches.shape[-2:]),
                    "patches": int(result.mask.sum()),
                    "covered": covered,
                    "usual, per image": per_image,
                    "usual": per_image * covered,
                    "ours": statistics.median(mine),
                    "difference": worst,
                }
            )
            print(rows[-1], flush=True)
    return rows


def sheet(options):
    """Return the seconds that a sheet of 16 units takes, scan and projections included."""
    model, found = network("squeezenet-1.1"), []
    torch.set_num_threads(options.threads)
    for number, bound in BOUNDS.items():
        start, busy = time.perf_counter(), time.process_time()
        result = deconvviz.evidence(model, layer=number, progress=False)
        took = {"seconds": time.perf_counter() - start, "processor": time.process_time() - busy}
        covered = int(result.mask.sum()) * len(result.rows) * len(result.cols)
        facts = {"layer": number, "units": len(result), "covered": covered, "bound": bound, "threads": options.threads}
        found.append({**facts, **took, "load": load()})
        print(found[-1], flush=True)
    return found


PARTS = {"speed": speed, "sheet": sheet}


def main():
    """Compute what is not there yet, and write the tables when all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="folder of the numbers")
    parser.add_argument("--part", default="speed,sheet")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--units", type=int, default=2)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the sheets; on a busy machine take 1")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    told = conditions(1).replace(str(options.keep), "DIR")
    options.keep.mkdir(exist_ok=True, parents=True)
    for name in options.part.split(","):
        path = options.keep / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps({"numbers": PARTS[name](options), "told": told, "load": load()}))
    parts = {name: options.keep / f"{name}.json" for name in PARTS}
    if all(path.exists() for path in parts.values()):
        write({name: json.loads(path.read_text()) for name, path in parts.items()}, options)


def write(found, options):
    """Write both tables."""
    lines = [
        "| network | layer | patch | covered images | usual, ms each | usual, s | evidence, s | factor | difference |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in found["speed"]["numbers"]:
        lines.append(
            f"| {row['network']} | {row['layer']} | {row['patch']} px | {row['covered']:,} of {row['patches']} patches | "
            f"{1000 * row['usual, per image']:.1f} | {row['usual']:.1f} | {row['ours']:.2f} | "
            f"**{row['usual'] / row['ours']:.1f}×** | {row['difference']:.0e} |"
        )
    lines += [
        "",
        "| a sheet of SqueezeNet 1.1 | places | threads | processor, s | by the clock, s | load | wanted on 2 cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["sheet"]["numbers"]:
        lines.append(
            f"| layer {row['layer']}, {row['units']} units × 9 | {row['covered']:,} | {row['threads']} | "
            f"**{row['processor']:.1f}** | {row['seconds']:.1f} | {row['load'].removeprefix('load average ')} | "
            f"{row['bound']} s by the clock |"
        )
    text = (
        f"{found['speed']['told']}. Factor: seconds of the processor, medians of {options.rounds} rounds in turn, "
        f"{options.units} units × {options.k} patches over the first {options.photos} sample photos, the scan before it "
        f"left out on both sides; the usual way in batches of {BATCH}, its cost per image times the covered images. "
        "Difference: the largest between both ways' activations, as a share of the uncovered one. Sheet: from the call to "
        "the result, the scan of 72 photos included. The clock counts what else ran on the machine; see the load."
    )
    report("evidence", "Which part of a patch excites a unit", text, lines)


if __name__ == "__main__":
    main()
