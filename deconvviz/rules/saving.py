"""What a recorded pass saves for the way back: switches, slopes, scales, gates.

Each function runs the operation: (what rectifiers do, tape so far, op, its tracked tensors, run) -> its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tape.arguments import IDENTITIES, VIEWS, bound, constant_factor
from ..tape.operations import Op, Tape

Save = Callable[[str, Tape, Op, list[Tensor], Callable[[], Any]], Any]


def slope(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save the rectifier's derivative, which the deconvnet does not need."""
    if rectifier != "deconvnet":
        with torch.enable_grad():
            x = tensors[0].detach().clone().requires_grad_()
            y = op.replay([x.clone()])  # a clone: the function may work in place
            op.saved.slope = torch.autograd.grad(y.sum(), x)[0]
    return run()


def switches(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save which tap of its window each maximum came from: one byte each, and cheap to cut windows from."""
    p = bound(op)
    kernel, stride, padding, dilation = p["kernel_size"], p["stride"], p["padding"], p["dilation"]
    out, index = F.max_pool2d_with_indices(tensors[0], kernel, stride, padding, dilation, bool(p["ceil_mode"]))
    width = tensors[0].shape[-1]
    rows = torch.arange(out.shape[-2], device=out.device)[:, None] * stride[0] - padding[0]
    cols = torch.arange(out.shape[-1], device=out.device) * stride[1] - padding[1]
    row = torch.div(index, width, rounding_mode="floor")
    taps = (row - rows).div_(dilation[0], rounding_mode="floor").mul_(kernel[1])
    taps += (index - row * width - cols).div_(dilation[1], rounding_mode="floor")
    if dilation != (1, 1):  # such a window may lie in the padding alone, and its index is nowhere
        taps.clamp_(0, kernel[0] * kernel[1] - 1)
    small = torch.uint8 if kernel[0] * kernel[1] < 256 else torch.int32
    taps = taps.to(small)
    op.saved.switches = taps.contiguous(memory_format=torch.channels_last) if taps.dim() == 4 else taps
    return (out, index) if op.short.endswith("indices") or p["return_indices"] else out


def indices(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save where each maximum of an adaptive pool was."""
    p = bound(op)
    out, op.saved.indices = F.adaptive_max_pool2d(tensors[0], p["output_size"], return_indices=True)
    return (out, op.saved.indices) if op.short.endswith("indices") or p["return_indices"] else out


def scale(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save what a normalization with the image's own statistics multiplies with."""
    x, p = tensors[0], bound(op)
    weight = torch.ones((), dtype=x.dtype, device=x.device) if p["weight"] is None else p["weight"]
    if op.short == "layer_norm":
        dims = list(range(-len(p["normalized_shape"]), 0))
        spread = x.var(dims, unbiased=False, keepdim=True)
    else:
        groups = p["num_groups"] if op.short == "group_norm" else x.shape[1]
        grouped = x.reshape(x.shape[0], groups, -1)
        spread = grouped.var(-1, unbiased=False).repeat_interleave(x.shape[1] // groups, 1)
        spread, weight = (t.reshape(*t.shape, *[1] * (x.dim() - 2)) if t.dim() else t for t in (spread, weight))
    op.saved.scale = (weight * (spread + p["eps"]).rsqrt()).expand(x.shape).clone()
    return run()


def gate(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save the operand of a product that is a gate, a constant on the way back."""
    slot = _gate_slot(op, tape) if op.short == "mul" and len(tensors) == 2 else None
    if slot is not None:
        op.saved.gate_slot = slot
        shape = torch.broadcast_shapes(*(x.shape for x in tensors))
        values = tensors[slot].detach()
        per_channel = values.dim() == len(shape) == 4 and values.shape[-2:] == (1, 1)
        if per_channel:  # small as it is; the rule broadcasts it over its windows
            shape = torch.Size((*shape[:2], 1, 1))
        op.saved.gate = values.expand(shape).clone()
    return run()


def _gate_slot(op: Op, tape: Tape) -> int | None:
    """Return which of a product's two tracked operands is the gate, None when neither or both could be.

    A gate comes out of a sigmoid, or is one number per channel (squeeze and excite) beside a map.
    """
    a, b = (tape.shapes[v] for v in op.inputs)
    full = torch.broadcast_shapes(a, b)
    makers = tape.producer()
    candidates = [i for i, v in enumerate(op.inputs) if _squashed(v, makers) and tape.shapes[op.inputs[1 - i]] == full]
    if not candidates:
        candidates = [i for i, s in enumerate((a, b)) if len(s) == 4 and s[-2:] == (1, 1) and full[-2:] != (1, 1)]
    return candidates[0] if len(candidates) == 1 else None


_GATES = frozenset("sigmoid hardsigmoid softmax logsigmoid".split())
_PASSIVE = frozenset((*VIEWS, *IDENTITIES))


def _squashed(value: int, makers: dict[int, Op]) -> bool:
    maker = makers.get(value)
    while maker is not None and (len(maker.inputs) == 1 or maker.short.endswith("_as")):
        if maker.short in _GATES or _hard_sigmoid(maker, makers):
            return True
        if maker.short not in _PASSIVE:
            return False
        maker = makers.get(maker.inputs[0])
    return False


def _hard_sigmoid(op: Op, makers: dict[int, Op]) -> bool:
    """Whether an operation ends a hard sigmoid that is written out: relu6(x + 3) / 6."""
    if op.short not in ("mul", "div"):
        return False
    factor, before = constant_factor(op), makers.get(op.inputs[0])
    if not isinstance(factor, (int, float)) or before is None or before.short not in _TOPS:
        return False
    low, high = _TOPS[before.short]
    p = {} if before.short == "relu6" else bound(before)
    cut = (p.get(low, 0), p.get(high, 6))
    return cut == (0, 6) and abs(factor - (6 if op.short == "div" else 1 / 6)) < 1e-3


_TOPS = {"relu6": ("", ""), "hardtanh": ("min_val", "max_val"), "clamp": ("min", "max"), "clip": ("min", "max")}
