"""The rules on whole tensors: what each does where the signal has no windows, or where an operation leaves them."""

from __future__ import annotations

import torch
import torch.nn.grad
from torch.nn import functional as F

from ..tape.arguments import bound, plain_sum
from ..tape.operations import Op, Slot
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


def unpool_norm(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Give each input of an Lp pool its share: y is the sum of x · (x / y)^(p − 1), zero where y is."""
    (signal,), p = present(signals), bound(op)
    assert op.saved.at is not None
    power = float(p["norm_type"])
    x = walk.items.part(op.saved.at[0], signal)
    with torch.enable_grad():
        blank = torch.zeros_like(x, requires_grad=True)
        means = F.avg_pool2d(blank, p["kernel_size"], p["stride"], 0, bool(p["ceil_mode"]))
    y = F.lp_pool2d(x, power, p["kernel_size"], p["stride"], bool(p["ceil_mode"]))
    share = torch.where(y > 0, signal.data / y.clamp_min(torch.finfo(y.dtype).tiny).pow(power - 1), 0.0)
    (spread,) = torch.autograd.grad(means, blank, share)
    count = p["kernel_size"][0] * p["kernel_size"][1]
    return [Signal(spread * count * x.abs().pow(power - 1) * x.sign())]


def unpool_regions(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Carry back through the region of each item's own image: its switches, or its interpolation."""
    (signal,), p = present(signals), bound(op)
    assert op.saved.at is not None
    regions = p["rois"][walk.items.images.to(p["rois"].device)].clone()
    regions[:, 0] = torch.arange(len(regions), device=regions.device)
    with torch.enable_grad():
        x = walk.items.part(op.saved.at[0], signal).detach().requires_grad_()
        given = [regions if y is p["rois"] else y for y in op.args]
        named = {name: regions if y is p["rois"] else y for name, y in op.kwargs.items()}
        place = {name: x if isinstance(y, Slot) else y for name, y in named.items()}
        result = op.func(*[x if isinstance(y, Slot) else y for y in given], **place)
        pooled = result[0] if isinstance(result, tuple) else result
    return [Signal(torch.autograd.grad(pooled, x, signal.data)[0])]


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
