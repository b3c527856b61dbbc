"""How each kind of operation carries receptive fields forward: (operation, reaches of its inputs, tape) -> reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tape.arguments import bound
from ..tape.operations import Op, Slot, Tape, tensors_in
from ..tape.receptive_field import Ints, Reach, Span
from .batch import dimension


def same(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Element by element: each position sees what the inputs' positions see together."""
    shape = tape.shapes[op.outputs[0]]
    used = [
        _aligned(r, len(shape) - len(tape.shapes[v]))
        for i, (r, v) in enumerate(zip(reaches, op.inputs, strict=True))
        if i != op.saved.gate_slot
    ]
    return [_together(used, shape)] * len(op.outputs)


def _aligned(reach: Reach, more: int) -> Reach:
    # Broadcasting puts new dimensions in front.
    if reach.dims is None or more <= 0:
        return reach
    return replace(reach, dims=(reach.dims[0] + more, reach.dims[1] + more))


def _together(used: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """Join reaches of tensors that were broadcast to `shape`."""
    out = _leading(used, shape)
    for other in used:
        if other is not out:
            aligned = out.dims == other.dims and not _lengths_differ(out, other)
            out = out.union(other if aligned else other.nowhere())
    return out


def _leading(used: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """Return the reach that says where rows and columns are, where several disagree."""
    known = [r for r in used if r.dims is not None]
    # Of a single position any dimension of size 1 may be called its rows: it says nothing about those that have more.
    several = [r for r in known if not _is_point(r)]
    if several:
        known = several
    elif known and any(shape[d] != 1 for r in known for d in r.dims or ()):
        return used[0].nowhere()
    if len({r.dims for r in known}) <= 1:
        return (known or used)[0]
    own = [r for r in known if not r.sized]
    if len({r.dims for r in own}) == 1:  # positions that were followed from the images on
        return own[0]
    if len({frozenset(r.dims or ()) for r in known}) == 1:  # rows beside columns: positions that may see anything
        row, col = known[0].dims or (0, 0)
        return known[0].everywhere((row, col), shape[row], shape[col])
    return used[0].nowhere()


def _is_point(reach: Reach) -> bool:
    return len(reach.rows.lo) == len(reach.cols.lo) == 1


def _lengths_differ(a: Reach, b: Reach) -> bool:
    pairs = ((len(a.rows.lo), len(b.rows.lo)), (len(a.cols.lo), len(b.cols.lo)))
    return any(m != n and 1 not in (m, n) for m, n in pairs)


def normalize(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Element by element; these normalizations know dimension 1 as channels, and so the others as positions."""
    if reaches[0].dims is None and len(tape.shapes[op.outputs[0]]) == 4 and op.short not in ("layer_norm", "rms_norm"):
        return _on_maps(op, reaches, tape)
    return same(op, reaches, tape)


def statistics(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A normalization with its statistics: each position sees what they are taken over."""
    dims, rank = reaches[0].dims, len(tape.shapes[op.inputs[0]])
    if op.short in ("batch_norm", "local_response_norm"):
        return normalize(op, reaches, tape)
    if op.short in ("layer_norm", "rms_norm") and dims is not None:
        over = range(rank - len(bound(op)["normalized_shape"]), rank)
        return (mixed if set(over) & set(dims) else same)(op, reaches, tape)
    return mixed(op, reaches, tape)


def elementwise(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Element by element, where no constant makes the result larger than the input."""
    grown = tape.shapes[op.outputs[0]] != tape.shapes[op.inputs[0]]
    return (mixed if grown else same)(op, reaches, tape)


def _on_maps(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Maps (N, C, H, W) whose positions see everything: what a convolution makes of a tensor that can't be told."""
    shape = tape.shapes[op.outputs[0]]
    out = reaches[0]
    for other in reaches[1:]:
        out = out.nowhere().union(other.nowhere())
    if len(shape) != 4:
        return [out.nowhere()] * len(op.outputs)
    return [out.everywhere((2, 3), shape[2], shape[3])] * len(op.outputs)


def _along(op: Op, reaches: list[Reach], tape: Tape, change: Callable[[Span, int], Span]) -> list[Reach] | None:
    """Change the spans of rows and columns by `change(span, axis)`, where axis 0 is a tensor's last dimension but one.

    Rows may lie along the last. None: they, or the columns, lie along no such dimension.
    """
    reach, rank = reaches[0], len(tape.shapes[op.inputs[0]])
    if len(reaches) > 1 or reach.dims is None or {d - rank for d in reach.dims} != {-2, -1}:
        return None
    rows, cols = (change(span, d - rank + 2) for span, d in zip((reach.rows, reach.cols), reach.dims, strict=True))
    return [Reach(rows, cols, reach.dims, reach.sized)] * len(op.outputs)


def slide(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Convolutions and pools: a kernel slides over the map."""
    p = bound(op)
    kernel = p["kernel_size"] if "kernel_size" in p else tuple(p["weight"].shape[2:])
    ins, outs, dilation, padding = (
        tape.shapes[op.inputs[0]],
        tape.shapes[op.outputs[0]],
        p.get("dilation"),
        p["padding"],
    )
    dilation = dilation or (1, 1)
    if isinstance(padding, str):  # "same" puts the odd pixel at the end, "valid" none at all
        same_size = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
        padding = same_size if padding == "same" else (0, 0)

    def along(span: Span, axis: int) -> Span:
        return span.slide(kernel[axis], p["stride"][axis], padding[axis], dilation[axis], outs[axis - 2])

    found = _along(op, reaches, tape, along) or _on_maps(op, reaches, tape)
    covers = "pool" in op.short and outs[-2:] == (1, 1) and kernel[0] >= ins[-2] and kernel[1] >= ins[-1]
    # A pool over the whole map: at this size, or at any? Large ones, and those given as the map's size, are at any.
    if covers and (max(kernel) > 3 or any(isinstance(x, torch.Size) for x in (*op.args[1:], *op.kwargs.values()))):
        return [replace(r, sized=True) for r in found]
    return found


def spread(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A transposed convolution: each position spreads over a kernel."""
    p, shape = bound(op), tape.shapes[op.outputs[0]]
    kernel = p["weight"].shape[2:]

    def along(span: Span, i: int) -> Span:
        stride, padding, dilation = p["stride"][i], p["padding"][i], p["dilation"][i]
        from_tap = np.arange(shape[i - 2])[:, None] + padding - np.arange(kernel[i]) * dilation
        taken = span.pick(np.where(from_tap % stride == 0, from_tap // stride, -1))
        return replace(taken, stride=max(1, span.stride // stride))

    return _along(op, reaches, tape, along) or _on_maps(op, reaches, tape)


def adapt(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Adaptive pools: windows of nearly equal size."""
    shape = tape.shapes[op.outputs[0]]
    found = _along(op, reaches, tape, lambda span, axis: span.adapt(shape[axis - 2])) or _on_maps(op, reaches, tape)
    return [replace(r, sized=True) for r in found]


def regions(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Regions of interest: where each lies is not followed, its positions may see everything."""
    return _on_maps(op, reaches, tape)


def resample(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Interpolation: run it on one line of ones at a time and see where it goes."""
    shape = tape.shapes[op.inputs[0]]
    if len(shape) != 4:
        return nowhere(op, reaches, tape)
    height, width = shape[2:]
    factor = op.kwargs.get("scale_factor") or (op.args[2] if len(op.args) > 2 else None)

    def along(span: Span, axis: int) -> Span:
        line = torch.eye(shape[axis + 2])
        line = line[None, :, :, None] if axis == 0 else line[None, :, None, :]
        reached = op.replay([line.expand(1, len(line[0]), height, width).contiguous()])[0]
        taken = span.pick(_sources(reached[:, :, 0] if axis == 0 else reached[:, 0, :]))
        if factor is None:
            return taken
        each = factor[axis] if isinstance(factor, (tuple, list)) else factor
        return replace(taken, stride=max(1, round(span.stride / each)))

    found = _along(op, reaches, tape, along) or _on_maps(op, reaches, tape)
    return [replace(r, sized=r.sized or factor is None) for r in found]


def _sources(reached: Tensor) -> Ints:
    """Turn (inputs, outputs) weights into all inputs of each output (outputs, most), filled up with -1."""
    seen = reached.numpy().T != 0
    order = np.argsort(~seen, axis=1, kind="stable")[:, : max(1, int(seen.sum(1).max()))]
    return np.where(np.take_along_axis(seen, order, 1), order, -1)


def shuffle(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Channels to space or back: each position becomes a block, or each block a position."""
    ins, outs = tape.shapes[op.inputs[0]], tape.shapes[op.outputs[0]]

    def along(span: Span, axis: int) -> Span:
        before, after = ins[axis - 2], outs[axis - 2]
        if after >= before:
            return span.pick(np.arange(after)[:, None] // (after // before))
        block = before // after
        return span.pick(np.arange(after)[:, None] * block + np.arange(block))

    return _along(op, reaches, tape, along) or _on_maps(op, reaches, tape)


def join(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Concatenation: the union, since one position of the result holds all channels."""
    shape = tape.shapes[op.outputs[0]]
    axis = bound(op)["dim"] % len(shape)
    out = _together(reaches, shape)
    if out.dims is None or axis not in out.dims:
        return [out] * len(op.outputs)
    row, col = out.dims  # side by side, such as a class token before the others
    return [out.everywhere(out.dims, 1 if row == col else shape[row], shape[col])] * len(op.outputs)


def matrix(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A matrix on the last dimension: local where rows and columns are other dimensions."""
    dims = reaches[0].dims
    if dims is None or len(tape.shapes[op.inputs[0]]) - 1 in dims:
        return nowhere(op, reaches, tape)
    return same(op, reaches, tape)


def product(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A product with a constant matrix from the right is one on the last dimension."""
    constant = op.args[1] if len(op.args) > 1 else op.kwargs.get("other", op.kwargs.get("mat2"))
    plain = isinstance(op.args[0] if op.args else None, Slot) and isinstance(constant, Tensor) and constant.dim() == 2
    return (matrix if plain else nowhere)(op, reaches, tape)


def reduce(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Means and sums: local where they run over other dimensions than rows and columns."""
    reach, rank, p = reaches[0], len(tape.shapes[op.inputs[0]]), bound(op)
    given = len(op.args) > 1 or "dim" in op.kwargs or "axis" in op.kwargs
    if reach.dims is None or not given or (not p["dim"] and p["dim"] != 0):
        return nowhere(op, reaches, tape)
    over = {d % rank for d in ((p["dim"],) if isinstance(p["dim"], int) else p["dim"])}
    row, col = reach.dims
    if p["keepdim"]:
        rows = reach.rows.whole(1) if row in over else reach.rows
        cols = reach.cols.whole(1) if col in over else reach.cols
        return [Reach(rows, cols, reach.dims, reach.sized or bool(over & {row, col}))]
    if over >= {row, col}:
        return nowhere(op, reaches, tape)
    new_row, new_col = (d - sum(x < d for x in over) for d in (row, col))
    if row in over:
        return [Reach(reach.rows.whole(1), reach.cols, (new_col, new_col), True)]
    if col in over:
        return [Reach(reach.rows, reach.cols.whole(1), (new_row, new_row), True)]
    return [replace(reach, dims=(new_row, new_col))]


def mixed(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Anything may see anything; a result like the first input has its positions where that has them."""
    found = nowhere(op, reaches, tape)
    dims, shape = reaches[0].dims, tape.shapes[op.inputs[0]]
    if dims is None:
        return found
    like = found[0].everywhere(dims, len(reaches[0].rows.lo), len(reaches[0].cols.lo))
    return [like if tape.shapes[v] == shape else r for v, r in zip(op.outputs, found, strict=True)]


def nowhere(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """No rows and columns any more, or not known: everything sees everything."""
    out = reaches[0].nowhere()
    for other in reaches[1:]:
        out = out.union(other.nowhere())
    return [out] * len(op.outputs)


def stack(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Put maps one beside another along a new dimension."""
    shape, rank = tape.shapes[op.inputs[0]], len(tape.shapes[op.outputs[0]])
    out, axis = _together(reaches, shape), dimension(op, "dim", 1, 0) % rank
    if out.dims is None:
        return nowhere(op, reaches, tape)
    row, col = out.dims
    return [replace(out, dims=(row + (row >= axis), col + (col >= axis)))]


def border(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Borders: constants see nothing, reflections see what they reflect."""
    reach, p, shape = reaches[0], bound(op), tape.shapes[op.inputs[0]]
    if p["mode"] != "constant":
        return move(op, reaches, tape)
    if reach.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    if reach.dims[0] == reach.dims[1]:
        return [reach]  # held to the new length afterwards

    def along(span: Span, dim: int) -> Span:
        place = 2 * (len(shape) - 1 - dim)
        before, after = p["pad"][place : place + 2] if place < len(p["pad"]) else (0, 0)
        return span.take(np.arange(-before, shape[dim] + after))

    return [replace(reach, rows=along(reach.rows, reach.dims[0]), cols=along(reach.cols, reach.dims[1]))]


def move(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Views, slices, permutations: run the operation on coordinates and see where they went."""
    reach, views = reaches[0], [Viewed(op)]
    start, shape = reach, tape.shapes[op.inputs[0]]
    if reach.lost is not None:  # views that took rows or columns apart: with this one they may be together again
        start, shape, before = reach.lost
        views = [*before, *views]
    if start.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    try:
        moved = [_replayed(views, c) for c in _coordinates(start, shape)]
    except (RuntimeError, IndexError, ValueError):
        if len(views) == 1:
            raise
        return nowhere(op, reaches, tape)  # something between them was no view: it was broadcast
    found = []
    for number, each in enumerate(zip(*moved, strict=True)):
        one = _moved(start, *each)
        if one.dims is None:
            one = _merged(start, *each[:2]) or replace(one, lost=(start, shape, (*views[:-1], Viewed(op, number))))
        found.append(one)
    return found


class Viewed(NamedTuple):
    """A view that ran, and which of its results was taken."""

    op: Op
    number: int = 0


def _merged(reach: Reach, rows: Tensor, cols: Tensor) -> Reach | None:
    """Return the reach of maps whose positions are blocks of others, as where patches are merged into features."""
    row, col = (_blocks(x, len(span.lo)) for x, span in ((rows, reach.rows), (cols, reach.cols)))
    if row is None or col is None or row[0] == col[0]:
        return None
    return replace(reach, rows=reach.rows.pick(row[1]), cols=reach.cols.pick(col[1]), dims=(row[0], col[0]))


def _blocks(moved: Tensor, length: int) -> tuple[int, Ints] | None:
    """Return the dimension along which coordinates come in blocks of one size, one after the other, and the blocks."""
    for i in range(1, moved.dim()):
        others = [j for j in range(moved.dim()) if j != i]
        low, count = moved.amin(others), moved.shape[i]
        if count < 2 or length % count:
            continue
        size = length // count
        first = torch.arange(count).double() * size
        if torch.equal(low, first) and torch.equal(moved.amax(others), first + size - 1):
            return i, (first[:, None].long() + torch.arange(size)).numpy()
    return None


def _coordinates(reach: Reach, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Each element's row, its column, and the number of its place along all other dimensions."""
    assert reach.dims is not None
    row, col = reach.dims
    line = torch.arange(shape[row])
    rows, cols = (
        (line // len(reach.cols.lo), line % len(reach.cols.lo)) if row == col else (line, torch.arange(shape[col]))
    )
    others = [d for d in range(len(shape)) if d not in reach.dims]
    rest = torch.arange(int(np.prod([shape[d] for d in others])))
    full = [1 if d in reach.dims else n for d, n in enumerate(shape)]
    return _laid(rows, row, shape), _laid(cols, col, shape), rest.view(full).expand(shape).double().contiguous()


def _laid(line: Tensor, dim: int, shape: torch.Size) -> Tensor:
    return line.double().view(*[-1 if i == dim else 1 for i in range(len(shape))]).expand(shape).contiguous()


def _replayed(views: Sequence[Viewed], coordinates: Tensor) -> list[Tensor]:
    """Run views one after the other; return all that the last gives."""
    results = [coordinates]
    taken = 0
    for op, number in views:
        # An index among the arguments is on the model's device.
        device = next((x.device for x in tensors_in((op.args, op.kwargs))), torch.device("cpu"))
        results = [x.cpu() for x in tensors_in(op.replay([results[taken].to(device)]))]
        taken = number
    return results


def _moved(reach: Reach, rows: Tensor, cols: Tensor, rest: Tensor) -> Reach:
    assert reach.dims is not None
    row, col = (_axis(x, rest) for x in (rows, cols))
    # One row (or column) is row 0 everywhere: any other dimension of size 1 can stand for it.
    if row is None and len(reach.rows.lo) == 1:
        row = _point(rows, reach.dims[0], None if col is None else col[0])
    if col is None and len(reach.cols.lo) == 1:
        col = _point(cols, reach.dims[1], None if row is None else row[0])
    if row is None and col is None:
        return reach.nowhere()
    if row is None or col is None:  # one of the two went into the channels
        axis, taken = row or col or (0, np.zeros(1, np.int64))
        if col is None:
            return Reach(reach.rows.take(taken), reach.cols.whole(1), (axis, axis), True)
        alone = len(reach.rows.lo) == 1
        return Reach(reach.rows.whole(1), reach.cols.take(taken), (axis, axis), reach.sized or not alone)
    if row[0] != col[0]:
        return replace(reach, rows=reach.rows.take(row[1]), cols=reach.cols.take(col[1]), dims=(row[0], col[0]))
    width = _width(row[1], col[1])
    if width is None:
        return reach.everywhere((row[0], row[0]), 1, len(row[1]))
    return replace(
        reach, rows=reach.rows.take(row[1][::width]), cols=reach.cols.take(col[1][:width]), dims=(row[0], row[0])
    )


def _width(rows: Ints, cols: Ints) -> int | None:
    """Return how many columns each row has where both lie along one dimension, row by row; None if they do not."""
    changes = np.flatnonzero(rows != rows[0])
    width = int(changes[0]) if len(changes) else len(rows)
    if len(rows) % width:
        return None
    rows, cols = rows.reshape(-1, width), cols.reshape(-1, width)
    return width if (rows == rows[:, :1]).all() and (cols == cols[:1]).all() else None


def _point(moved: Tensor, dim: int, taken: int | None) -> tuple[int, Ints] | None:
    free = [d for d in range(1, moved.dim()) if moved.shape[d] == 1 and d != taken]
    return (min(free, key=lambda d: (d != dim, -d)), np.zeros(1, np.int64)) if free and moved.dim() > 3 else None


def _axis(moved: Tensor, rest: Tensor) -> tuple[int, Ints] | None:
    """Return the only dimension along which coordinates vary, and they alone, and the coordinates; None if mixed."""
    if moved.dim() < 3:
        return None
    for i in range(moved.dim()):
        others = [j for j in range(moved.dim()) if j != i]
        low, high = moved.amin(others), moved.amax(others)
        if (low == high).all() and len(high) > 1 and not bool((high == high[0]).all()):
            pure = bool((rest.amin(i) == rest.amax(i)).all())
            return (i, high.long().numpy().astype(np.int64)) if pure else None
    return None


def stays(op: Op, tape: Tape) -> bool:
    """Whether a view leaves the last two dimensions as they are."""
    shape = tape.shapes[op.inputs[0]]
    if any(tape.shapes[v][:1] != shape[:1] for v in op.outputs):
        return False
    for dim in (len(shape) - 2, len(shape) - 1):
        line = torch.arange(shape[dim])
        for x in _replayed([Viewed(op)], _laid(line, dim, shape)):
            place = x.dim() - len(shape) + dim
            if place < 1 or x.shape[place] != shape[dim] or not torch.equal(x, _laid(line, place, x.shape)):
                return False
    return True
