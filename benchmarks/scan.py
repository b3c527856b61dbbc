"""What the scan for top activations costs: time over a bare forward pass, and peak memory for more and more images.

python benchmarks/scan.py [--device cuda] [--images 256] [--threads 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
import torchvision
from conditions import alternate, conditions, load, report

import deconvviz

BATCH = 32
CHILD = """
import resource, sys, torch, torchvision, deconvviz
torch.set_num_threads({threads})
class Noise(torch.utils.data.Dataset):
    def __len__(self): return {count}
    def __getitem__(self, i): return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i))
model = deconvviz.zoo.create("zfnet64")
deconvviz.top(model, Noise(), layers=[1, 2, 3, 4, 5], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def overhead(options):
    """Time a scan of all five layers against the model alone on the same batches, in either memory order."""
    torch.manual_seed(0)
    model = torchvision.models.alexnet(weights=None).eval().to(options.device)
    images = torch.randn(options.images, 3, 224, 224)

    def bare(order):
        with torch.no_grad():
            for first in range(0, len(images), BATCH):
                model(images[first : first + BATCH].to(options.device).contiguous(memory_format=order))

    def scan():
        deconvviz.top(model, images, layers=[1, 2, 3, 4, 5], batch_size=BATCH, progress=False)

    bare(torch.contiguous_format)
    return alternate(
        {
            "scan": scan,
            "contiguous": lambda: bare(torch.contiguous_format),
            "channels_last": lambda: bare(torch.channels_last),
        },
        options.rounds,
        options.device,
    )


def peak_megabytes(count, threads):
    """Scan `count` images in a process of its own and return its peak resident memory."""
    code = CHILD.format(count=count, threads=threads)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    text = conditions(options.threads, options.device)
    times = overhead(options)
    rows = ["| work | seconds | scan over it |", "|---|---|---|"]
    for name in ("contiguous", "channels_last"):
        rows.append(f"| bare forward pass, {name} | {times[name]:.2f} | **{times['scan'] / times[name]:.2f}×** |")
    rows.append(f"| scan of layers 1–5 | {times['scan']:.2f} | |")
    small, large = peak_megabytes(2_000, options.threads), peak_megabytes(20_000, options.threads)
    rows += ["", "| images | peak memory, MB |", "|---|---|", f"| 2,000 | {small:.0f} |"]
    rows.append(f"| 20,000 | {large:.0f} ({large / small - 1:+.1%}) |")
    details = (
        f"{text}. Time: AlexNet, {options.images} images of 224 px in batches of {BATCH}, float32, medians of "
        f"{options.rounds} rounds in turn; {load()}. Memory: zfnet64, layers 1–5, one process each, whole process."
    )
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    report(f"scan{suffix}", "The scan for top activations", details, rows)


if __name__ == "__main__":
    main()
