"""The rules on windows: pure functions (operation, signals at its results, walk) -> signals at its inputs.

What a rule does where the signal has no windows is in `whole`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UnsupportedOp
from ..tape.arguments import Pair, bound, constant_factor
from ..tape.operations import Op
from .batch import mixed_values
from .signals import Grid, Signal, Signals, Walk, present


def identity(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Pass the signal through."""
    return [signals[0]] + [None] * (len(op.inputs) - 1)


def rectify(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Rectify the signal; backprop and guided multiply by the forward derivative instead or as well."""
    (signal,) = present(signals)
    data = signal.data if walk.rectifier == "backprop" else signal.data.clamp_min(0)
    if op.saved.slope is not None:
        data = data * walk.items.part(op.saved.slope, signal)
    return [replace(signal, data=data)]


def unsquash(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Pass the signal on: where activations have both signs, so have projections; the gradient rules take the slope."""
    (signal,) = present(signals)
    if op.saved.slope is None:
        return [signal]
    data = signal.data.clamp_min(0) if walk.rectifier == "guided" else signal.data
    return [replace(signal, data=data * walk.items.part(op.saved.slope, signal))]


def convolve(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Filter with the transposed filters, without the bias."""
    (signal,), p = present(signals), bound(op)
    signal = replace(signal, data=signal.data.to(p["weight"].dtype))  # another one where the model casts or autocasts
    assert signal.grid is not None
    weight, stride, dilation, groups = p["weight"], p["stride"], p["dilation"], p["groups"]
    if signal.unit is not None:
        data = _one_filter(signal, weight, groups, dilation)
    elif weight.shape[1] * groups <= 4 and groups == 1 and stride[0] == stride[1] > 1 and dilation == (1, 1):
        data = _by_phases(signal.data, weight, stride[0])
    else:
        data = F.conv_transpose2d(signal.data, weight, None, stride, 0, 0, groups, dilation)
    grid = _below(signal.grid, stride, p["padding"])
    clean = op.inputs[0] == 0  # boxes cut the image's border off
    return [walk.items.trimmed(Signal(data, grid), walk.tape.shapes[op.inputs[0]], clean=clean)]


def _by_phases(signal: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Transpose a strided convolution that has few input channels (the first layer) as one dense convolution.

    Each of the stride² phases of the result is a stride-1 convolution of the signal; all phases together are
    stride² · C channels of one, which then interleave. Same sums, and 3 to 4 times faster than `conv_transpose2d`,
    whose kernels are poor at 3 output channels.
    """
    out, channels, height, width = weight.shape
    taps = [-(-k // stride) for k in (height, width)]
    padded = F.pad(weight, (0, taps[1] * stride - width, 0, taps[0] * stride - height))
    phases = padded.reshape(out, channels, taps[0], stride, taps[1], stride).permute(1, 3, 5, 0, 2, 4)
    filters = phases.reshape(channels * stride**2, out, *taps).flip(2, 3).contiguous(memory_format=torch.channels_last)
    dense = F.conv2d(signal, filters, padding=(taps[0] - 1, taps[1] - 1))
    h, w = ((n - 1) * stride + k for n, k in zip(signal.shape[-2:], (height, width), strict=True))
    return F.pixel_shuffle(dense, stride)[:, :, :h, :w]


def _one_filter(signal: Signal, weight: Tensor, groups: int, dilation: Pair) -> Tensor:
    # One position of one channel: the transposed convolution is that channel's filter times the signal.
    assert signal.unit is not None
    amount = signal.data.flatten(1).gather(1, signal.unit[:, None])[:, :, None, None]
    filters = weight[signal.unit] * amount
    if dilation != (1, 1):
        spread = filters.new_zeros(
            *filters.shape[:2], *((k - 1) * d + 1 for k, d in zip(filters.shape[2:], dilation, strict=True))
        )
        spread[:, :, :: dilation[0], :: dilation[1]] = filters
        filters = spread
    if groups == 1:
        return filters
    out = filters.new_zeros(len(filters), groups, *filters.shape[1:])
    group = signal.unit // (weight.shape[0] // groups)
    out[torch.arange(len(filters), device=out.device), group] = filters
    return out.flatten(1, 2)


def _below(grid: Grid, stride: Pair, padding: Pair) -> Grid:
    (sy, sx), (oy, ox) = grid.stride, grid.offset
    return Grid((sy * stride[0], sx * stride[1]), (oy * stride[0] - padding[0], ox * stride[1] - padding[1]))


def unpool(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Put each pooled signal where the maximum was; where windows picked the same pixel the signals add."""
    (signal,), p = present(signals[:1]), bound(op)
    return _pooled(op, signal, to_switches(op, signal, walk), p, walk)


def to_switches(op: Op, signal: Signal, walk: Walk) -> Tensor:
    """Add a pool's signals (B, C, h, w) into their windows, each where the maximum was; (B, C, all windows)."""
    assert op.saved.switches is not None
    p = bound(op)
    taps = walk.items.part(op.saved.switches, signal)
    return _unpooled(signal.data, taps, p["kernel_size"], p["stride"], p["dilation"])


def _unpooled(signal: Tensor, taps: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    (height, width), device = _covered(signal, kernel, stride, dilation), signal.device
    number = torch.arange(kernel[0] * kernel[1], device=device)
    within = number // kernel[1] * dilation[0] * width + number % kernel[1] * dilation[1]
    rows, cols = (torch.arange(n, device=device) * s for n, s in zip(signal.shape[-2:], stride, strict=True))
    pixels = taps.permute(0, 2, 3, 1)  # channels last, as the signal
    index = within.index_select(0, pixels.reshape(-1).int()).view(pixels.shape)
    index += (rows[:, None] * width + cols)[:, :, None]
    # The pool's own backward pass adds where windows overlap; its second argument gives only the shape.
    blank = torch.empty(
        *signal.shape[:2], height, width, dtype=signal.dtype, device=device, memory_format=torch.channels_last
    )
    return torch.ops.aten.max_pool2d_with_indices_backward(
        signal, blank, kernel, stride, (0, 0), dilation, False, index.permute(0, 3, 1, 2)
    )


def _covered(signal: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    height, width = (
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(signal.shape[-2:], stride, kernel, dilation, strict=True)
    )
    return height, width


def average(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Spread each signal evenly over its window."""
    (signal,), p = present(signals), bound(op)
    (h, w), kernel, stride = signal.data.shape[-2:], p["kernel_size"], p["stride"]
    share = signal.data / (p["divisor_override"] or kernel[0] * kernel[1])
    data = share.new_zeros(*share.shape[:2], *_covered(share, kernel, stride, (1, 1)))
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            rows, cols = (slice(i, i + (n - 1) * s + 1, s) for i, n, s in ((top, h, stride[0]), (left, w, stride[1])))
            data[:, :, rows, cols] += share
    return _pooled(op, signal, data, p, walk)


def _pooled(op: Op, signal: Signal, data: Tensor, p: dict[str, Any], walk: Walk) -> Signals:
    # `data` covers the windows of all outputs; the map may begin later (padding).
    assert signal.grid is not None
    below = Signal(data, _below(signal.grid, p["stride"], p["padding"]))
    # A switch never points outside the map.
    return [walk.items.trimmed(below, walk.tape.shapes[op.inputs[0]], clean=op.short == "max_pool2d")]


def scale(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply by what the normalization multiplied with; its statistics are constants."""
    (signal,) = present(signals)
    if op.short == "batch_norm":
        p = bound(op)
        factor = (p["running_var"] + p["eps"]).rsqrt()
        factor = factor if p["weight"] is None else factor * p["weight"]
        return [replace(signal, data=signal.data * factor.view(1, -1, *[1] * (signal.data.dim() - 2)))]
    assert op.saved.scale is not None
    return [replace(signal, data=signal.data * walk.items.part(op.saved.scale, signal))]


def gate(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply by the gate, which is a constant; nothing goes into the gate's own branch."""
    (signal,) = present(signals)
    assert op.saved.gate is not None and op.saved.gate_slot is not None
    if op.inputs[op.saved.gate_slot] in mixed_values(walk.tape):
        raise UnsupportedOp(f"the gate of {op.where} mixes the images of a batch; give one at a time, to deconv.")
    through: Signals = [None, None]
    through[1 - op.saved.gate_slot] = replace(signal, data=signal.data * walk.items.part(op.saved.gate, signal))
    return through


def to_larger(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Give each position's signal to the operand that was larger there, of equal ones to the first."""
    (signal,) = present(signals)
    assert op.saved.gate is not None
    first = signal.data * walk.items.part(op.saved.gate, signal)
    return [Signal(first, signal.grid), Signal(signal.data - first, signal.grid)]


def to_all(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Give the signal of a sum to every summand."""
    (signal,) = present(signals)
    return [replace(signal, unit=signal.unit if len(op.inputs) == 1 else None)] * len(op.inputs)


def split(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Give each input of a concatenation its part."""
    (signal,) = present(signals)
    parts = signal.data.split([walk.tape.shapes[v][1] for v in op.inputs], 1)
    return [Signal(part, signal.grid) for part in parts]


def product(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply by a constant or a gate."""
    return (multiply if len(op.inputs) == 1 else gate)(op, signals, walk)


def multiply(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Multiply or divide by a constant."""
    (signal,) = present(signals)
    factor = constant_factor(op)
    data = signal.data * factor if op.short == "mul" else signal.data / factor
    return [replace(signal, data=data)]


def unpad(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Drop what lies in a constant border."""
    (signal,) = present(signals)
    margins = bound(op)["pad"]
    assert signal.grid is not None
    grid = _below(signal.grid, (1, 1), (margins[2] if len(margins) > 2 else 0, margins[0]))
    return [walk.items.trimmed(Signal(signal.data.clone(), grid), walk.tape.shapes[op.inputs[0]])]
