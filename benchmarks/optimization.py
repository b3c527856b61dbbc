"""Optimized images: how fast, how many units come alive, and how much of an image a layer gives back.

speed: `deconvviz.maximize` against the usual way: one image at a time, the whole network, its weights with gradients, as
lucent and others do it. Both climb the same spectrum with the same moves for the same steps.
alive: of units that a sample photo excites, how many are excited more by their optimized image than by any photo.
inversion: the relative distance of `deconvviz.invert` with its own settings, layers 1–5.

    python benchmarks/optimization.py --keep DIR [--part speed,alive,inversion]

What is in the folder is not computed again, part by part, layer by layer and photo by photo; the table is written
when all are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torchvision
from conditions import conditions, load, report

import deconvviz
from deconvviz.images.photos import PHOTOS
from deconvviz.images.preprocess import preprocess_for
from deconvviz.optimization.natural import natural
from deconvviz.optimization.parameters import Fourier
from deconvviz.optimization.robustness import Robustness

SIDE, RATE = 224, 0.05
NETWORKS = {"squeezenet-1.1": 3, "resnet18": 2}  # -> its middle numbered layer
ALIVE = {"squeezenet-1.1": 128, "zfnet64": 64}  # -> side of the images in pixels
INVERTED = {"zfnet64": 200, "squeezenet-1.1": 200}  # -> steps


def network(name):
    if name == "resnet18":
        torch.manual_seed(0)
        return torchvision.models.resnet18().eval()  # weights play no part in the time
    return deconvviz.zoo.create(name, weights="bundled").eval()


class Usual:
    """The usual way: a hook on the layer, one image, the whole network forward, gradients wherever they go."""

    def __init__(self, model, module, steps, *, weights):
        self.model, self.module, self.steps = model, module, steps
        for parameter in model.parameters():
            parameter.requires_grad_(weights)
        known = preprocess_for(model)
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (known.mean, known.std))

    def __call__(self, unit):
        """Return one unit's image."""
        random = torch.Generator().manual_seed(0)
        image, moves = Fourier([random], (3, SIDE, SIDE), natural()), Robustness()
        image.values.requires_grad_()
        adam, seen = torch.optim.Adam([image.values], RATE), []
        hook = self.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            for _ in range(self.steps):
                adam.zero_grad()
                self.model((moves.move(image.images(), random) - self.mean) / self.std)
                (-seen.pop()[:, unit].mean()).backward()
                adam.step()
        finally:
            hook.remove()
        return image.images().detach()


def speed(options):
    """Return, per network, seconds of the processor for an image and its factor over the usual way."""
    rows = []
    for name, number in NETWORKS.items():
        model = network(name)
        layer = deconvviz.layers(model, input_size=SIDE)[number]
        units = list(range(options.images))
        works = {
            "usual": Usual(network(name), None, options.steps, weights=True),
            "usual, weights frozen": Usual(network(name), None, options.steps, weights=False),
        }
        for work in works.values():
            work.module = work.model.get_submodule(layer.name)
        times: dict[str, list[float]] = {key: [] for key in (*works, "ours")}
        for _ in range(options.rounds + 1):
            for key, work in works.items():
                start = time.process_time()
                work(0)
                times[key].append(time.process_time() - start)
            start = time.process_time()
            deconvviz.maximize(model, layer=number, units=units, steps=options.steps, input_size=SIDE, progress=False)
            times["ours"].append((time.process_time() - start) / len(units))
        whole, below = macs(model, layer)
        rows.append(
            {
                "network": name,
                "layer": f"{number} ({layer.name})",
                "images": len(units),
                "steps": options.steps,
                **{key: statistics.median(values[1:]) for key, values in times.items()},  # the first round warms up
                "limit": (whole + 2 * below) / (2 * below),
                "limit, weights frozen": (whole + below) / (2 * below),
            }
        )
    return rows


def macs(model, layer):
    """Return the multiplications of a forward pass through convolutions and matrices: of all, and as far as a layer."""
    counted, reached = [], []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            counted.append(output[0].numel() * module.weight[0].numel())
        elif isinstance(module, torch.nn.Linear):
            counted.append(module.weight.numel())

    hooks = [m.register_forward_hook(count) for m in model.modules()]
    stop = model.get_submodule(layer.name).register_forward_hook(lambda *_: reached.append(sum(counted)))
    with torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE))
    for hook in (*hooks, stop):
        hook.remove()
    return sum(counted), reached[0]


def alive(options):
    """Return, per network and layer, how many units end above the strongest photo."""
    rows = []
    for name, side in ALIVE.items():
        model = network(name)
        kept = options.keep / f"top-{name}.safetensors"
        if not kept.exists():
            deconvviz.top(model, layers=[1, 2, 3, 4, 5], k=1, progress=False, out=kept)
        scan = deconvviz.TopK.load(kept)
        for number in range(1, 6):
            excited = (scan[number].values[:, 0] > 0).nonzero().flatten().tolist()
            count = min(options.units, len(excited))
            units = [excited[i * len(excited) // count] for i in range(count)]
            given = {"units": units, "steps": options.alive_steps, "input_size": side, "top": scan}
            kept = options.keep / f"alive-{name}-{number}.safetensors"
            if not kept.exists():
                deconvviz.maximize(model, layer=number, **given, progress=False, out=kept)
            found = deconvviz.Maximized.load(kept)
            assert found.best_photo is not None  # `top` is among the options
            ratio, above = found.activations[:, 0, -1] / found.best_photo, found.stronger()
            rows.append(
                {
                    "network": name,
                    "layer": number,
                    "excited": len(excited),
                    "n": count,
                    "above": int(above.sum()),
                    "gray": int((found.activations[:, 0, -1] == 0).sum()),
                    "median": float(ratio.median()),
                    "least": float(ratio.min()),
                    "below": [unit for unit, more in zip(units, above.tolist(), strict=True) if not more],
                }
            )
            print(rows[-1], flush=True)
    return rows


def inversion(options):
    """Return, per network and photo, the relative distances of layers 1–5."""
    rows = []
    for name, steps in INVERTED.items():
        model = network(name)
        for photo in (photo for photo in PHOTOS if photo.name in options.photos.split(",")):
            file = options.keep / f"inversion-{name}-{photo.name}.json"
            if not file.exists():
                found = deconvviz.invert(model, photo.path, layer=[1, 2, 3, 4, 5], steps=steps, progress=False)
                file.write_text(json.dumps(found.distances[:, 0].tolist()))
            rows.append({"network": name, "photo": photo.name, "distances": json.loads(file.read_text())})
            print(rows[-1], flush=True)
    return rows


PARTS = {"speed": speed, "alive": alive, "inversion": inversion}


def tables(found, options):
    """Return the three tables."""
    lines = [
        "## Speed",
        "",
        "Seconds of the processor for one image; the limit is the ratio of the multiplications in convolutions and "
        "matrices, forward and back: ours stops at the layer and makes no gradient of a weight, and cannot be faster than "
        "that but by better kernels. Batches and channels last are in these figures. Three times lies beyond the limit at "
        "both layers; lower layers have a larger one.",
        "",
        "| network | layer | images × steps | ours | usual way | ratio | limit | its weights frozen | ratio | limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["speed"]:
        frozen = row["usual, weights frozen"]
        lines.append(
            f"| {row['network']} | {row['layer']} | {row['images']} × {row['steps']} | {row['ours']:.3f} | "
            f"{row['usual']:.3f} | **{row['usual'] / row['ours']:.1f}×** | {row['limit']:.1f}× | {frozen:.3f} | "
            f"{frozen / row['ours']:.1f}× | {row['limit, weights frozen']:.1f}× |"
        )
    above, count = (sum(row[key] for row in found["alive"]) for key in ("above", "n"))
    lines += [
        "",
        "## Units that come alive",
        "",
        f"Units spread evenly over those that one of the {len(PHOTOS)} sample photos excites, the photos at the network's "
        f"own size; Fourier, {options.alive_steps} steps at "
        + " and ".join(f"{side} px ({name})" for name, side in ALIVE.items())
        + f". **{above} of {count}** units ({100 * above / count:.1f} %) end above their strongest photo.",
        "",
        "| network | layer | units excited by a photo | n | above the photos | stay silent | ratio to the photos': median, "
        "least | not above |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["alive"]:
        lines.append(
            f"| {row['network']} | {row['layer']} | {row['excited']} | {row['n']} | {row['above']} | {row['gray']} | "
            f"{row['median']:.1f}, {row['least']:.2f} | {', '.join(map(str, row['below'])) or '–'} |"
        )
    lines += [
        "",
        "## Inversion",
        "",
        "‖Φ(x) − Φ₀‖² / ‖Φ₀‖² in percent, from one start, with the function's own settings but for the steps: "
        + ", ".join(f"{name} {steps}" for name, steps in INVERTED.items())
        + ".",
        "",
        "| network | photo | layer 1 | 2 | 3 | 4 | 5 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["inversion"]:
        values = " | ".join(f"{100 * value:.2g}" for value in row["distances"])
        lines.append(f"| {row['network']} | {row['photo']} | {values} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="folder for the numbers of each part")
    parser.add_argument("--part", default=",".join(PARTS))
    parser.add_argument("--images", type=int, default=8, help="of the speed part, ours")
    parser.add_argument("--steps", type=int, default=8, help="of the speed part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=40, help="per layer, of the alive part")
    parser.add_argument("--alive-steps", type=int, default=96)
    parser.add_argument("--photos", default="chelsea,coffee,red-hat", help="of the inversion part, by name")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    text, found = conditions(1), {}
    for name, work in PARTS.items():
        file = options.keep / f"{name}.json"
        if not file.exists() and name in options.part.split(","):
            file.write_text(json.dumps(work(options)))
        if file.exists():
            found[name] = json.loads(file.read_text())
    if len(found) == len(PARTS):
        report("optimization", "Images made by optimization", f"{text}; {load()}.", tables(found, options))
    else:
        print(found)


if __name__ == "__main__":
    main()
