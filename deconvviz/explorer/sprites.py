"""Pictures for the explorer: tiles side by side in one small PNG or JPEG, as base64 text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images.display import GRAY, in_order, inside_image, peak_of, rgb, true_colours
from ..projection.result import Projections

MOST = 112  # pixels: the longest side of a tile; larger ones are reduced
FINE = 256  # pixels: that of a projection that is looked at alone
_LOSSLESS = 16  # pixels: tiles up to this side are so few bytes that JPEG would save none and blur them
_BLOCK = 8  # pixels: JPEG's blocks; a tile that starts on one is not smeared by its neighbour
_QUALITY = 80  # with the colours in full: halving them dulls the small patches of colour of a projection
ZERO = 128  # of a signed tile's bytes: 1 and 255 are the extremes


class Shape(NamedTuple):
    """How the tiles of a sprite lie: `size` (height, width) of a tile, `pitch` from one to the next, `columns`."""

    size: tuple[int, int]
    pitch: tuple[int, int]
    columns: int
    mime: str

    @classmethod
    def of(cls, height: int, width: int, columns: int, most: int = MOST) -> Shape:
        """Choose for tiles of this many pixels."""
        factor = min(1.0, most / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        if max(size) <= _LOSSLESS:
            return cls(size, size, columns, "image/png")
        up, across = (math.ceil(side / _BLOCK) * _BLOCK for side in size)
        return cls(size, (up, across), columns, "image/jpeg")

    def facts(self) -> dict[str, Any]:
        """Return what the page must know to find a tile again."""
        return {"size": self.size, "pitch": self.pitch, "columns": self.columns, "mime": self.mime}


def units(result: Projections, row: int, shape: Shape, large: Shape) -> tuple[str, str, list[float]]:
    """Return one unit's sprite, its K projections above its K patches, then the projections alone, and their contrasts.

    Those alone are of the size of `large`, or "" where that is no other. Each projection is stretched by itself, so
    that its bytes are used in full. Its contrast is what takes it back to the scale that all of the unit share:
    shown = 128 + (stored - 128) · contrast.
    """
    one, of_all = result.projections[row].float(), slice(row, row + 1)
    signal, contrast = stretch(in_order(one, result.order))
    patches = result.patches[of_all].float()
    # What is not zero is no padding, whatever the boxes of an odd geometry say.
    inside = inside_image(result.boxes[of_all], *patches.shape[-2:]) | (patches != 0).any(2, keepdim=True)
    photos = true_colours(patches, inside, result.mean, result.std)
    photos = in_order(torch.where(inside, photos, GRAY)[0], result.order)
    # Both blocks fill whole rows: the first patch starts a row.
    missing = -len(one) % shape.columns
    gap = signal.new_full((missing, *signal.shape[1:]), GRAY)
    tiles = torch.cat([_bytes(torch.cat([signal, gap]), shape, signed=True), _bytes(photos, shape)])
    alone = "" if large.size == shape.size else sprite(_bytes(signal, large, signed=True), large)
    return sprite(tiles, shape), alone, contrast


def stretch(values: Tensor) -> tuple[Tensor, list[float]]:
    """Return signed tiles (K, C, h, w) each on its own scale within 0–1, and what brings them to a common one."""
    own = torch.stack([peak_of(tile.flatten()) for tile in values])
    empty = ~values.flatten(1).any(1)
    contrast = (own / peak_of(values.flatten())).masked_fill(empty, 0)
    scaled = GRAY + GRAY * (values / own.view(-1, 1, 1, 1)).clamp(-1, 1)
    return scaled, [shorten(c) for c in contrast.tolist()]


def signed_sprite(values: Tensor, shape: Shape) -> tuple[str, list[float]]:
    """Return signed tiles (K, C, h, w) as one sprite with their contrasts, see `units`."""
    scaled, contrast = stretch(values)
    return sprite(_bytes(scaled, shape, signed=True), shape), contrast


def photos(pixels: Tensor, shape: Shape) -> str:
    """Return pictures (n, C, H, W) within 0–1."""
    return sprite(_bytes(pixels, shape), shape)


def _bytes(tiles: Tensor, shape: Shape, *, signed: bool = False) -> Tensor:
    """Return (n, h, w, 3) uint8 of the size that the sprite has."""
    tiles = rgb(tiles[None])[0]
    if tuple(tiles.shape[-2:]) != shape.size:
        tiles = torch.nn.functional.interpolate(tiles, shape.size, mode="bilinear", antialias=True).clamp(0, 1)
    levels = ZERO + (2 * tiles - 1) * (ZERO - 1) if signed else tiles * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)


def sprite(tiles: Tensor, shape: Shape) -> str:
    """Lay (n, h, w, 3) uint8 out in rows of `columns` and return the encoded picture as base64."""
    (height, width), (up, across), columns = shape.size, shape.pitch, shape.columns
    padded = np.pad(tiles.numpy(), ((0, -len(tiles) % columns), (0, up - height), (0, across - width), (0, 0)), "edge")
    rows = len(padded) // columns
    array = padded.reshape(rows, columns, up, across, 3).swapaxes(1, 2).reshape(rows * up, columns * across, 3)
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(array))
    if shape.mime == "image/png":
        image.save(buffer, "PNG", optimize=True)
    else:
        # Not optimized: Pillow's buffer for that is too small for large tiles of noise.
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()


def shorten(value: float, digits: int = 5) -> float:
    """Return a number in few letters."""
    return float(f"{value:.{digits}g}")


def shorten_all(values: Sequence[Any], digits: int = 5) -> list[Any]:
    """Return nested lists of numbers in few letters."""
    return [shorten_all(v, digits) if isinstance(v, (list, tuple)) else shorten(v, digits) for v in values]
