"""Receptive fields: which input rows and columns each position of a map can see. Pure integers, one axis at a time.

Two descriptions travel together. `lo` and `hi` are exact, position by position, clipped wherever a map ends on the
way. `stride`, `offset` and `size` are the arithmetic of the papers, as if the image had no border: position p sees
[stride * p + offset, stride * p + offset + size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Span:
    """What each of the n positions along one axis sees of the input's axis: [lo, hi), empty where lo >= hi."""

    lo: Ints
    hi: Ints
    stride: int
    offset: int
    size: int

    @staticmethod
    def of_input(length: int) -> Span:
        """Each pixel sees itself."""
        index = np.arange(length)
        return Span(index, index + 1, 1, 0, 1)

    def slide(self, kernel: int, stride: int, padding: int, dilation: int, count: int) -> Span:
        """Positions of a map that a kernel of `kernel` taps makes from this one, `count` of them."""
        taps = np.arange(count)[:, None] * stride - padding + np.arange(kernel) * dilation
        return Span(
            *self._over(taps),
            self.stride * stride,
            self.offset - padding * self.stride,
            self.size + (kernel - 1) * dilation * self.stride,
        )

    def take(self, index: Ints) -> Span:
        """Positions picked from this axis by number; a number outside the axis picks nothing."""
        inside = index[(index >= 0) & (index < len(self.lo))]
        step = max(1, abs(int(inside[1] - inside[0]))) if len(inside) > 1 else 1
        first = int(inside[0]) - step * int(np.argmax(index == inside[0])) if len(inside) else 0
        lo, hi = self._over(index[:, None])
        return Span(lo, hi, self.stride * step, self.offset + first * self.stride, self.size)

    def pick(self, taps: Ints) -> Span:
        """Positions that each see several numbers of this axis (positions, taps), such as interpolated ones."""
        lo, hi = self._over(taps)
        step = max(1, round(self.stride * len(self.lo) / len(taps)))
        middle = len(taps) // 2
        return Span(lo, hi, step, int(lo[middle]) - step * middle, max(1, int(np.max(hi - lo))))

    def adapt(self, count: int) -> Span:
        """Positions of an adaptive pool with `count` outputs, windows as PyTorch cuts them."""
        n = len(self.lo)
        if count == n:
            return self
        starts = [i * n // count for i in range(count)]
        ends = [-(-(i + 1) * n // count) for i in range(count)]
        width = max(end - start for start, end in zip(starts, ends, strict=True))
        taps = np.array(
            [[min(start + j, end - 1) for j in range(width)] for start, end in zip(starts, ends, strict=True)]
        )
        step = max(1, n // count)
        return Span(*self._over(taps), self.stride * step, self.offset, self.size + (width - 1) * self.stride)

    def union(self, other: Span) -> Span:
        """Positions that see what either sees; the two axes have the same number of positions, or one has 1."""
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.size, other.offset + other.size)
        return Span(
            np.minimum(self.lo, other.lo),
            np.maximum(self.hi, other.hi),
            max((self, other), key=lambda span: (len(span.lo), span.stride)).stride,
            offset,
            end - offset,
        )

    def inner(self) -> slice:
        """Return the positions that see most: the longest run of those whose field no end of the input cuts."""
        seen = self.hi - self.lo
        ends = np.flatnonzero(np.diff(np.pad(seen == seen.max(), 1).astype(np.int64)))
        longest = int(np.argmax(ends[1::2] - ends[::2]))
        return slice(int(ends[2 * longest]), int(ends[2 * longest + 1]))

    def whole(self, count: int) -> Span:
        """`count` positions, each of which sees all that this axis sees together."""
        lo, hi = int(self.lo.min()), int(self.hi.max())
        lo = min(lo, hi)  # no position may see anything
        return Span(np.full(count, lo), np.full(count, hi), max(1, hi - lo), lo, hi - lo)

    def widest(self) -> int:
        """The most pixels that one position sees."""
        return max(1, int(np.max(self.hi - self.lo)))

    def _over(self, taps: Ints) -> tuple[Ints, Ints]:
        """Join what the taps (positions, taps) see; taps outside the map see nothing."""
        n = len(self.lo)
        inside = (taps >= 0) & (taps < n)
        index = taps.clip(0, n - 1)
        lo = np.where(inside, self.lo[index], np.iinfo(np.int64).max // 2).min(1)
        hi = np.where(inside, self.hi[index], 0).max(1)
        return lo, hi


@dataclass(frozen=True, eq=False)
class Reach:
    """What a tensor's positions see: position (row, col) sees what `rows` and `cols` say.

    `dims` are the tensor's dimensions of rows and of columns: (3, 2) after they changed places. The same dimension
    twice: both lie along it, row by row, as after `flatten(2)`. None: neither is anywhere, or it can't be told.
    `sized`: the strides depend on the image's size, as behind an adaptive pool; they are not the network's own.
    `lost`: (the reach where rows and columns were last told, the shape there, the views since), where only views came
    since.
    """

    rows: Span
    cols: Span
    dims: tuple[int, int] | None
    sized: bool = False
    lost: Any = None

    def boxes(self, positions: NDArray[np.int64]) -> Ints:
        """Boxes (..., 4) as (top, left, bottom, right) of positions (..., 2), clipped to the image."""
        row, col = positions[..., 0], positions[..., 1]
        box = np.stack([self.rows.lo[row], self.cols.lo[col], self.rows.hi[row], self.cols.hi[col]], -1)
        empty = (box[..., :2] >= box[..., 2:]).any(-1, keepdims=True)
        return np.where(empty, 0, box)

    def interior(self) -> tuple[slice, slice]:
        """Return the rows and columns of the positions whose field lies inside the image, or most of it does."""
        return self.rows.inner(), self.cols.inner()

    def union(self, other: Reach) -> Reach:
        """Join two inputs of one operation that have the same dimensions of rows and columns, or none."""
        if self.dims is None or other.dims is None:
            flat, full = (self, other) if self.dims is None else (other, self)
            return replace(full, rows=full.rows.union(flat.rows.whole(1)), cols=full.cols.union(flat.cols.whole(1)))
        # Both are one grid: its strides are the network's own if either says so.
        grid = max((self, other), key=lambda r: (len(r.rows.lo) * len(r.cols.lo), not r.sized))
        rows = replace(self.rows.union(other.rows), stride=grid.rows.stride)
        cols = replace(self.cols.union(other.cols), stride=grid.cols.stride)
        return Reach(rows, cols, self.dims, grid.sized)

    def everywhere(self, dims: tuple[int, int] | None, rows: int, cols: int) -> Reach:
        """Positions along `dims` that each see all there is."""
        return Reach(self.rows.whole(rows), self.cols.whole(cols), dims, True)

    def nowhere(self) -> Reach:
        """A tensor without rows and columns, or whose cannot be told: every element sees all there is."""
        return self.everywhere(None, 1, 1)

    def fitted(self, shape: Sequence[int]) -> Reach:
        """Hold to a tensor's shape: along a dimension that has another length than was worked out, all see all."""
        if self.dims is None or max(self.dims) >= len(shape):
            return self if self.dims is None else self.nowhere()
        row, col = self.dims
        if row == col:
            fits = shape[row] == len(self.rows.lo) * len(self.cols.lo)
            return self if fits else self.everywhere(self.dims, 1, shape[row])
        rows = self.rows if shape[row] == len(self.rows.lo) else self.rows.whole(shape[row])
        cols = self.cols if shape[col] == len(self.cols.lo) else self.cols.whole(shape[col])
        return self if rows is self.rows and cols is self.cols else Reach(rows, cols, self.dims, True)

    def field(self) -> tuple[int, int]:
        """Height and width that the papers' arithmetic gives; of what has no rows and columns, all that it sees."""
        if self.dims is None:
            return self.rows.widest(), self.cols.widest()
        return self.rows.size, self.cols.size

    def window(self) -> tuple[int, int]:
        """Height and width of the largest box."""
        return self.rows.widest(), self.cols.widest()

    def frame_shift(self, positions: NDArray[np.int64]) -> Ints:
        """Where boxes (..., 2: down, right) lie in a frame of the largest box's size.

        A box cut at the top or left is shifted, so that the frame is empty on the side that the image lacks.
        """
        height, width = self.window()
        boxes = self.boxes(positions)
        down = boxes[..., 0] - (self.rows.stride * positions[..., 0] + self.rows.offset)
        right = boxes[..., 1] - (self.cols.stride * positions[..., 1] + self.cols.offset)
        room = np.stack([height - (boxes[..., 2] - boxes[..., 0]), width - (boxes[..., 3] - boxes[..., 1])], -1)
        return np.clip(np.stack([down, right], -1), 0, room)
