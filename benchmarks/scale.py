"""How long 1.28 million images through ResNet-50 take, for the strongest of all units of five layers, on 1 to 64 GPUs.

Measured here: decoding and the forward pass with the scan (per processor core), what a meeting of ranks costs and how
many bytes it moves; and a scan by four processes over generated images, with the share of its time that meetings and
merging take and the memory of each rank at two lengths. The rest is arithmetic, which docs/scale.rst does.

    python benchmarks/scale.py [--images 16] [--walk 1500]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from conditions import conditions, load, report, seconds
from PIL import Image
from torch import distributed, nn
from torch.utils.flop_counter import FlopCounterMode

import deconvviz
from deconvviz.images import open_images
from deconvviz.images.preprocess import preprocess_for
from deconvviz.model.table import find_all
from deconvviz.ranks import Team
from deconvviz.scan import engine
from deconvviz.scan.state import pack, unpack
from deconvviz.topk.accumulator import Strongest

RANKS, SIDE = 4, 224
UNITS = (64, 256, 512, 1024, 2048)  # of ResNet-50's layers 1 to 5
LAYERS = [f"{i}.1" for i in range(len(UNITS))]  # of the network that stands for it


class Generated(torch.utils.data.Dataset):
    """Images that cost next to nothing to make, each another one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.base = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.base * (1 + i * 2654435761 % 1000003 / 1e6)


def wide() -> nn.Module:
    """Build a network with ResNet-50's numbers of units, so that its state has the same size, and little arithmetic."""
    torch.manual_seed(0)
    sizes = (3, *UNITS)
    parts = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, groups=1 if a == 3 else 32), nn.ReLU())
        for a, b in zip(sizes, UNITS, strict=False)
    ]
    return nn.Sequential(*parts).eval()


def walk(count: int) -> None:
    """Be one rank of the simulation; print what it measured as JSON."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    spent = {"waiting": 0.0, "merging": 0.0, "bytes": 0, "meetings": 0}
    wait, meet = Team.exchange, engine.Scan._meet

    def timed_wait(self, value=None):
        start = time.perf_counter()
        found = wait(self, value)
        spent["waiting"] += time.perf_counter() - start
        return found

    def timed_meet(self, meetings, state):
        before, start = spent["waiting"], time.perf_counter()
        meet(self, meetings, state)
        spent["merging"] += time.perf_counter() - start - (spent["waiting"] - before)
        spent["meetings"] += 1
        spent["bytes"] = sum(array.nbytes for array in pack(state.accumulators)[1].values())

    vars(engine)["Scan"]._meet = timed_meet
    setattr(Team, "exchange", timed_wait)  # noqa: B010
    engine.SAVE_EVERY = 5.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        deconvviz.top(wide(), Generated(count), layers=LAYERS, out=f"{folder}/top", batch_size=16, progress=False)
        total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rank": distributed.get_rank(), "seconds": total, "megabytes": peak, **spent}), flush=True)
    distributed.destroy_process_group()


def simulate(count: int) -> list[dict[str, float]]:
    """Walk `count` generated images with four processes; return what each measured, in the ranks' order."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command = [sys.executable, *launch, __file__, "--rank", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(rows, key=lambda row: row["rank"])


def rates(count: int) -> dict[str, float]:
    """Measure decoding, the forward pass alone and with the scan, in images per second of one core."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    images = torch.randn(count, 3, SIDE, SIDE)
    layers = [layer.name for layer in deconvviz.layers(model).numbered if (layer.number or 0) <= 5]
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(
            sorted((Path(deconvviz.__file__).parent / "images" / "sample_photos").glob("*.jpg"))[:24]
        ):
            with Image.open(path) as photo:  # of ImageNet's usual size
                photo.convert("RGB").resize((500, 375)).save(f"{folder}/{number}.jpg", quality=90)
        opened = open_images(model, folder, preprocess_for(model))
        opened.take([0])
        decode = len(opened) / statistics.median(seconds(lambda: opened.take(range(len(opened)))) for _ in range(3))

    def forward() -> None:
        with torch.no_grad():
            model(images.contiguous(memory_format=torch.channels_last))

    def scan(batches: int) -> float:
        repeated = images.repeat(batches, 1, 1, 1)
        return seconds(lambda: deconvviz.top(model, repeated, layers=layers, batch_size=count, progress=False))

    forward()
    scan(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    return {
        "decode": decode,
        "forward": count / min(seconds(forward) for _ in range(3)),
        # One batch more, without what a scan does once.
        "scan": 2 * count / (min(scan(4) for _ in range(2)) - min(scan(2) for _ in range(2))),
        "flops": counter.get_total_flops(),
    }


def merging() -> tuple[float, int]:
    """Measure how long rank 0 needs for another rank's state, and how many bytes that is."""
    model, images = wide(), torch.stack([Generated(32)[i] for i in range(32)])
    opened = open_images(model, images)
    tape, rows = engine.first_pass(model, opened)
    empty = tuple(Strongest(layer, 9) for layer in find_all(rows, LAYERS))
    states = engine.Scan(model, opened, empty, tape, batch_size=16, progress=False).walk().accumulators
    facts, arrays = pack(states)

    def merge() -> None:
        for one, other in zip(states, unpack(empty, facts, arrays), strict=True):
            one.merge(other)

    merge()
    return statistics.median(seconds(merge) for _ in range(9)), sum(array.nbytes for array in arrays.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="of the forward pass")
    parser.add_argument("--walk", type=int, default=2000, help="generated images of the shorter simulation")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        walk(options.rank)
        return
    text = conditions(1)
    found = rates(options.images)
    merge, size = merging()
    rows = [
        "| of one core, or of one merge | |",
        "|---|---|",
        f"| decoding a JPEG of 500×375 to {SIDE} px | {found['decode']:.0f} images/s |",
        f"| ResNet-50, forward pass alone | {found['forward']:.1f} images/s |",
        f"| ResNet-50, scan of layers 1–5 | {found['scan']:.1f} images/s |",
        f"| its arithmetic | {found['flops'] / 1e9:.2f} GFLOP per image |",
        f"| state of all {sum(UNITS):,} units, nine places each | {size / 1e6:.2f} MB per rank and merge |",
        f"| taking in one rank's state, on rank 0 | {merge * 1e3:.1f} ms |",
        "",
        f"| {RANKS} processes | seconds | waiting for each other | merging and writing | MB, most and least of a rank |",
        "|---|---|---|---|---|",
    ]
    for count in (options.walk, 4 * options.walk):
        ranks = simulate(count)
        first, peaks = ranks[0], [rank["megabytes"] for rank in ranks]
        waited = max(rank["waiting"] for rank in ranks) / first["seconds"]
        rows.append(
            f"| {count:,} images, {first['meetings']:.0f} meetings | {first['seconds']:.1f} | {waited:.1%} | "
            f"{first['merging'] / first['seconds']:.1%} | {max(peaks):.0f}, {min(peaks):.0f} |"
        )
    details = (
        f"{text}. Forward passes: {options.images} images, float32, best of 3. The simulation: a network with "
        "ResNet-50's numbers of units and little arithmetic, generated images, one thread each, a state written every 5 "
        f"seconds (in use: 30); the longer run has four times the images; {os.cpu_count()} cores for {RANKS} processes; "
        f"{load()}."
    )
    report("scale", "Many images, many ranks", details, rows)


if __name__ == "__main__":
    main()
