"""The deconvnet of the paper, written out with loops: slow, literal, on purpose without the package or torch.

One image (C, H, W) in float64 goes forward through a list of `Step`s; then one activation goes back. Source: Zeiler
& Fergus, ECCV 2014, section 2.1: "(i) unpool, (ii) rectify and (iii) filter", where filtering uses "transposed
versions of the same filters" and unpooling "the locations of the maxima within each pooling region"; "no contrast
normalization operations are used when in this reconstruction path".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Step:
    """One operation: what it is, the numbers of the values it reads (0 is the image), its settings and weights."""

    kind: str
    inputs: tuple[int, ...]
    p: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A forward pass: every value, every pool's switches, and how close any pool's second place came."""

    values: list[Array]
    switches: dict[int, dict[tuple[int, int, int], tuple[int, int]]]
    gap: float


def forward(steps: list[Step], image: Array) -> Run:
    run = Run([image.astype(np.float64)], {}, np.inf)
    for number, step in enumerate(steps, 1):
        x = [run.values[i] for i in step.inputs]
        if step.kind == "max_pool":
            y, run.switches[number], gap = max_pool(x[0], **step.p)
            run.gap = min(run.gap, gap)
        else:
            y = FORWARD[step.kind](*x, **step.p)
        run.values.append(y)
    return run


def project(steps: list[Step], image: Array, unit: int, position: tuple[int, int]) -> tuple[Array, Run]:
    """Carry the activation of `unit` at `position` of the last value back to the image."""
    run = forward(steps, image)
    signals = [np.zeros_like(v) for v in run.values]
    signals[-1][unit, position[0], position[1]] = run.values[-1][unit, position[0], position[1]]
    for number in range(len(steps), 0, -1):
        step = steps[number - 1]
        if step.kind == "max_pool":
            parts = [unpool(signals[number], run.values[step.inputs[0]].shape, run.switches[number])]
        else:
            parts = BACKWARD[step.kind](signals[number], [run.values[i] for i in step.inputs], **step.p)
        for i, part in zip(step.inputs, parts, strict=True):
            signals[i] += part  # a value that is read twice gets both signals
    return signals[0], run


# ---- convolution ----------------------------------------------------------------------------------------------------


def taps(out: int, kernel: int, stride: int, padding: int, dilation: int, size: int):
    """For one output position: pairs (tap, input position) that lie inside the map."""
    for tap in range(kernel):
        place = out * stride - padding + tap * dilation
        if 0 <= place < size:
            yield tap, place


def conv(x: Array, weight: Array, bias: Array | None, stride, padding, dilation, groups: int) -> Array:
    channels, height, width = x.shape
    filters, _, kh, kw = weight.shape
    h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((filters, h, w))
    for f in range(filters):
        first = f // (filters // groups) * (channels // groups)
        for i in range(h):
            for j in range(w):
                for a, r in taps(i, kh, stride[0], padding[0], dilation[0], height):
                    for b, c in taps(j, kw, stride[1], padding[1], dilation[1], width):
                        y[f, i, j] += weight[f, :, a, b] @ x[first : first + channels // groups, r, c]
        if bias is not None:
            y[f] += bias[f]
    return y


def conv_back(signal: Array, inputs: list[Array], weight: Array, bias, stride, padding, dilation, groups: int):
    """Put each filter, times the signal, where it looked."""
    back = np.zeros_like(inputs[0])
    channels, height, width = back.shape
    filters, _, kh, kw = weight.shape
    for f, i, j in zip(*np.nonzero(signal), strict=True):
        first = f // (filters // groups) * (channels // groups)
        for a, r in taps(i, kh, stride[0], padding[0], dilation[0], height):
            for b, c in taps(j, kw, stride[1], padding[1], dilation[1], width):
                back[first : first + channels // groups, r, c] += weight[f, :, a, b] * signal[f, i, j]
    return [back]


# ---- pools ----------------------------------------------------------------------------------------------------------


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # the last window must start inside the map
        count -= 1
    return count


def max_pool(x: Array, kernel, stride, padding, dilation, ceil_mode: bool):
    channels, *size = x.shape
    h, w = (pooled_size(size[k], kernel[k], stride[k], padding[k], dilation[k], ceil_mode) for k in (0, 1))
    y, switches, gap = np.zeros((channels, h, w)), {}, np.inf
    for c in range(channels):
        for i in range(h):
            for j in range(w):
                best, where = -np.inf, None
                seen = []
                for _, r in taps(i, kernel[0], stride[0], padding[0], dilation[0], size[0]):
                    for _, s in taps(j, kernel[1], stride[1], padding[1], dilation[1], size[1]):
                        seen.append(x[c, r, s])
                        if x[c, r, s] > best:  # a tie goes to the first in reading order
                            best, where = x[c, r, s], (r, s)
                y[c, i, j], switches[c, i, j] = best, where
                gap = min([gap, *(best - v for v in seen if v != best)])
    return y, switches, gap


def unpool(signal: Array, shape, switches) -> Array:
    back = np.zeros(shape)
    for (c, i, j), (r, s) in switches.items():
        back[c, r, s] += signal[c, i, j]  # windows that overlap add
    return back


def avg_pool(x: Array, kernel, stride, padding, ceil_mode: bool, count_include_pad: bool) -> Array:
    size = x.shape[1:]
    h, w = (pooled_size(size[k], kernel[k], stride[k], padding[k], 1, ceil_mode) for k in (0, 1))
    y = np.zeros((len(x), h, w))
    for i in range(h):
        for j in range(w):
            for r, s, share in shares(i, j, kernel, stride, padding, size, count_include_pad):
                y[:, i, j] += x[:, r, s] * share
    return y


def shares(i: int, j: int, kernel, stride, padding, size, count_include_pad: bool):
    rows = [r for _, r in taps(i, kernel[0], stride[0], padding[0], 1, size[0])]
    cols = [s for _, s in taps(j, kernel[1], stride[1], padding[1], 1, size[1])]
    count = len(rows) * len(cols)
    if count_include_pad:  # the padding counts, but not what ceil_mode adds beyond it
        sides = [
            min(n * stride[k] - padding[k] + kernel[k], size[k] + padding[k]) - (n * stride[k] - padding[k])
            for k, n in ((0, i), (1, j))
        ]
        count = sides[0] * sides[1]
    for r in rows:
        for s in cols:
            yield r, s, 1 / count


def avg_pool_back(signal: Array, inputs, kernel, stride, padding, ceil_mode: bool, count_include_pad: bool):
    back = np.zeros_like(inputs[0])
    for i in range(signal.shape[1]):
        for j in range(signal.shape[2]):
            for r, s, share in shares(i, j, kernel, stride, padding, back.shape[1:], count_include_pad):
                back[:, r, s] += signal[:, i, j] * share
    return [back]


def global_pool(x: Array) -> Array:
    return x.mean((1, 2), keepdims=True)


def global_pool_back(signal: Array, inputs):
    return [np.ones_like(inputs[0]) * signal / inputs[0][0].size]


# ---- normalization --------------------------------------------------------------------------------------------------


def local_response(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    y = np.zeros_like(x)
    for c in range(len(x)):
        first, last = max(0, c - size // 2), min(len(x) - 1, c + (size - 1) // 2)
        total = sum(x[d] ** 2 for d in range(first, last + 1))
        y[c] = x[c] / (k + alpha * total / size) ** beta
    return y


def batch_norm(x: Array, mean, var, weight, bias, eps: float) -> Array:
    y = np.zeros_like(x)
    for c in range(len(x)):
        y[c] = (x[c] - mean[c]) / np.sqrt(var[c] + eps) * weight[c] + bias[c]
    return y


def batch_norm_back(signal: Array, inputs, mean, var, weight, bias, eps: float):
    return [np.stack([signal[c] * weight[c] / np.sqrt(var[c] + eps) for c in range(len(signal))])]


# ---- the tables -----------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def split(signal: Array, inputs):
    parts, first = [], 0
    for x in inputs:
        parts.append(signal[first : first + len(x)])
        first += len(x)
    return parts


def passed(signal: Array, inputs, **_: Any):
    return [signal]


FORWARD = {
    "conv": conv,
    "relu": lambda x, **_: np.maximum(x, 0),
    "avg_pool": avg_pool,
    "global_pool": global_pool,
    "lrn": local_response,
    "batch_norm": batch_norm,
    "add": lambda a, b, **_: a + b,
    "concat": lambda *xs: np.concatenate(xs),
    "gate": lambda x, g: x * sigmoid(g),
    "scale": lambda x, factor: x * factor,
    "dropout": lambda x: x,
}
BACKWARD = {
    "conv": conv_back,
    "relu": lambda signal, inputs, **_: [np.maximum(signal, 0)],
    "avg_pool": avg_pool_back,
    "global_pool": global_pool_back,
    "lrn": passed,
    "batch_norm": batch_norm_back,
    "add": lambda signal, inputs, **_: [signal, signal],
    "concat": split,
    "gate": lambda signal, inputs: [signal * sigmoid(inputs[1]), np.zeros_like(inputs[1])],
    "scale": lambda signal, inputs, factor: [signal * factor],
    "dropout": passed,
}
