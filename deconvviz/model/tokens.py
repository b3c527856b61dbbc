"""Where a transformer's tokens are: which lie on a grid of rows and columns, and which stand apart, as a class token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.kinds import Kind
from ..rules.table import kind_of
from ..tape.arguments import bound
from ..tape.operations import Op, Tape, tensors_in
from ..tape.receptive_field import Reach

_APART = -1  # the place of a token that lies on no grid


@dataclass(frozen=True)
class Grid:
    """`rows` × `cols` tokens, row by row, after `before` and before `after` others along the same dimension."""

    rows: int
    cols: int
    before: int
    after: int

    @property
    def total(self) -> int:
        """How many tokens there are."""
        return self.before + self.rows * self.cols + self.after


@dataclass(frozen=True)
class _Places:
    """Each token's place on a grid of `cols` columns, or `_APART`."""

    of: NDArray[np.int64]
    rows: int
    cols: int

    def like(self, other: _Places) -> bool:
        return (self.rows, self.cols) == (other.rows, other.cols) and np.array_equal(self.of, other.of)

    def grid(self) -> Grid | None:
        """The grid, if all of it is there in order, in one piece."""
        count, on = self.rows * self.cols, np.flatnonzero(self.of != _APART)
        if len(on) != count or not np.array_equal(self.of[on], np.arange(count)) or on[-1] - on[0] != count - 1:
            return None
        return Grid(self.rows, self.cols, int(on[0]), len(self.of) - count - int(on[0]))


def grids(tape: Tape, reaches: Mapping[int, Reach]) -> dict[int, Grid]:
    """Return the grids of all values whose rows and columns lie along one dimension, with other tokens or without.

    The patches' places are known where they are cut from the image; from there each token is followed: attention and
    what is done token by token leave it where it is, a class token is put before the others, views move it.
    """
    places: dict[int, _Places] = {}
    for op in tape.ops:
        for number, value in enumerate(op.outputs):
            found = _followed(op, number, reaches[value], tape, reaches, places)
            if found is not None:
                places[value] = found
    return {value: grid for value, one in places.items() if (grid := one.grid()) is not None}


def _followed(
    op: Op, number: int, reach: Reach, tape: Tape, reaches: Mapping[int, Reach], places: Mapping[int, _Places]
) -> _Places | None:
    if reach.dims is None or reach.dims[0] != reach.dims[1]:
        return None
    axis = reach.dims[0]
    length, rows, cols = tape.shapes[op.outputs[number]][axis], len(reach.rows.lo), len(reach.cols.lo)
    if rows > 1 and rows * cols == length:
        return _Places(np.arange(length), rows, cols)
    known = [places[v] for v in op.inputs if v in places]
    if not known:
        return None
    if op.short == "cat" and bound(op)["dim"] % len(tape.shapes[op.outputs[0]]) == axis:
        return _joined(op, axis, tape, places)
    if kind_of(op) is Kind.VIEW and len(op.inputs) == 1:
        return _moved(op, number, axis, reaches[op.inputs[0]], tape, known[0])
    same = [one for one in known if len(one.of) == length]
    return same[0] if same and all(one.like(same[0]) for one in same) else None


def _joined(op: Op, axis: int, tape: Tape, places: Mapping[int, _Places]) -> _Places | None:
    """Put tokens side by side: those of one grid, and others apart."""
    tracked, parts, grid = iter(op.inputs), list[NDArray[np.int64]](), None
    for piece in _pieces(op):
        if isinstance(piece, torch.Tensor):
            parts.append(np.full(piece.shape[axis], _APART))
            continue
        value = next(tracked)
        one = places.get(value)
        if one is not None and grid is not None:
            return None
        grid = grid or one
        parts.append(np.full(tape.shapes[value][axis], _APART) if one is None else one.of)
    return None if grid is None else _Places(np.concatenate(parts), grid.rows, grid.cols)


def _pieces(op: Op) -> Sequence[object]:
    pieces: Sequence[object] = bound(op)["tensors"]
    return pieces


def _moved(op: Op, number: int, axis: int, before: Reach, tape: Tape, places: _Places) -> _Places | None:
    """Run a view on the tokens' places and see where they went."""
    shape = tape.shapes[op.inputs[0]]
    if before.dims is None or before.dims[0] != before.dims[1] or shape[before.dims[0]] != len(places.of):
        return None
    at = [-1 if dim == before.dims[0] else 1 for dim in range(len(shape))]
    line = torch.from_numpy(places.of).double().view(at).expand(shape).contiguous()
    moved = list(tensors_in(op.replay([line])))[number].movedim(axis, 0).flatten(1)
    if not len(moved) or bool((moved != moved[:, :1]).any()):
        return None
    return _Places(moved[:, 0].long().numpy(), places.rows, places.cols)


def blocks(tape: Tape, reaches: Mapping[int, Reach]) -> dict[str, int]:
    """Return the results of a transformer's blocks by their paths, in order; none where the network is of another kind.

    A block is a module that returns a sum, with a normalization of features and a matrix inside, as in ViT, Swin and
    ConvNeXt. A network that activates maps anywhere else is counted by these activations.
    """
    made, found = tape.producer(), dict[int, str]()
    for (path, _), value in tape.calls.items():
        if "[" in path or reaches[value].dims is None or not _adds(value, made):
            continue
        inside = {op.short for op in tape.ops if _within(op, path)}
        if "layer_norm" in inside and inside & {"linear", "multi_head_attention_forward"}:
            found[value] = max(found.get(value, ""), path, key=len)
    paths = set(found.values())
    for op in tape.ops:
        on_maps = reaches[op.outputs[0]].dims is not None and kind_of(op) is Kind.RECTIFIER
        if op.short in ("pow", "square"):  # of a variance that is taken by hand
            continue
        if on_maps and not any(_within(op, path) for path in paths):
            return {}
    return {path: value for value, path in sorted(found.items())}


def _within(op: Op, path: str) -> bool:
    return not path or op.module == path or op.module.startswith(f"{path}.")


def _adds(value: int, made: Mapping[int, Op]) -> bool:
    """Say whether a value is a sum of two, but for views and what passes through."""
    op = made.get(value)
    while op is not None and len(op.inputs) == 1 and kind_of(op) in (Kind.VIEW, Kind.IDENTITY):
        op = made.get(op.inputs[0])
    return op is not None and op.short == "add" and len(op.inputs) == 2
