"""Tensors of which only a window changed: where the windows are, and how to read around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import sent
from ..tape.arguments import Pair
from ..tape.operations import Tape

Borders = tuple[int, int, int, int]  # left, right, top, bottom, as `F.pad` counts
NO_BORDERS: Borders = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Place:
    """Where the windows of B positions are along one axis: `size` long from `start` (B,); [low, high) (B,) changed.

    All windows of a batch have one size, so that a window may be larger than what changed in it. The numbers stay on
    the CPU, where they are worked out.
    """

    start: Tensor
    low: Tensor
    high: Tensor
    size: int

    @staticmethod
    def around(low: Tensor, high: Tensor, length: int) -> Place:
        """Windows of the least common size that hold [low, high) and lie within `length`."""
        size = max(1, int((high - low).max()))
        return Place(low.clamp(0, length - size), low, high, size)

    def shift(self, by: int) -> Place:
        """Move along the axis."""
        return Place(self.start + by, self.low + by, self.high + by, self.size)


@dataclass(frozen=True, eq=False)
class Window:
    """The windows of B positions on the last two dimensions of a tensor."""

    rows: Place
    cols: Place

    @staticmethod
    def around(boxes: Tensor, size: Sequence[int]) -> Window:
        """Windows that hold boxes (B, 4) of a map of `size` (height, width)."""
        top, left, bottom, right = boxes.unbind(1)
        return Window(Place.around(top, bottom, size[0]), Place.around(left, right, size[1]))

    @staticmethod
    def joined(windows: Sequence[Window], size: Sequence[int]) -> Window:
        """Windows that hold what changed in any of several."""
        if all(window is windows[0] for window in windows):
            return windows[0]
        places = []
        for each, length in zip(([w.rows for w in windows], [w.cols for w in windows]), size, strict=True):
            low, high = torch.stack([p.low for p in each]).amin(0), torch.stack([p.high for p in each]).amax(0)
            places.append(Place.around(low, high, length))
        return Window(*places)

    @property
    def size(self) -> Pair:
        """Height and width."""
        return self.rows.size, self.cols.size

    def covers(self, other: Window) -> bool:
        """Whether the windows are the same pixels, whatever changed in them."""
        if self is other:
            return True
        pairs = ((self.rows, other.rows), (self.cols, other.cols))
        return all(a.size == b.size and torch.equal(a.start, b.start) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor at B occluder positions: (B, …, h, w) at `window`, or whole where that is None."""

    data: Tensor
    window: Window | None = None


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
        maps = self.tape.kept[value]
        base = self._padded(value, maps, borders, pad, part.data.dtype if part is not None else maps.dtype)
        corners = [top, left]
        if part is not None and part.window is not None:
            corners += [part.window.rows.start + borders[2], part.window.cols.start + borders[0]]
        # One small copy; the index itself is built where it is used.
        corner = sent(torch.stack(corners), base.device)
        rows, cols = _lines(corner[0], size[0]), _lines(corner[1], size[1])
        index = rows[:, :, None] * (maps.shape[-1] + borders[0] + borders[1]) + cols[:, None, :]
        if part is not None:
            h, w = part.data.shape[-2:]
            row, col = rows - corner[2, :, None], cols - corner[3, :, None]
            inside = ((row >= 0) & (row < h))[:, :, None] & ((col >= 0) & (col < w))[:, None, :]
            first = len(base) + torch.arange(len(top), device=base.device)[:, None, None] * (h * w)
            index = torch.where(inside, first + row[:, :, None] * w + col[:, None, :], index)
            base = torch.cat([base, _as_rows(part.data)])
        out = base.index_select(0, index.flatten()).view(len(top), *size, -1).permute(0, 3, 1, 2)
        return out if maps.dim() == 4 else out.reshape(len(top), *maps.shape[1:-2], *size)

    def crop(self, constant: Tensor, window: Window, shape: Sequence[int]) -> Tensor:
        """Cut the windows (B, …, h, w) out of a constant that is broadcast over maps of `shape` (1, …, H, W)."""
        if constant.dim() == 0 or constant.shape[-2:].numel() == 1:
            return constant
        wide = constant.reshape(*[1] * (len(shape) - constant.dim()), *constant.shape)
        wide = wide.expand(*wide.shape[:-2], *shape[-2:])
        key = ("constant", id(constant), tuple(shape[-2:]))
        if key not in self._rows:
            self._rows[key] = _as_rows(wide)
        corner = sent(torch.stack([window.rows.start, window.cols.start]), constant.device)
        rows, cols = _lines(corner[0], window.rows.size), _lines(corner[1], window.cols.size)
        index = rows[:, :, None] * shape[-1] + cols[:, None, :]
        out = self._rows[key].index_select(0, index.flatten()).view(len(index), *window.size, -1).permute(0, 3, 1, 2)
        return out.reshape(len(index), *wide.shape[1:-2], *window.size)

    def at(self, value: int, part: Part, window: Window) -> Tensor:
        """Bring a part to another window that holds all that changed in it."""
        assert part.window is not None
        if part.window.covers(window):
            return part.data
        return self.gather(value, part, window.rows.start, window.cols.start, window.size)

    def whole(self, value: int, part: Part) -> Tensor:
        """The whole tensor (B, …) with the changed part in its place."""
        if part.window is None:
            return part.data
        zero = torch.zeros_like(part.window.rows.start)
        height, width = self.tape.shapes[value][-2:]
        return self.gather(value, part, zero, zero, (height, width))

    def _padded(self, value: int, maps: Tensor, borders: Borders, pad: float, dtype: torch.dtype) -> Tensor:
        """The unoccluded map with its border, as rows of channels (pixels, C)."""
        key = (value, borders, pad, dtype)
        if key not in self._rows:
            padded = F.pad(maps, borders, value=pad) if any(borders) else maps
            self._rows[key] = _as_rows(padded).to(dtype)
        return self._rows[key]


def _lines(first: Tensor, size: int) -> Tensor:
    """The lines (B, size) of windows that start at `first` (B,)."""
    return first[:, None] + torch.arange(size, device=first.device)


def _as_rows(maps: Tensor) -> Tensor:
    """(B, …, H, W) as rows of channels (B · H · W, C)."""
    channels = math.prod(maps.shape[1:-2])
    flat = maps if maps.dim() == 4 else maps.reshape(len(maps), channels, *maps.shape[-2:])
    return flat.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
