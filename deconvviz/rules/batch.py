"""Along which dimension the images of a batch lie in each value of a tape; only where they keep apart can be told."""

from __future__ import annotations

import torch

from ..tape.arguments import bound
from ..tape.operations import Op, Slot, Tape

_MOVES = frozenset("permute transpose swapaxes swapdims movedim moveaxis t T mT adjoint".split())


def batch_axes(tape: Tape) -> dict[int, int | None]:
    """Map each value to its dimension of images; None: they were mixed, folded into another one, or can't be told."""
    if not tape.axes:
        tape.axes[0] = 0
        for op in tape.ops:
            if op.whole:  # what it ran has been followed
                continue
            axes = [tape.axes[v] for v in op.inputs]
            for value in op.outputs:
                tape.axes[value] = _followed(op, axes, value, tape)
    return tape.axes


def mixed_values(tape: Tape) -> set[int]:
    """Return the values that hold something of all images of a batch, or of one for all: what takes that dimension away."""
    if tape.mixed is None:
        axes, mixed = batch_axes(tape), set[int]()
        for op in tape.ops:
            apart = tape.shapes[op.inputs[0]]
            one_for_all = (apart[1:], torch.Size((1, *apart[1:])))
            taken = axes[op.inputs[0]] == 0 and apart[0] > 1 and any(tape.shapes[v] in one_for_all for v in op.outputs)
            if taken or not mixed.isdisjoint(op.inputs):
                mixed.update(op.outputs)
        tape.mixed = mixed
    return tape.mixed


def _followed(op: Op, axes: list[int | None], value: int, tape: Tape) -> int | None:
    axis, ins, out = axes[0], tape.shapes[op.inputs[0]], tape.shapes[value]
    if axis is None or any(a != axis for a in axes):
        return _aligned(axes, op, out, tape)
    if op.short in _MOVES:
        return _moved(op, axis, ins)
    if op.short == "stack":
        return axis + (dimension(op, "dim", 1, 0) % len(out) <= axis)
    if op.short in ("sum", "mean"):
        return _reduced(op, axis, len(ins))
    if op.short in ("unbind", "select", "getitem"):
        dropped = _dropped(op, len(ins))
        if dropped is not None:
            return None if dropped == axis else axis - (dropped < axis)
    if op.short == "unsqueeze":
        return axis + (dimension(op, "dim", 1, 0) % len(out) <= axis)
    kept = len(out) > axis and out[axis] == tape.shapes[0][0]
    # Where other dimensions are left as they are, so is the one of the images.
    return axis if kept and (axis == 0 or ins[: axis + 1] == out[: axis + 1]) else None


def _aligned(axes: list[int | None], op: Op, out: torch.Size, tape: Tape) -> int | None:
    """Return the axis of operands that were broadcast against each other, counted from the last dimension."""
    found = {None if a is None else a - len(tape.shapes[v]) for a, v in zip(axes, op.inputs, strict=True)}
    (only,) = found if len(found) == 1 else (None,)
    return None if only is None or op.short not in ("add", "sub", "mul", "div") else only + len(out)


def _moved(op: Op, axis: int, shape: torch.Size) -> int | None:
    """See where a dimension goes by its stride, which no other one has."""
    strides = tuple(1 + i for i in range(len(shape)))
    example = torch.empty_strided(tuple(shape), strides, device="meta")
    moved = op.replay([example])
    return moved.stride().index(strides[axis]) if isinstance(moved, torch.Tensor) else None


def _reduced(op: Op, axis: int, rank: int) -> int | None:
    over = bound(op)["dim"] if len(op.args) > 1 or {"dim", "axis"} & set(op.kwargs) else None
    if over is None:
        return None
    dims = {d % rank for d in ((over,) if isinstance(over, int) else over)}
    if axis in dims or not dims:
        return None
    return axis if bound(op)["keepdim"] else axis - sum(d < axis for d in dims)


def _dropped(op: Op, rank: int) -> int | None:
    """Return the dimension that picking one place takes away; None if another kind of index."""
    if op.short != "getitem":
        return int(dimension(op, "dim", 1, 0)) % rank
    index = op.args[1]
    if isinstance(index, tuple):
        numbers = [i for i, x in enumerate(index) if isinstance(x, int) and not isinstance(x, bool)]
        plain = all(isinstance(x, (int, slice)) for x in index)
        return numbers[0] if plain and len(numbers) == 1 else None
    return 0 if isinstance(index, int) and not isinstance(index, bool) else None


def dimension(op: Op, name: str, place: int, default: int) -> int:
    """Return the dimension that an operation was told, in its place or by its name."""
    given = op.args[place] if len(op.args) > place else op.kwargs.get(name, default)
    return default if isinstance(given, Slot) else int(given)
