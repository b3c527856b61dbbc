"""The occluder: where it goes, as a grid of boxes or as masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import is_whole
from ..errors import OptionError

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
    pair = (value, value) if is_whole(value) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(is_whole(x) and x >= 1 for x in pair):
        raise OptionError(f"{name}={value!r}: give a number of pixels or (height, width), each at least 1.")
    return int(pair[0]), int(pair[1])


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
