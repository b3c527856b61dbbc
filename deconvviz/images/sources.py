"""Where images come from: each source maps a list of ids to a tensor (n, C, H, W)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from .preprocess import Preprocess, checked, upright


class Tensors:
    """Images in the model's input space already."""

    parallel = False

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        if ids[-1] - ids[0] == len(ids) - 1 and list(ids) == list(range(ids[0], ids[-1] + 1)):
            return self.images[ids[0] : ids[-1] + 1]  # a batch: no copy
        return self.images[torch.as_tensor(ids, dtype=torch.long)]

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        yield self.images


class Pictures:
    """PIL images, or files that hold one each."""

    def __init__(self, pictures: Sequence[Image.Image | Path], names: Sequence[str], preprocess: Preprocess) -> None:
        self.pictures, self.names, self.preprocess = pictures, names, preprocess
        self.parallel = any(isinstance(p, Path) for p in pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        return stacked([self._one(i) for i in ids], [self.names[i] for i in ids])

    def _one(self, i: int) -> Tensor:
        picture = self.pictures[i]
        if not isinstance(picture, Path):
            return self.preprocess(picture)
        try:
            with Image.open(picture) as opened:
                opened.load()
                pixels = upright(opened)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"cannot read the image {picture}: {error}. Repair it or take it away.") from error
        return self.preprocess(pixels)

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        for name, picture in zip(self.names, self.pictures, strict=True):
            if isinstance(picture, Path):
                facts = picture.stat()
                yield f"{name} {facts.st_size} {facts.st_mtime_ns}"
            else:
                yield f"{picture.mode} {picture.size}"
                yield picture.tobytes()


class Items:
    """A map-style dataset whose items are images or (image, …)."""

    parallel = True

    def __init__(self, dataset: Any, preprocess: Preprocess | None, collate: Any = None) -> None:
        self.dataset, self.preprocess, self.collate = dataset, preprocess, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        items = [self.dataset[i] for i in ids]
        if self.collate is not None:
            return check_batch(first_of(self.collate(items)))
        return stacked([self._one(item) for item in items], [f"item {i}" for i in ids])

    def _one(self, item: Any) -> Tensor:
        item = first_of(item)
        if isinstance(item, Image.Image) and self.preprocess is not None:
            return self.preprocess(item)
        return checked(item)

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        # A dataset may be too large to read twice: its type, its length and a few of its images must do.
        yield f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__} {len(self)}"
        for i in sorted({0, len(self) // 3, len(self) // 2, len(self) - 1}):
            yield self[[i]]


def stacked(images: list[Tensor], names: Sequence[str]) -> Tensor:
    """Stack images (C, H, W) to a batch (n, C, H, W), or name the one of another shape."""
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise ImageError(
                f"images of one set must have one size after preprocessing: {names[0]} has "
                f"{tuple(images[0].shape)}, "
                f"{name} has {tuple(image.shape)}. Let preprocess resize and crop them."
            )
    return torch.stack(images)


def check_batch(images: object) -> Tensor:
    """Return `images` if it is a non-empty, finite float tensor (N, C, H, W); refuse it otherwise."""
    if not isinstance(images, Tensor):
        raise ImageError(f"got {type(images).__name__}, expected a tensor (N, C, H, W).")
    shape = tuple(images.shape)
    if images.dim() != 4:
        hint = " Add the batch dimension: images[None]." if images.dim() == 3 else ""
        raise ImageError(f"images have shape {shape}, expected (N, C, H, W).{hint}")
    if 0 in shape:
        raise ImageError(f"no images: the tensor has shape {shape}, expected at least one image (N, C, H, W).")
    if not images.is_floating_point():
        raise ImageError(
            f"images are {images.dtype}, expected floating point in the model's input space. Convert and "
            "normalize them (x.float() / 255, minus mean, divided by std), or give PIL images."
        )
    # A finite sum means finite values, and is ten times as fast to find.
    if not torch.isfinite(images.sum()) and not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images.flatten(1)).all(1)).nonzero()[0])
        raise ImageError(f"image {bad} holds NaN or infinity, expected finite values. Clean it or leave it out.")
    return images


def first_of(item: Any) -> Any:
    """Return the image of a dataset's item: what stands first in a tuple."""
    return item[0] if isinstance(item, (tuple, list)) else item
