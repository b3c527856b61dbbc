"""How images are changed before each step: crops of other sizes and shapes, other colours; one draw per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from .pixels import Pixels, Windows, random_crops
from .recipe import Recipe, epoch_seed

_MOST = 10_000  # images that the colours are counted in
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Colours:
    """How the training images' colours vary: the covariance's eigenvalues (3,) and, as columns, eigenvectors (3, 3)."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, pixels: Pixels) -> Colours:
        """Find the principal components of the pixels, on the 0–1 scale, over at most 10,000 images spread evenly."""
        rows = pixels.good[:: max(1, -(-len(pixels.good) // _MOST))]
        count, total, products = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        for part in rows.split(_CHUNK):
            flat = pixels.images[part.to(pixels.images.device)].reshape(-1, 3).cpu().double() / 255
            count, total, products = count + len(flat), total + flat.sum(0), products + flat.T @ flat
        mean = total / count
        return cls(*torch.linalg.eigh(products / count - mean[:, None] * mean))

    def shift(self, std: float) -> Tensor:
        """Return (3,): a sum of the components, each drawn N(0, std) times its eigenvalue, on the scale of bytes.

        Source: Krizhevsky, Sutskever & Hinton 2012, section 4.1.
        """
        return 255 * self.vectors @ (torch.randn(3, dtype=torch.float64) * std * self.values)


def seeds(seed: int, epoch: int, places: Sequence[int]) -> list[int]:
    """Return a number for each place in an epoch: an image is changed alike on however many processes."""
    return [epoch_seed(seed, f"{epoch}/{place}") for place in places]


def changed(
    images: Tensor,
    recipe: Recipe,
    windows: Windows,
    size: int,
    fill: Tensor | None,
    colours: Colours | None,
    draws: Sequence[int],
) -> Tensor:
    """Cut from bytes (N, S, S, C) what a step sees, (N, C, size, size) on their scale, and change its colours.

    Windows of the usual kind are given; what else the recipe draws for an image is drawn with its own of the seeds
    `draws`, and the random state stays as it is.
    """
    resized = recipe.area or recipe.scales
    crops = None if resized else random_crops(images, windows, size, fill)
    if crops is not None and not recipe.jitter and colours is None:
        return crops
    jitter, made, shifts = v2.ColorJitter(*[recipe.jitter] * 3), [], []
    with torch.random.fork_rng(devices=[]):
        for number, seed in zip(range(len(images)), draws, strict=True):
            torch.default_generator.manual_seed(seed)
            crop = _resized(images[number].permute(2, 0, 1), recipe, size) if crops is None else crops[number]
            made.append(jitter(crop) if recipe.jitter else crop)
            if colours is not None:
                shifts.append(colours.shift(recipe.colour))
    found = torch.stack(made)
    if resized:
        found = torch.where(windows.mirrored[:, None, None, None], found.flip(3), found)
    if shifts:
        found = found.float() + torch.stack(shifts).to(found.device, torch.float32)[:, :, None, None]
    return found.contiguous(memory_format=torch.channels_last)


def _resized(image: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Cut a random window from an image (C, S, S) and resize it.

    By area and aspect; or for an image whose side is drawn between two multiples of `size`: it is stored at the
    largest, and in a smaller one the window is larger.
    """
    if recipe.area:
        cropped: Tensor = v2.RandomResizedCrop(size, recipe.area, recipe.aspect, antialias=True)(image)
        return cropped
    low, high = recipe.scales
    scale = low + (high - low) * float(torch.rand(()))
    side = min(image.shape[1], round(image.shape[1] / scale))
    top, left = (int(torch.randint(image.shape[1] - side + 1, ())) for _ in range(2))
    return v2.functional.resized_crop(image, top, left, side, side, [size, size], antialias=True)
