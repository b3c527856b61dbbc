"""Tensors of which only a window changed: where the windows are, and how to read around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tape.arguments import Pair
from ..tape.operations import Tape

Borders = tuple[int, int, int, int]  # left, right, top, bottom, as `F.pad` counts
NO_BORDERS: Borders = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Place:
    """Where the windows of B positions are along one axis: from `start` (B,); [low, high) (B,) is what changed.

    All windows of a batch have one size, so that a window may be larger than what changed in it.
    """

    start: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def around(low: Tensor, high: Tensor, length: int) -> tuple[Place, int]:
        """Windows of the least common size that hold [low, high) and lie within `length`; also that size."""
        size = max(1, int((high - low).max()))
        return Place(low.clamp(0, length - size), low, high), size

    def shift(self, by: int) -> Place:
        """Move along the axis."""
        return Place(self.start + by, self.low + by, self.high + by)


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor at B occluder positions: windows (B, …, h, w) at `rows` and `cols`, or whole where those are None."""

    data: Tensor
    rows: Place | None = None
    cols: Place | None = None


class Unoccluded:
    """The kept tensors of the unoccluded pass, and windows on them with changed parts pasted in."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._rows: dict[Any, Tensor] = {}

    def gather(
        self,
        value: int,
        part: Part | None,
        top: Tensor,
        left: Tensor,
        size: Pair,
        borders: Borders = NO_BORDERS,
        pad: float = 0.0,
    ) -> Tensor:
        """Cut windows of `size` at `top`, `left` of the padded map: unoccluded values, with `part` pasted in."""
        width = self.tape.shapes[value][-1]
        wide = width + borders[0] + borders[1]
        base = self._padded(value, borders, pad, part.data.dtype if part is not None else None)
        rows, cols = top[:, None] + torch.arange(size[0]), left[:, None] + torch.arange(size[1])
        index = rows[:, :, None] * wide + cols[:, None, :]
        if part is not None:
            assert part.rows is not None and part.cols is not None
            h, w = part.data.shape[-2:]
            row, col = rows - (part.rows.start[:, None] + borders[2]), cols - (part.cols.start[:, None] + borders[0])
            inside = ((row >= 0) & (row < h))[:, :, None] & ((col >= 0) & (col < w))[:, None, :]
            first = len(base) + torch.arange(len(top))[:, None, None] * (h * w)
            index = torch.where(inside, first + row[:, :, None] * w + col[:, None, :], index)
            base = torch.cat([base, part.data.permute(0, 2, 3, 1).reshape(-1, part.data.shape[1])])
        out = base.index_select(0, index.flatten().to(base.device))
        return out.view(len(top), *size, -1).permute(0, 3, 1, 2)

    def _padded(self, value: int, borders: Borders, pad: float, dtype: torch.dtype | None) -> Tensor:
        """The unoccluded map with its border, as rows of channels (pixels, C)."""
        key = (value, borders, pad, dtype)
        if key not in self._rows:
            maps = self.tape.kept[value]
            padded = F.pad(maps, borders, value=pad) if any(borders) else maps
            rows = padded.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous()
            self._rows[key] = rows if dtype is None else rows.to(dtype)
        return self._rows[key]

    def whole(self, value: int, part: Part) -> Tensor:
        """The whole tensor (B, …) with the changed part in its place."""
        if part.rows is None or part.cols is None:
            return part.data
        if part.data.dim() == 4:
            zero = torch.zeros_like(part.rows.start)
            height, width = self.tape.shapes[value][-2:]
            return self.gather(value, part, zero, zero, (height, width))
        out = self.tape.kept[value].to(part.data.dtype).repeat(len(part.data), *[1] * (part.data.dim() - 1))
        h, w = part.data.shape[-2:]
        for i, (top, left) in enumerate(zip(part.rows.start.tolist(), part.cols.start.tolist(), strict=True)):
            out[i, ..., top : top + h, left : left + w] = part.data[i]
        return out

    def join(self, values: Sequence[int], parts: Sequence[Part], shape: torch.Size, cover: float) -> list[Part] | None:
        """Bring parts to one window that holds what changed in any of them; None if it covers more than `cover`."""
        first = parts[0]
        if all(torch.equal(_corners(p), _corners(first)) and p.data.shape[2:] == first.data.shape[2:] for p in parts):
            return list(parts)
        if first.data.dim() != 4:
            return None
        places = []
        for side, length in (("rows", shape[-2]), ("cols", shape[-1])):
            each = [getattr(p, side) for p in parts]
            low, high = torch.stack([e.low for e in each]).amin(0), torch.stack([e.high for e in each]).amax(0)
            places.append(Place.around(low, high, length))
        (rows, h), (cols, w) = places
        if h * w > cover * shape[-2:].numel():
            return None
        pairs = zip(values, parts, strict=True)
        return [Part(self.gather(v, p, rows.start, cols.start, (h, w)), rows, cols) for v, p in pairs]


def _corners(part: Part) -> Tensor:
    assert part.rows is not None and part.cols is not None
    return torch.stack([part.rows.start, part.cols.start])
