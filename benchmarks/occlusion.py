"""The occlusion scanner: captum at its best, brute force, incremental, and the limit that arithmetic sets.

The limit is all multiplications of a forward pass over those inside the boxes that the occluder can reach, averaged
over all positions; fully connected layers count whole.

    python benchmarks/occlusion.py [--models alexnet,vgg16,resnet18] [--cases 16/8,48/8] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import functools
import math

import numpy as np
import torch
import torchvision
from captum.attr import Occlusion
from conditions import alternate, conditions, load, report, seconds

import deconvviz
from deconvviz.guard import untouched
from deconvviz.rules.table import reach_all
from deconvviz.tape.arguments import bound
from deconvviz.tape.record import record

SIDE = 224


def limit(model, image, size, stride):
    """Return all multiplications over those inside the affected boxes, mean over positions."""
    with untouched(model) as network:
        tape = record(network, image)
    reaches, starts = reach_all(tape), np.arange(0, SIDE - size + stride, stride)[:, None]
    low, high = np.minimum(starts, SIDE), np.minimum(starts + size, SIDE)
    every = touched = 0.0
    for op in tape.ops:
        if op.short not in ("conv2d", "linear"):
            continue
        work = tape.shapes[op.outputs[0]].numel() * bound(op)["weight"][0].numel()
        every += work
        if op.short == "conv2d":
            reach = reaches[op.outputs[0]]
            shares = [((s.lo < high) & (s.hi > low)).mean() for s in (reach.rows, reach.cols)]
            work *= shares[0] * shares[1]  # rows and columns are independent on a grid
        touched += work
    return every / touched


def captum_pass(model, image, size, stride, batch):
    Occlusion(model).attribute(
        image,
        sliding_window_shapes=(3, size, size),
        strides=(3, stride, stride),
        target=0,
        perturbations_per_eval=batch,
    )


def best_batch(model, image, sizes, device):
    """The batch with the least time per position, on a coarse grid."""
    with torch.no_grad():
        captum_pass(model, image, 56, 56, 8)
        times = {n: seconds(functools.partial(captum_pass, model, image, 28, 28, n), device) for n in sizes}
    return min(times, key=times.__getitem__)


def case(name, size, stride, options):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **_quick(name)).eval().to(options.device)
    plain, image = copy.deepcopy(model), torch.randn(1, 3, SIDE, SIDE)
    there = image.to(options.device)
    batch = best_batch(plain, there, (4, 8, 16, 32, 64), options.device)
    count = (math.ceil((SIDE - size) / stride) + 1) ** 2
    grid = {"size": size, "stride": stride, "fill": 0.0, "target": 0, "progress": False}

    def peer():
        with torch.no_grad():
            captum_pass(plain, there, size, stride, batch)

    times = alternate(
        {
            "captum": peer,
            "full": lambda: deconvviz.occlude(model, image, method="full", **grid),
            "incremental": lambda: deconvviz.occlude(model, image, method="incremental", **grid),
        },
        options.rounds,
        options.device,
    )
    ms = {key: 1e3 * value / count for key, value in times.items()}
    most, faster = limit(model, there, size, stride), ms["full"] / ms["incremental"]
    return (
        f"| {name} | {size}/{stride} | {count} | {ms['captum']:.2f} (batch {batch}) | {ms['full']:.2f} | "
        f"{ms['incremental']:.2f} | **{ms['captum'] / ms['incremental']:.1f}×** | {faster:.1f}× | {most:.1f}× | "
        f"{faster / most:.0%} |"
    )


def _quick(name):
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="alexnet,resnet18,vgg16,googlenet,densenet121,mobilenet_v2")
    parser.add_argument("--cases", default="16/8,48/8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="occlusion", help="of the page that is written")
    options = parser.parse_args()
    text = conditions(options.threads, options.device)
    rows = [
        "| model | occluder/stride | positions | captum, ms | full, ms | incremental, ms | over captum | over full | "
        "limit | reached |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in options.models.split(","):
        for pair in options.cases.split(","):
            size, stride = map(int, pair.split("/"))
            rows.append(case(name, size, stride, options))
            print(rows[-1], flush=True)
    rounds = "one round" if options.rounds == 1 else f"medians of {options.rounds} rounds in turn"
    details = (
        f"{text}. Milliseconds per position, one {SIDE} px image, float32, random weights; {rounds}; "
        f"captum at the best of 4 to 64 perturbations per evaluation; {load()}."
    )
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    report(f"{options.name}{suffix}", "The occlusion scanner", details, rows)


if __name__ == "__main__":
    main()
