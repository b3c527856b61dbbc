"""The occluder: where it goes, and what it covers the image with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as F

from ..errors import ImageError, OptionError
from ..images.opening import ImageSet, open_images
from ..images.preprocess import Preprocess
from ..images.sources import Items, Tensors, first_of

FILLS = ("gray", "mean", "blur", "noise")
# A seventh of the short side is 32 px of 224: about as large as an object's part. At half its size apart every pixel
# is covered by four windows, and an image has 13 × 13 positions: seconds on a laptop.
SHARE = 7


@dataclass(frozen=True)
class Occluder:
    """P places to cover, in R rows and C columns, read row by row; masks are P rows of one column.

    `boxes` (P, 4) are (top, left, bottom, right) in pixels, or None if not all masks are boxes; `masks` is (P, H, W)
    or None for a grid; `size` is the window's, None for masks.
    """

    rows: Tensor
    cols: Tensor
    size: tuple[int, int] | None
    stride: tuple[int, int] | None
    boxes: Tensor | None
    masks: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """R and C."""
        return len(self.rows), len(self.cols)


def grid(
    image_size: tuple[int, int],
    size: int | tuple[int, int] | None,
    stride: int | tuple[int, int] | None,
    edge: str,
) -> Occluder:
    """Place a window on a grid over an image of `image_size` (height, width)."""
    height, width = image_size
    high, wide = _pair("size", max(1, round(min(image_size) / SHARE)) if size is None else size)
    down, right = _pair("stride", (max(1, high // 2), max(1, wide // 2)) if stride is None else stride)
    if high > height or wide > width:
        raise OptionError(
            f"the occluder is {high}×{wide}, larger than the image, {height}×{width}. Give a smaller size=."
        )
    rows, cols = starts(height, high, down, edge), starts(width, wide, right, edge)
    top, left = (x.flatten() for x in torch.meshgrid(rows, cols, indexing="ij"))
    boxes = torch.stack([top, left, (top + high).clamp(max=height), (left + wide).clamp(max=width)], 1)
    return Occluder(rows, cols, (high, wide), (down, right), boxes, None)


def starts(length: int, window: int, stride: int, edge: str) -> Tensor:
    """Return where windows start along one dimension: ceil((length - window) / stride) + 1 of them.

    Where the last one would reach over the edge, "clip" cuts it off there and "align" moves it back.
    """
    if edge not in ("clip", "align"):
        raise OptionError(f"edge={edge!r} has no meaning here. Give 'clip' or 'align'.")
    first = torch.arange(math.ceil((length - window) / stride) + 1) * stride
    return first.clamp(max=length - window) if edge == "align" else first


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in pair):
        raise OptionError(f"{name}={value!r}: give a number of pixels or (height, width), each at least 1.")
    return pair[0], pair[1]


def of_masks(masks: Any, image_size: tuple[int, int]) -> Occluder:
    """Place masks (P, H, W), bool or 0 to 1, where 1 is covered."""
    masks = torch.as_tensor(masks).detach().cpu()
    if masks.dim() != 3 or tuple(masks.shape[1:]) != image_size or len(masks) == 0:
        raise OptionError(
            f"masks have shape {tuple(masks.shape)}, expected (P, {image_size[0]}, {image_size[1]}): one mask "
            "of the image's size for each position."
        )
    masks = masks if masks.dtype == torch.bool else masks.float()
    # "not within" instead of "outside": NaN is neither.
    if masks.dtype != torch.bool and not ((masks >= 0) & (masks <= 1)).all():
        raise OptionError("masks must be finite and lie between 0 (seen) and 1 (covered), or be bool.")
    return Occluder(torch.arange(len(masks)), torch.zeros(1, dtype=torch.long), None, None, boxes_of(masks), masks)


def boxes_of(masks: Tensor) -> Tensor | None:
    """Return the boxes (P, 4) if every mask is one, else None."""
    covered = masks > 0
    if not (covered == masks).all() or not covered.flatten(1).any(1).all():
        return None
    edges = []
    for dim in (2, 1):  # which rows, then which columns
        line = covered.any(dim).int()
        edges.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (top, bottom), (left, right) = edges
    full = (bottom - top) * (right - left) == covered.flatten(1).sum(1)
    return torch.stack([top, left, bottom, right], 1) if full.all() else None


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
        if not are_pictures(self.source):
            return torch.tensor(colour).to(image).view(-1, 1, 1).expand_as(image).clone()
        if not all(0 <= x <= 1 for x in colour):
            raise OptionError(f"fill={self.fill!r}: for a picture give numbers from 0 (black) to 1 (white).")
        return _uniform(self.source.preprocess, colour, image)


_NAMED = {"gray": Filling._gray, "mean": Filling._mean, "blur": Filling._blur, "noise": Filling._noise}


def are_pictures(source: ImageSet) -> bool:
    """Say whether the images were pictures, not tensors in the model's input space."""
    inner = source._source
    if isinstance(inner, Items):
        return isinstance(first_of(inner.dataset[0]), Image.Image)
    return not isinstance(inner, Tensors)


def _uniform(preprocess: Preprocess, pixels: tuple[float, ...], like: Tensor) -> Tensor:
    """Return an image of one colour, given on the 0–1 scale, in the model's input space."""
    if preprocess.mean is not None and preprocess.std is not None:
        values = [(p - m) / s for p, m, s in zip(pixels, preprocess.mean, preprocess.std, strict=True)]
    else:  # only the user's own function knows: show it a picture of that colour
        colour = tuple(round(255 * p) for p in (pixels * 3)[:3])
        made = preprocess(Image.new("RGB", (like.shape[2], like.shape[1]), colour))
        values = made[:, made.shape[1] // 2, made.shape[2] // 2].tolist()
    return torch.tensor(values).to(like).view(-1, 1, 1).expand_as(like).clone()
