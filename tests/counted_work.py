"""What is counted on the simulated device: the work, and at most how many kernels and waits of the host it may cause."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from simulated_device import Device, simulated

import deconvviz
from deconvviz.guard import check_weights

FILLS = frozenset("fill_ zero_ masked_fill_ masked_fill".split())
BATCH = 64


@dataclass(frozen=True)
class Counts:
    """Kernels, those among them that only fill, and waits of the host."""

    kernels: int
    fills: int
    waits: int


NONE = Counts(0, 0, 0)


@dataclass(frozen=True)
class Work:
    """A call whose kernels are counted, made by `prepare` on the device, and the most that it may cause."""

    title: str
    prepare: Callable[[], Callable[[], object]]
    most: Counts


def network() -> torch.nn.Module:
    """The paper's network for small images, with its weights."""
    return deconvviz.zoo.create("zfnet64", weights="bundled").to("cuda")


def images(count: int = BATCH) -> torch.Tensor:
    """Images of the device."""
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to("cuda")


def projecting(layer: int) -> Callable[[], object]:
    """All units of a layer, their top 3."""
    model, x = network(), images()
    return lambda: deconvviz.project(model, x, layer=layer, units="all", k=3, progress=False)


def carrying() -> Callable[[], object]:
    """One unit in each image."""
    model, x = network(), images()
    return lambda: deconvviz.deconv(model, x, layer=5, unit=7)


def scanning() -> Callable[[], object]:
    """Five layers, four batches."""
    model, x = network(), images()
    return lambda: deconvviz.top(model, x, layers=[1, 2, 3, 4, 5], batch_size=16, progress=False)


def occluding() -> Callable[[], object]:
    """A square at 81 places."""
    model, x = network(), images(1)
    return lambda: deconvviz.occlude(model, x, size=14, stride=7, progress=False)


def checking() -> Callable[[], object]:
    """The weights of 56 layers."""
    model = deconvviz.zoo.create("resnet-56").to("cuda")
    return lambda: check_weights(model)


STEPS = 2


def training(dtype: torch.dtype | None, epoch: int) -> Callable[[], object]:
    """One epoch of so many steps, of two images each: half precision is slow on a CPU."""
    folder = Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "data" / label).mkdir(parents=True)
        for i in range(epoch + 1):  # two are held out
            picture = Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            picture.save(folder / "data" / label / f"{i}.png")
    options = {"epochs": 1, "batch_size": 2, "device": "cuda", "dtype": dtype, "validation": 1 / (epoch + 1)}
    return lambda: deconvviz.train("resnet-20", folder / "data", out=folder / "out", progress=False, **options)


WORKS = {
    "project layer 5": Work("`project`, layer 5, all 192 units × 3", lambda: projecting(5), Counts(1600, 20, 15)),
    "project layer 2": Work("`project`, layer 2, all 160 units × 3", lambda: projecting(2), Counts(1400, 20, 15)),
    "deconv": Work("`deconv` of 64 images, layer 5", carrying, Counts(900, 20, 15)),
    "top": Work("`top`, layers 1 to 5, 4 batches", scanning, Counts(1900, 20, 36)),
    "occlude": Work("`occlude`, 81 places of a square", occluding, Counts(10000, 20, 60)),
    "check_weights": Work("`check_weights` of resnet-56", checking, Counts(3200, 0, 1)),
}
STEP = {"float32": Counts(900, 4, 1), "bfloat16": Counts(950, 4, 1), "float16": Counts(650, 4, 1)}


def counted(work: Work) -> Counts:
    """Count what one call causes."""
    with simulated() as device:
        run = work.prepare()
        device.clear()
        run()
    return _counts(device)


def counted_step(name: str) -> Counts:
    """Count what one more step of training causes: the difference of two epochs, over their difference in steps."""
    dtype = None if name == "float32" else getattr(torch, name)
    short, long = (counted(Work("", lambda n=n: training(dtype, n), NONE)) for n in (STEPS, 2 * STEPS))
    pairs = zip(astuple(long), astuple(short), strict=True)
    return Counts(*(math.ceil((more - fewer) / STEPS) for more, fewer in pairs))


def _counts(device: Device) -> Counts:
    fills = sum(n for name, n in device.kernels.items() if name in FILLS)
    return Counts(device.kernels.total(), fills, device.waits.total())
