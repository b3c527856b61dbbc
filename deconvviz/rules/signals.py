"""What travels back: signals on windows, many pieces of the same size, each cut from its own place of its own map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import sent
from ..tape.operations import Op, Tape


def crop(maps: Tensor, which: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cut B windows out of maps (N, C, H, W); what lies outside a map repeats its border, see `clear`.

    `which`, `top`, `left` are (B,) integers on the CPU: map number and upper left corner. Returns
    (B, C, height, width) in channels_last memory, where a window's rows are contiguous runs.
    """
    # The index is built where the maps are: a few numbers per window travel, not one per pixel.
    which, top, left = sent(torch.stack([which, top, left]), maps.device).unbind()
    rows = (top[:, None] + torch.arange(height, device=maps.device)).clamp_(0, maps.shape[2] - 1)
    cols = (left[:, None] + torch.arange(width, device=maps.device)).clamp_(0, maps.shape[3] - 1)
    index = (which[:, None] * maps.shape[2] + rows)[:, :, None] * maps.shape[3] + cols[:, None, :]
    flat = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    out = flat.index_select(0, index.flatten())
    return out.view(len(which), height, width, maps.shape[1]).permute(0, 3, 1, 2)


def clear(windows: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Set to zero, in place, what windows (B, C, h, w) at `top`, `left` hold outside a map of `height` by `width`."""
    h, w = windows.shape[-2:]
    outside = (top < 0) | (left < 0) | (top + h > height) | (left + w > width)
    if windows.device.type != "cpu" and outside.any():  # one kernel, however many windows
        rows = _beyond(sent(top, windows.device), h, height)
        cols = _beyond(sent(left, windows.device), w, width)
        return windows.masked_fill_((rows[:, :, None] | cols[:, None, :])[:, None], 0)
    # Few windows reach over an edge, and then by a strip: cheaper one by one than as a mask over everything.
    for i in outside.nonzero().flatten().tolist():
        window, y, x = windows[i], int(top[i]), int(left[i])
        if y < 0:
            window[:, :-y] = 0
        if y + h > height:
            window[:, max(0, height - y) :] = 0
        if x < 0:
            window[:, :, :-x] = 0
        if x + w > width:
            window[:, :, max(0, width - x) :] = 0
    return windows


def _beyond(start: Tensor, size: int, length: int) -> Tensor:
    """Say which places of windows of `size` at `start` (B,) are outside a map of `length`: (B, size)."""
    places = start[:, None] + torch.arange(size, device=start.device)
    return (places < 0) | (places >= length)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the windows of a signal start, (row, column): item i's at `stride * position_i + offset`."""

    stride: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Signal:
    """What is carried back: one item per projection.

    `data` is (B, C, h, w) on windows, or (B, ...) on whole tensors when `grid` is None. `unit` (B,) says that an item
    is zero but for one channel, which spares the first convolution nearly all of its work.
    """

    data: Tensor
    grid: Grid | None = None
    unit: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Items:
    """Which projections travel together: image number in the batch (B,), position (B, 2), all on the CPU."""

    images: Tensor
    positions: Tensor

    def corners(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Top and left (B,) of each item's window."""
        top = self.positions[:, 0] * grid.stride[0] + grid.offset[0]
        return top, self.positions[:, 1] * grid.stride[1] + grid.offset[1]

    def part(self, maps: Tensor, signal: Signal) -> Tensor:
        """Cut from saved maps (N, ...) what belongs under each item of `signal`."""
        if signal.grid is None or maps.shape[-2:] == (1, 1):
            return maps[sent(self.images, maps.device)]
        return crop(maps, self.images, *self.corners(signal.grid), *signal.data.shape[-2:])

    def trimmed(self, signal: Signal, shape: torch.Size, *, clean: bool = False) -> Signal:
        """Cut off and clear what fresh windows hold outside the map; whole maps once they are as large.

        `clean` says that there is nothing to clear.
        """
        assert signal.grid is not None
        height, width = shape[-2:]
        signal = self._narrowed(signal, height, width)
        assert signal.grid is not None
        if signal.data.shape[-2:].numel() >= height * width:
            return self.whole(signal, shape)
        if clean:
            return signal
        return Signal(clear(signal.data, *self.corners(signal.grid), height, width), signal.grid)

    def _narrowed(self, signal: Signal, height: int, width: int) -> Signal:
        """Drop the rows and columns that are outside a map of `height` by `width` for every item."""
        assert signal.grid is not None
        (top, left), (h, w) = self.corners(signal.grid), signal.data.shape[-2:]
        rows, cols = _inside(top, h, height), _inside(left, w, width)
        if rows == (0, h) and cols == (0, w):
            return signal
        data = signal.data[:, :, rows[0] : rows[1], cols[0] : cols[1]]
        offset = signal.grid.offset[0] + rows[0], signal.grid.offset[1] + cols[0]
        return Signal(data, Grid(signal.grid.stride, offset))

    def whole(self, signal: Signal, shape: torch.Size) -> Signal:
        """Place windows on whole maps of `shape` (N, C, H, W)."""
        if signal.grid is None:
            return signal
        (top, left), (h, w) = self.corners(signal.grid), signal.data.shape[-2:]
        data = crop(signal.data, torch.arange(len(top)), -top, -left, *shape[-2:])
        return Signal(clear(data, -top, -left, h, w))

    def sum(self, a: Signal, b: Signal, shape: torch.Size) -> Signal:
        """Add two signals for the same tensor, on the union of their windows."""
        if a.grid is None or b.grid is None or a.grid.stride != b.grid.stride:
            return Signal(self.whole(a, shape).data + self.whole(b, shape).data)
        low = [min(x, y) for x, y in zip(a.grid.offset, b.grid.offset, strict=True)]
        end = [
            max(x + m, y + n)
            for x, m, y, n in zip(a.grid.offset, a.data.shape[-2:], b.grid.offset, b.data.shape[-2:], strict=True)
        ]
        total = _widen(a, low, end) + _widen(b, low, end)
        return Signal(total, Grid(a.grid.stride, (low[0], low[1])))


def _inside(start: Tensor, size: int, length: int) -> tuple[int, int]:
    """Return which part of windows of `size` at `start` (B,) touches a map of `length` for any item; never nothing."""
    low = min(max(0, -int(start.max())), size - 1)
    return low, max(low + 1, min(size, length - int(start.min())))


def _widen(signal: Signal, low: list[int], end: list[int]) -> Tensor:
    assert signal.grid is not None
    (row, col), (h, w) = signal.grid.offset, signal.data.shape[-2:]
    margins = (col - low[1], end[1] - col - w, row - low[0], end[0] - row - h)
    return F.pad(signal.data, margins) if any(margins) else signal.data


@dataclass(frozen=True, eq=False)
class Walk:
    """One way back through a tape: the items that travel, and what the rectifiers do: "deconvnet", "guided", "backprop"."""

    tape: Tape
    items: Items
    rectifier: str = "deconvnet"


Signals = list[Signal | None]
# The form of every rule: (operation, signals at its results, the walk they are on) -> signals at its inputs.
Back = Callable[[Op, Signals, Walk], Signals]


def present(signals: Signals) -> list[Signal]:
    """Return the signals that there are."""
    return [s for s in signals if s is not None]
