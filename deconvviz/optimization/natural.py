"""What photographs have in common: how their colours go together, and how strong each frequency is."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from ..images.photos import PHOTOS
from ..images.preprocess import upright
from ..results import store

FILE = Path(__file__).parent / "natural.safetensors"
SIDE = 256  # of the photographs that were measured


@dataclass(frozen=True)
class Natural:
    """The statistics of photographs, before a sigmoid (in logits of their pixels).

    Attributes:
        colours: (3, 3), the symmetric root of the colours' covariance: independent channels to red, green, blue.
        spectrum: (3, SIDE, SIDE // 2 + 1), the mean magnitude per frequency of the independent channels.
        gray: (SIDE, SIDE // 2 + 1), the same of the mean over the colours.
    """

    colours: Tensor
    spectrum: Tensor
    gray: Tensor

    def correlate(self, independent: Tensor) -> Tensor:
        """Turn independent channels (B, C, H, W) into red, green and blue; other numbers of channels stay."""
        return _mixed(self.colours, independent) if independent.shape[1] == 3 else independent

    def decorrelate(self, logits: Tensor) -> Tensor:
        """Undo `correlate`."""
        inverse = torch.linalg.inv(self.colours.double()).to(self.colours.dtype)
        return _mixed(inverse, logits) if logits.shape[1] == 3 else logits

    def magnitude(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the magnitudes (C, H, W // 2 + 1) of photographs brought to the size of a shape."""
        channels, height, width = shape
        known = self.spectrum if channels == 3 else self.gray.expand(channels, -1, -1)
        rows, columns = torch.fft.fftfreq(height) * height, torch.fft.rfftfreq(width) * width  # cycles per image
        found = known[:, rows.clamp(1 - SIDE // 2, SIDE // 2 - 1).long()][:, :, columns.clamp(max=SIDE // 2).long()]
        # Finer than what was measured, the amplitude goes on falling with the frequency.
        beyond = torch.maximum(rows.abs()[:, None], columns) / (SIDE // 2)
        found = found / beyond.clamp(min=1)
        found = (found + found.flip(-2).roll(1, -2)) / 2  # exactly even, as a real image's are in the first column
        return found * (height * width / SIDE**2)


def _mixed(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", matrix.to(channels), channels)


def measure(photos: Iterable[Tensor]) -> Natural:
    """Measure photographs (3, SIDE, SIDE) with pixels from 0 to 1."""
    logits = torch.stack([photo.double().clamp(0.002, 0.998).logit() for photo in photos])
    centred = logits - logits.mean((0, 2, 3), keepdim=True)
    flat = centred.movedim(1, 0).flatten(1)
    values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    colours = vectors @ values.sqrt().diag() @ vectors.T
    independent = _mixed(torch.linalg.inv(colours), centred)
    spectrum, gray = _mean_magnitude(independent), _mean_magnitude(centred.mean(1, keepdim=True))
    return Natural(colours.float(), spectrum.float(), gray[0].float())


def _mean_magnitude(images: Tensor) -> Tensor:
    # The frame's edges are no part of a photograph: without a window they would be the strongest lines of all.
    window = torch.hann_window(SIDE, periodic=False, dtype=images.dtype)
    window = window[:, None] * window
    return torch.fft.rfft2(images * (window / window.square().mean().sqrt())).abs().mean(0)


def photographs() -> Iterator[Tensor]:
    """Yield this package's colour photographs (3, SIDE, SIDE), pixels from 0 to 1."""
    for photo in PHOTOS:
        with Image.open(photo.path) as picture:
            if picture.mode in ("RGB", "RGBA", "P"):
                square = F.center_crop(F.resize(upright(picture), SIDE, antialias=True), SIDE)
                yield F.pil_to_tensor(square).float() / 255


@functools.cache
def natural() -> Natural:
    """Return the statistics of this package's photographs."""
    arrays, _ = store.load(FILE, "natural")
    return Natural(*(arrays[name].float() for name in ("colours", "spectrum", "gray")))
