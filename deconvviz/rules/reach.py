"""How each kind of operation carries receptive fields forward: (operation, reaches of its inputs, tape) -> reaches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tape.arguments import bound
from ..tape.operations import Op, Tape, tensors_in
from ..tape.receptive_field import Ints, Reach, Span


def same(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Element by element: each position sees what the inputs' positions see together."""
    gate = op.saved.get("gate_slot")
    rank = len(tape.shapes[op.outputs[0]])
    used = [
        _aligned(r, rank - len(tape.shapes[v]))
        for i, (r, v) in enumerate(zip(reaches, op.inputs, strict=True))
        if i != gate
    ]
    if len({r.dims for r in used} - {None}) > 1:  # rows beside columns: nothing can be said
        return nowhere(op, reaches, tape)
    out = used[0]
    for other in used[1:]:
        out = out.union(other)
    return [out] * len(op.outputs)


def _aligned(reach: Reach, more: int) -> Reach:
    # Broadcasting puts new dimensions in front.
    if reach.dims is None or more <= 0:
        return reach
    return Reach(reach.rows, reach.cols, (reach.dims[0] + more, reach.dims[1] + more))


def elementwise(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Element by element, where no constant makes the result larger than the input."""
    grown = tape.shapes[op.outputs[0]] != tape.shapes[op.inputs[0]]
    return (nowhere if grown else same)(op, reaches, tape)


def slide(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Convolutions and pools: a kernel slides over the map."""
    reach, p = reaches[0], bound(op)
    if reach.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    kernel = p["kernel_size"] if "kernel_size" in p else tuple(p["weight"].shape[2:])
    shape, dilation = tape.shapes[op.outputs[0]], p.get("dilation", (1, 1))
    padding = p["padding"]
    if isinstance(padding, str):  # "same" puts the odd pixel at the end, "valid" none at all
        same_size = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
        padding = same_size if padding == "same" else (0, 0)
    rows, cols = (
        span.slide(kernel[i], p["stride"][i], padding[i], dilation[i], shape[-2 + i])
        for i, span in enumerate((reach.rows, reach.cols))
    )
    return [Reach(rows, cols, reach.dims)] * len(op.outputs)


def spread(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A transposed convolution: each position spreads over a kernel."""
    reach, p = reaches[0], bound(op)
    if reach.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    shape, kernel = tape.shapes[op.outputs[0]], p["weight"].shape[2:]

    def along(span: Span, i: int) -> Span:
        stride, padding, dilation = p["stride"][i], p["padding"][i], p["dilation"][i]
        from_tap = np.arange(shape[-2 + i])[:, None] + padding - np.arange(kernel[i]) * dilation
        return span.pick(np.where(from_tap % stride == 0, from_tap // stride, -1))

    return [Reach(along(reach.rows, 0), along(reach.cols, 1), reach.dims)]


def adapt(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Adaptive pools: windows of nearly equal size."""
    reach = reaches[0]
    if reach.dims is None:
        return nowhere(op, reaches, tape)
    height, width = tape.shapes[op.outputs[0]][-2:]
    return [Reach(reach.rows.adapt(height), reach.cols.adapt(width), reach.dims)] * len(op.outputs)


def resample(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Interpolation: run it on one line of ones at a time and see where it goes."""
    reach, shape = reaches[0], tape.shapes[op.inputs[0]]
    if reach.dims != (2, 3) or len(shape) != 4 or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    height, width = shape[2:]
    rows = op.replay([torch.eye(height)[None, :, :, None].expand(1, height, height, width).contiguous()])[0, :, :, 0]
    cols = op.replay([torch.eye(width)[None, :, None, :].expand(1, width, height, width).contiguous()])[0, :, 0, :]
    return [Reach(reach.rows.pick(_sources(rows)), reach.cols.pick(_sources(cols)), (2, 3))]


def _sources(reached: Tensor) -> Ints:
    """Turn (inputs, outputs) weights into the first and last input of each output."""
    seen = reached.numpy() != 0
    return np.stack([seen.argmax(0), len(seen) - 1 - seen[::-1].argmax(0)], 1)


def shuffle(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Channels to space or back: each position becomes a block, or each block a position."""
    reach, outs = reaches[0], tape.shapes[op.outputs[0]]
    ins = tape.shapes[op.inputs[0]]
    if reach.dims is None or reach.dims[1] != len(ins) - 1:
        return nowhere(op, reaches, tape)

    def along(span: Span, before: int, after: int) -> Span:
        if after >= before:
            return span.pick(np.arange(after)[:, None] // (after // before))
        block = before // after
        return span.pick(np.arange(after)[:, None] * block + np.arange(block))

    return [Reach(along(reach.rows, ins[-2], outs[-2]), along(reach.cols, ins[-1], outs[-1]), reach.dims)]


def join(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Concatenation: the union, since one position of the result holds all channels."""
    dims = reaches[0].dims
    axis = bound(op)["dim"] % len(tape.shapes[op.outputs[0]])
    if dims is None or axis in dims or any(r.dims != dims for r in reaches):
        return nowhere(op, reaches, tape)
    return same(op, reaches, tape)


def matrix(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """A matrix on the last dimension: local where rows and columns are other dimensions."""
    dims = reaches[0].dims
    if dims is None or len(tape.shapes[op.inputs[0]]) - 1 in dims:
        return nowhere(op, reaches, tape)
    return same(op, reaches, tape)


def reduce(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Means and sums: local where they run over other dimensions than rows and columns."""
    reach, rank, p = reaches[0], len(tape.shapes[op.inputs[0]]), bound(op)
    given = len(op.args) > 1 or "dim" in op.kwargs or "axis" in op.kwargs
    if reach.dims is None or not given or (not p["dim"] and p["dim"] != 0):
        return nowhere(op, reaches, tape)
    over = {d % rank for d in ((p["dim"],) if isinstance(p["dim"], int) else p["dim"])}
    if over & set(reach.dims):
        return nowhere(op, reaches, tape)
    row, col = (d if p["keepdim"] else d - sum(x < d for x in over) for d in reach.dims)
    return [Reach(reach.rows, reach.cols, (row, col))]


def nowhere(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """No rows and columns any more, or not known: everything sees everything."""
    out = reaches[0].nowhere()
    for other in reaches[1:]:
        out = out.union(other.nowhere())
    return [out] * len(op.outputs)


def border(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Borders: constants see nothing, reflections see what they reflect."""
    reach, p, shape = reaches[0], bound(op), tape.shapes[op.inputs[0]]
    if p["mode"] != "constant":
        return move(op, reaches, tape)
    if reach.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)

    def along(span: Span, dim: int) -> Span:
        place = 2 * (len(shape) - 1 - dim)
        before, after = p["pad"][place : place + 2] if place < len(p["pad"]) else (0, 0)
        return span.take(np.arange(-before, shape[dim] + after))

    return [Reach(along(reach.rows, reach.dims[0]), along(reach.cols, reach.dims[1]), reach.dims)]


def move(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Views, slices, permutations: run the operation on coordinates and see where they went."""
    reach, shape = reaches[0], tape.shapes[op.inputs[0]]
    if reach.dims is None or len(reaches) > 1:
        return nowhere(op, reaches, tape)
    # An index among the arguments is on the model's device.
    device = next((x.device for x in tensors_in((op.args, op.kwargs))), torch.device("cpu"))
    moved = [_outputs(op.replay([_coordinates(shape, dim).to(device)])) for dim in reach.dims]
    return [_moved(reach, rows, cols) for rows, cols in zip(*moved, strict=True)]


def _moved(reach: Reach, rows: Tensor, cols: Tensor) -> Reach:
    row, col = _axis(rows), _axis(cols)
    # One row (or column) is row 0 everywhere: any other dimension of size 1 can stand for it.
    assert reach.dims is not None
    if row is None and len(reach.rows.lo) == 1:
        row = _point(rows, reach.dims[0], None if col is None else col[0])
    if col is None and len(reach.cols.lo) == 1:
        col = _point(cols, reach.dims[1], None if row is None else row[0])
    if row is None or col is None:
        return reach.nowhere()
    return Reach(reach.rows.take(row[1]), reach.cols.take(col[1]), (row[0], col[0]))


def _point(moved: Tensor, dim: int, taken: int | None) -> tuple[int, Ints] | None:
    free = [d for d in range(1, moved.dim()) if moved.shape[d] == 1 and d != taken]
    return (min(free, key=lambda d: (d != dim, -d)), np.zeros(1, np.int64)) if free and moved.dim() > 3 else None


def _coordinates(shape: torch.Size, dim: int) -> Tensor:
    line = torch.arange(shape[dim], dtype=torch.float32)
    return line.view(*[-1 if i == dim else 1 for i in range(len(shape))]).expand(shape).contiguous()


def _axis(moved: Tensor) -> tuple[int, Ints] | None:
    """Return the only dimension along which coordinates vary, and the coordinates along it; None if mixed."""
    if moved.dim() < 3:
        return None
    for i in range(moved.dim()):
        others = [j for j in range(moved.dim()) if j != i]
        low, high = moved.amin(others), moved.amax(others)
        if (low == high).all() and len(high) > 1 and not bool((high == high[0]).all()):
            return i, high.long().numpy().astype(np.int64)
    return None


def _outputs(result: object) -> list[Tensor]:
    return [x.cpu() for x in tensors_in(result)]
