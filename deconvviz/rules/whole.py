"""The rules on whole tensors: what each does where the signal has no windows, or where an operation leaves them."""

from __future__ import annotations

import torch.nn.grad
from torch.nn import functional as F

from ..tape.arguments import bound, plain_sum
from ..tape.operations import Op
from . import backward as windows
from .pullback import pullback
from .signals import Signal, Signals, Walk, present


def convolve(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Filter with the transposed filters, without the bias."""
    (signal,), p = present(signals), bound(op)
    if isinstance(p["padding"], str):
        return pullback(op, signals, walk)
    size = (len(signal.data), *walk.tape.shapes[op.inputs[0]][1:])
    data = torch.nn.grad.conv2d_input(
        size, p["weight"], signal.data.to(p["weight"].dtype), p["stride"], p["padding"], p["dilation"], p["groups"]
    )
    return [Signal(data)]


def unpool(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Put each pooled signal where the maximum was; where windows picked the same pixel the signals add."""
    (signal,), (top, left) = present(signals[:1]), bound(op)["padding"]
    data = windows.to_switches(op, signal, walk)
    height, width = walk.tape.shapes[op.inputs[0]][-2:]
    # The windows begin before the map (padding) and may end elsewhere (ceil_mode).
    margins = (-left, width + left - data.shape[-1], -top, height + top - data.shape[-2])
    return [Signal(F.pad(data, margins))]


def unpool_adaptive(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Put each pooled signal where the maximum was."""
    (signal,) = present(signals[:1])
    assert op.saved.indices is not None
    shape = walk.tape.shapes[op.inputs[0]]
    index = walk.items.part(op.saved.indices, signal).flatten(2)
    data = signal.data.new_zeros(*signal.data.shape[:2], shape[-2] * shape[-1])
    return [Signal(data.scatter_add_(2, index, signal.data.flatten(2)).unflatten(2, shape[-2:]))]


def to_all(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Give the signal of a sum to every summand; one that was broadcast gets the sum over its copies."""
    return (windows.to_all if plain_sum(op, walk.tape) else pullback)(op, signals, walk)


def product(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply by a constant or a gate."""
    return (pullback if len(op.inputs) == 1 else windows.gate)(op, signals, walk)


def linear(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply with the transposed matrix."""
    (signal,) = present(signals)
    weight = bound(op)["weight"]
    return [Signal(signal.data.to(weight.dtype) @ weight)]
