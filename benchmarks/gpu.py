"""What a GPU gives: scan, projection, occlusion and training, each as a share of what the card can do.

The card's limit is measured first: float32 products of large matrices (no TF32: deconvviz computes exact float32) and a
copy within its memory. The operations' arithmetic is counted by torch while they run, and divided by time and limit.

    python benchmarks/gpu.py [--device cuda] [--images 4096] [--rounds 5]

`--toy` runs everything at a size of no meaning, on any device, to see that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from conditions import conditions, load, seconds
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import deconvviz
from deconvviz.images import ImageSet, Preprocess

HEADINGS = ("work", "amount", "seconds", "per second", "TFLOP/s", "share of the card's")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int
    side: int
    network: str
    units: int
    window: int
    matrix: int
    files: int
    epochs: int


FULL = Size(4096, 224, "resnet50", 64, 32, 8192, 2048, 3)
TOY = Size(8, 64, "alexnet", 2, 24, 64, 6, 1)


class Bytes:
    """Pixels (N, 3, H, W) uint8 on the device, normalized there as they are read: nothing is decoded, nothing copied."""

    parallel = pictures = False

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, ids: Sequence[int], /) -> torch.Tensor:
        first, last = ids[0], ids[-1] + 1
        picked = self.pixels[first:last] if list(ids) == list(range(first, last)) else self.pixels[list(ids)]
        return picked.float().sub_(127.5).div_(58.0)

    def identity(self) -> Iterator[Any]:
        """Yield what tells these images from others."""
        yield self.pixels


def limit(device: str, size: int) -> tuple[float, float]:
    """Return FLOP/s of a float32 product and bytes/s of a copy, the best of a few."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        a = torch.randn(size, size, device=device)
        best = min(seconds(lambda: a @ a, device) for _ in range(6))
        copied = min(seconds(lambda: a.clone(), device) for _ in range(6))
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / best, 2 * a.nbytes / copied


def row(name: str, amount: int, unit: str, work: Callable[[], Any], most: float, device: str, rounds: int) -> list[str]:
    """Time a call and count its arithmetic; return the table's cells."""
    with FlopCounterMode(display=False) as counter:  # this is the warm-up as well
        work()
    times = sorted(seconds(work, device) for _ in range(rounds))
    median = times[len(times) // 2]
    speed = counter.get_total_flops() / median
    cells = [name, f"{amount:,} {unit}", f"{median:.3g}", f"{amount / median:,.1f}", f"{speed / 1e12:.3g}"]
    return [*cells, f"**{speed / most:.1%}**"]


def scan(model: nn.Module, images: ImageSet, layers: list[str]) -> Callable[[], Any]:
    return lambda: deconvviz.top(model, images, layers=layers, progress=False)


def projection(model: nn.Module, images: ImageSet, layer: int, units: int) -> Callable[[], Any]:
    best = deconvviz.top(model, images, layers=[layer], progress=False)
    chosen = list(range(units))
    return lambda: deconvviz.project(model, images, layer=layer, units=chosen, top=best, progress=False)


def occlusion(model: nn.Module, image: torch.Tensor, size: Size, method: str) -> Callable[[], Any]:
    grid: dict[str, Any] = {"size": size.window, "stride": size.window // 4, "fill": 0.0, "target": 0}
    return lambda: deconvviz.occlude(model, image, method=method, progress=False, **grid)


def write_photos(folder: Path, count: int, side: int) -> None:
    """Write noise in two classes: training looks at its bytes, not at what they show."""
    random = np.random.default_rng(0)
    for i in range(count):
        place = folder / ("a", "b")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(place)


def training(folder: Path, size: Size, device: str) -> Callable[[], Any]:
    options: dict[str, Any] = {"epochs": size.epochs, "device": device, "batch_size": min(256, size.files // 2)}

    def work() -> Any:
        with tempfile.TemporaryDirectory() as out:
            how = {**options, "validation": 0.34 if size == TOY else 0.05, "cache": folder / "cache", "progress": False}
            return deconvviz.train("resnet-20", folder / "photos", out=out, image_size=32, **how)

    return work


def measure(device: str, size: Size, rounds: int) -> tuple[list[list[str]], str]:
    """Return the table's rows, and what they were measured against."""
    torch.manual_seed(0)
    most, bandwidth = limit(device, size.matrix)
    pixels = torch.randint(0, 256, (size.images, 3, size.side, size.side), dtype=torch.uint8, device=device)
    images = ImageSet(Bytes(pixels), Preprocess(None, mean=(0.5,) * 3, std=(58 / 255,) * 3))
    model = torchvision.models.get_model(size.network, weights=None).eval().to(device)
    classic = torchvision.models.alexnet(weights=None).eval().to(device)
    layers = [layer.name for layer in deconvviz.layers(model).numbered if (layer.number or 0) <= 5]
    few = ImageSet(Bytes(pixels[: min(256, size.images)]), images.preprocess)
    image = torch.randn(1, 3, size.side, size.side)
    places = (-(-(size.side - size.window) // (size.window // 4)) + 1) ** 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", size.files, 32)
        trained = round(size.files * size.epochs * (0.66 if size == TOY else 0.95))
        cases = [
            (f"scan, {size.network}, {len(layers)} layers", size.images, "images", scan(model, images, layers)),
            ("projection, AlexNet layer 5", 9 * size.units, "projections", projection(classic, few, 5, size.units)),
            ("projection, AlexNet layer 2", 9 * size.units, "projections", projection(classic, few, 2, size.units)),
            ("occlusion, AlexNet, in full", places, "places", occlusion(classic, image, size, "full")),
            ("occlusion, AlexNet, incremental", places, "places", occlusion(classic, image, size, "incremental")),
            ("training, resnet-20, 32 px, with decoding", trained, "images", training(folder, size, device)),
        ]
        rows = [row(*case, most, device, rounds) for case in cases]
    return rows, f"The card's limit: {most / 1e12:.2f} TFLOP/s in float32, {bandwidth / 1e9:,.0f} GB/s of copies"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=FULL.images)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args(arguments)
    size = TOY if options.toy else dataclasses.replace(FULL, images=options.images)
    text = conditions(torch.get_num_threads(), options.device)
    rows, against = measure(options.device, size, options.rounds)
    details = f"{text}. {against}; float32, random weights, medians of {options.rounds} rounds; {load()}."
    table = [f"| {' | '.join(cells)} |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    content = "\n".join(["# On a GPU", "", details, "", *table, ""])
    options.out.write_text(content)
    print(content)


if __name__ == "__main__":
    main()
