"""The views of one image that the papers average a network's answers over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ImageError

Size = tuple[int, int]


def corners_and_centre(image: Tensor, size: Size) -> list[Tensor]:
    """Cut the four corners and the centre out of an image (C, H, W)."""
    height, width = image.shape[1:]
    down, right = height - size[0], width - size[1]
    if down < 0 or right < 0:
        raise ImageError(
            f"an image of {height}×{width} pixels holds no crop of {size[0]}×{size[1]}. Give larger scales=."
        )
    places = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
    return [image[:, top : top + size[0], left : left + size[1]] for top, left in places]


def squares(image: Tensor) -> list[Tensor]:
    """Cut three squares out of an image (C, H, W) along its longer side: at both ends and in the middle."""
    height, width = image.shape[1:]
    side, rest = min(height, width), abs(height - width)
    starts = (0, round(rest / 2), rest)
    if height >= width:
        return [image[:, start : start + side] for start in starts]
    return [image[:, :, start : start + side] for start in starts]


def one(image: Tensor, size: Size) -> Tensor:
    """The centre."""
    return corners_and_centre(image, size)[4][None]


def ten(image: Tensor, size: Size) -> Tensor:
    """Corners and centre of the central square, and their mirror images (AlexNet)."""
    return _mirrored(corners_and_centre(squares(image)[1], size))


def of_googlenet(image: Tensor, size: Size) -> Tensor:
    """Of each of three squares: corners, centre, and the square itself at the crops' size; all mirrored too: 36."""
    views: list[Tensor] = []
    for square in squares(image):
        whole = F.interpolate(square[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        views += [*corners_and_centre(square, size), whole]
    return _mirrored(views)


def grid(image: Tensor, size: Size) -> Tensor:
    """A regular grid of 5×5 over the whole image, mirrored too: 50 (VGG)."""
    height, width = image.shape[1:]
    corners_and_centre(image, size)  # refuses what is too small
    rows = [round(i * (height - size[0]) / 4) for i in range(5)]
    cols = [round(i * (width - size[1]) / 4) for i in range(5)]
    return _mirrored([image[:, r : r + size[0], c : c + size[1]] for r in rows for c in cols])


def _mirrored(views: list[Tensor]) -> Tensor:
    stacked = torch.stack(views)
    return torch.cat([stacked, stacked.flip(3)])


# Crops in all -> the views at one scale, and the scales as parts of the shorter side that the network's card names.
CROPS: dict[int, tuple[Callable[[Tensor, Size], Tensor], tuple[float, ...]]] = {
    1: (one, (1.0,)),
    10: (ten, (1.0,)),
    144: (of_googlenet, (1.0, 288 / 256, 320 / 256, 352 / 256)),
    150: (grid, (1.0, 384 / 256, 512 / 256)),
}
