"""What covers the image: gray, its mean, its blur, noise, a colour, another image."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as F

from ..errors import ImageError, OptionError
from ..images import ImageSet, open_images
from ..images.preprocess import Preprocess
from .occluder import SHARE

FILLS = ("gray", "mean", "blur", "noise")


@dataclass(frozen=True)
class Filling:
    """What covers the images, as the user said it, and what is needed to make sense of that."""

    fill: Any
    model: nn.Module
    source: ImageSet
    preprocess: object
    seed: int

    def on(self, image: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, str]:
        """Return the covering image (C, H, W) in the model's input space, and its name."""
        fill = self.fill
        if isinstance(fill, str) and fill in FILLS:
            return _NAMED[fill](self, image, size)
        if isinstance(fill, (Tensor, Image.Image, os.PathLike)) or (isinstance(fill, str) and Path(fill).is_file()):
            return self._other(image), "another image"
        if isinstance(fill, (int, float)) and not isinstance(fill, bool):
            return self._colour((float(fill),) * len(image), image), f"{fill:g}"
        if isinstance(fill, (tuple, list)) and len(fill) == len(image):
            return self._colour(tuple(map(float, fill)), image), "(" + ", ".join(f"{x:g}" for x in fill) + ")"
        raise OptionError(
            f"fill={fill!r} has no meaning here. Give {', '.join(map(repr, FILLS))}, a number, one number for each of "
            f"the {len(image)} channels, or another image."
        )

    def _gray(self, image: Tensor, size: Any) -> tuple[Tensor, str]:
        if self.source.preprocess.source == "not known":
            return torch.zeros_like(image), "0 in input space"
        return _uniform(self.source.preprocess, (0.5,) * len(image), image), "mid-gray"

    def _mean(self, image: Tensor, size: Any) -> tuple[Tensor, str]:
        return image.mean((1, 2), keepdim=True).expand_as(image).clone(), "the image's mean"

    def _blur(self, image: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, str]:
        height, width = image.shape[1:]
        high, wide = size or (min(height, width) / SHARE,) * 2
        sigma = [max(wide / 2, 0.5), max(high / 2, 0.5)]  # half the window: nothing of its size remains
        # The blur reflects the image at its edge, which must be longer than the kernel's arm.
        arms = [min(math.ceil(3 * s), n - 1) for s, n in zip(sigma, (width, height), strict=True)]
        return F.gaussian_blur(image, [2 * arm + 1 for arm in arms], sigma), "blur"

    def _noise(self, image: Tensor, size: Any) -> tuple[Tensor, str]:
        quiet = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(image.shape, generator=quiet).to(image)
        spread = image.std((1, 2), keepdim=True, correction=0)
        return image.mean((1, 2), keepdim=True) + spread * noise, f"noise (seed {self.seed})"

    def _other(self, image: Tensor) -> Tensor:
        fill = self.fill
        if isinstance(fill, Tensor):
            fill = fill.detach()[None] if fill.dim() == 3 else fill.detach()
        other = open_images(self.model, fill, self.preprocess).take([0])[0].to(image)
        if other.shape != image.shape:
            raise ImageError(f"fill has shape {tuple(other.shape)}, expected the image's, {tuple(image.shape)}.")
        return other.clone()

    def _colour(self, colour: tuple[float, ...], image: Tensor) -> Tensor:
        if not all(map(math.isfinite, colour)):
            raise OptionError(f"fill={self.fill!r}: give finite numbers.")
        if not self.source.are_pictures:
            return torch.tensor(colour).to(image).view(-1, 1, 1).expand_as(image).clone()
        if not all(0 <= x <= 1 for x in colour):
            raise OptionError(f"fill={self.fill!r}: for a picture give numbers from 0 (black) to 1 (white).")
        return _uniform(self.source.preprocess, colour, image)


_NAMED = {"gray": Filling._gray, "mean": Filling._mean, "blur": Filling._blur, "noise": Filling._noise}


def _uniform(preprocess: Preprocess, pixels: tuple[float, ...], like: Tensor) -> Tensor:
    """Return an image of one colour, given on the 0–1 scale, in the model's input space."""
    return preprocess.colour(pixels).to(like).view(-1, 1, 1).expand_as(like).clone()
