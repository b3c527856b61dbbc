"""What went into an activation: by it, values that are equal at a saturating one's end can still be ranked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..model.table import Layer
from ..rules.kinds import Kind
from ..rules.table import kind_of
from ..tape.arguments import bound
from ..tape.operations import Op, Tape

# Never falling, and flat at the upper end: ReLU6 at 6, the logistic function where its float is 1.
_SATURATING = frozenset("relu6 hardsigmoid sigmoid expit tanh softsign logsigmoid".split())
_CLIPPING = frozenset("hardtanh clamp clip clamp_max".split())
_FORMS = frozenset("view reshape flatten view_as reshape_as".split())  # move nothing where the shape stays


@dataclasses.dataclass(frozen=True)
class Before:
    """A layer's response as it was before its activation, or activations.

    `layers` are the tensors that it comes from, as if they were layers; `build` makes the response (n, units, height,
    width) of theirs.
    """

    layers: tuple[Layer, ...]
    build: Callable[[Mapping[int, Tensor]], Tensor]


def before_saturation(tape: Tape, layer: Layer) -> Before | None:
    """Find the saturating activation that made the layer's response; None where none did, or one without an upper end."""
    return before_activation(tape, layer, _saturates)


def before_activation(tape: Tape, layer: Layer, made_by: Callable[[Op], bool]) -> Before | None:
    """Find what went into the activations, as `made_by` tells them, that made the layer's response; None where none did.

    Between the two may be what only passes values on: identities, max-pools and concatenations.
    """
    made = tape.producer()
    sources: dict[int, Layer] = {}

    def trace(value: int) -> Callable[[Mapping[int, Tensor]], Tensor] | None:
        op = made.get(value)
        if op is None:
            return None
        if made_by(op):
            source = op.inputs[0]
            sources[source] = _as_layer(tape, layer, source)
            return lambda tensors: tensors[source]
        kind = kind_of(op)
        if (kind is Kind.IDENTITY or op.short in _FORMS) and tape.shapes[op.inputs[0]] == tape.shapes[value]:
            return trace(op.inputs[0])
        if kind not in (Kind.MAX_POOL, Kind.CONCATENATION) or layer.reach.dims != (2, 3):
            return None
        inner = [trace(v) for v in op.inputs]
        if value != op.outputs[0] or any(one is None for one in inner):
            return None
        return lambda tensors: _first(op.replay([one(tensors) for one in inner if one is not None]))

    build = trace(layer.value)
    return None if build is None else Before(tuple(sources.values()), build)


def _saturates(op: Op) -> bool:
    if len(op.inputs) != 1:
        return False
    if op.short in _SATURATING:
        return True
    if op.short not in _CLIPPING:
        return False
    upper = bound(op)["max_val" if op.short == "hardtanh" else "max"]
    if isinstance(upper, Tensor):
        return upper.numel() == 1  # other bounds at other places would put them in another order
    return upper is not None and float(upper) < math.inf


def _as_layer(tape: Tape, layer: Layer, value: int) -> Layer:
    """Describe another value as if it were the layer."""
    shape = tape.shapes[value]
    other = dataclasses.replace(layer, value=value, maker="", number=None)
    if layer.reach.dims == (2, 3):
        return dataclasses.replace(other, units=shape[1], height=shape[2], width=shape[3])
    return other


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
