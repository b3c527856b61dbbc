"""From tensors to pictures within 0-1: signed values around mid-gray, patches in true colours. No figures here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import OptionError

PERCENTILE = 99.5  # of a block's values span the colours, the rest is shown as plain white or black
GRAY = 0.5  # a projection of zero, and what lies beyond the image's edge


def signed(
    values: torch.Tensor, *, per: str, percentile: float = PERCENTILE, smooth: float = 0.0, gray: bool = False
) -> torch.Tensor:
    """Map signed (U, K, C, h, w) to 0–1: zero becomes mid-gray, one symmetric scale per block, tile or sheet.

    The largest half percent of the values that are not zero saturates: a few peaks would leave the rest gray.
    `smooth` is the standard deviation in pixels of a Gaussian, `gray` shows the mean of the channels.
    """
    if not (isinstance(percentile, (int, float)) and 0 < percentile <= 100):
        raise OptionError(f"percentile={percentile!r}: give a number above 0, up to 100.")
    if not (isinstance(smooth, (int, float)) and 0 <= smooth < math.inf):
        raise OptionError(f"smooth={smooth!r}: give a Gaussian's standard deviation in pixels, 0 for none.")
    values = smoothed(values.mean(2, keepdim=True).expand_as(values) if gray else values, smooth)
    rows = values.flatten(0 if per == "sheet" else 1 if per == "block" else 2)
    scales = torch.stack([peak_of(row, percentile) for row in rows.reshape(-1, rows.shape[-1])]).view(rows.shape[:-1])
    scale = scales.view(*scales.shape, *(1,) * (values.dim() - scales.dim()))
    return GRAY + GRAY * (values / scale).clamp(-1, 1)


def smoothed(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return (…, h, w) after a Gaussian of so many pixels; beyond the edge is nothing."""
    if sigma == 0:
        return values
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=values.dtype) / sigma) ** 2)
    weights = weights / weights.sum()
    maps = values.reshape(-1, 1, *values.shape[-2:])
    maps = torch.nn.functional.conv2d(maps, weights.view(1, 1, -1, 1), padding=(radius, 0))
    return torch.nn.functional.conv2d(maps, weights.view(1, 1, 1, -1), padding=(0, radius)).view_as(values)


def peak_of(values: torch.Tensor, percentile: float = PERCENTILE) -> torch.Tensor:
    """Return the size that is shown as plain white or black: so many percent of those that are not zero reach it."""
    sizes = values.detach().abs().flatten()
    zeros = sizes.numel() - int(sizes.count_nonzero())
    if zeros == sizes.numel():
        return values.new_ones(())
    rank = zeros + max(1, math.ceil(percentile / 100 * (sizes.numel() - zeros)))
    found = sizes.cpu().to(torch.promote_types(sizes.dtype, torch.float32)).numpy()
    found.partition(rank - 1)  # several times faster than to take out the zeros first, and than torch's kthvalue
    return values.new_tensor(found[rank - 1]).clamp_min(1e-30)  # dividing by a denormal number would overflow


def true_colours(
    patches: torch.Tensor,
    inside: torch.Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> torch.Tensor:
    """Undo `(pixels - mean) / std` on (U, K, C, h, w); without them stretch each patch's inside to 0–1."""
    if mean is not None and std is not None:
        shape = (-1, 1, 1)
        return (patches * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
    dims = (2, 3, 4)
    low = patches.where(inside, math.inf).amin(dim=dims, keepdim=True)
    high = patches.where(inside, -math.inf).amax(dim=dims, keepdim=True)
    return ((patches - low) / (high - low).clamp_min(1e-12)).nan_to_num(GRAY).clamp(0, 1)


def in_order(tiles: torch.Tensor, order: Sequence[int] | None) -> torch.Tensor:
    """Return tiles (…, C, h, w) with red first: `order` says which of red, green and blue each channel is."""
    return tiles if order is None else tiles[..., [list(order).index(c) for c in range(len(order))], :, :]


def rgb(tiles: torch.Tensor) -> torch.Tensor:
    """Return three channels; anything but gray and RGB is shown as the mean of its channels."""
    if tiles.shape[2] != 3:
        tiles = tiles.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    return tiles


def inside_image(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Mark the pixels (U, K, 1, h, w) that lie in the image; a box at an edge lacks that side."""
    top, left, bottom, right = (edge[..., None] for edge in boxes.unbind(-1))
    return (_span(top, bottom, height)[..., :, None] & _span(left, right, width)[..., None, :])[:, :, None]


def _span(start: torch.Tensor, stop: torch.Tensor, length: int) -> torch.Tensor:
    first = torch.where(start == 0, length - (stop - start), 0)
    place = torch.arange(length)
    return (place >= first) & (place < first + stop - start)
