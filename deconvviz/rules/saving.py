"""What a recorded pass saves for the way back: switches, slopes, scales, gates.

Each function runs the operation: (what rectifiers do, tape so far, op, its tracked tensors, run) -> its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tape.arguments import IDENTITIES, VIEWS, bound, constant_factor, is_scaled
from ..tape.operations import Op, Tape
from .limits import refuse_dropout

_EXACT = 1 << 20  # pixels of a map whose numbers float32 divides by its width without a mistake

Save = Callable[[str, Tape, Op, list[Tensor], Callable[[], Any]], Any]


def slope(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save the rectifier's derivative, which the deconvnet does not need."""
    if rectifier != "deconvnet":
        with torch.enable_grad():
            x = tensors[0].detach().clone().requires_grad_()
            y = op.replay([x.clone()])  # a clone: the function may work in place
            op.saved.slope = torch.autograd.grad(y.sum(), x)[0]
    return run()


def input_itself(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save what went in."""
    op.saved.at = [tensors[0].detach().clone()]
    return run()


def larger(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save where the first of two operands is not the smaller one."""
    if len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        op.saved.gate = (tensors[0] >= tensors[1]).to(tensors[0].dtype)
    return run()


def after_rectifier(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Note whether a power is one of a rectifier's result."""
    makers = tape.producer()
    maker = makers.get(op.inputs[0])
    while maker is not None and len(maker.inputs) == 1 and _passive(maker) and not is_scaled(maker):
        maker = makers.get(maker.inputs[0])
    op.saved.rectified = maker is not None and len(op.inputs) == 1 and maker.short in ("relu", "relu6", "threshold")
    return run()


def switches(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save which tap of its window each maximum came from: one byte each, and cheap to cut windows from."""
    p = bound(op)
    kernel, stride, padding, dilation = p["kernel_size"], p["stride"], p["padding"], p["dilation"]
    out, index = F.max_pool2d_with_indices(tensors[0], kernel, stride, padding, dilation, bool(p["ceil_mode"]))
    height, width = tensors[0].shape[-2:]
    rows = torch.arange(out.shape[-2], device=out.device)[:, None] * stride[0] - padding[0]
    cols = torch.arange(out.shape[-1], device=out.device) * stride[1] - padding[1]
    if height * width < _EXACT:  # the same numbers as with integers, which no processor divides fast
        at = index.float()
        row = at.add(0.5).mul_(1 / width).floor_()
    else:
        at, row = index, torch.div(index, width, rounding_mode="floor")
    if dilation == (1, 1):  # (row - rows) * kernel[1] + at - row * width - cols
        taps = torch.add(at, row, alpha=kernel[1] - width).sub_(rows * kernel[1] + cols)
    else:
        taps = (row - rows).div_(dilation[0], rounding_mode="floor").mul_(kernel[1])
        taps += torch.add(at, row, alpha=-width).sub_(cols).div_(dilation[1], rounding_mode="floor")
        taps.clamp_(0, kernel[0] * kernel[1] - 1)  # a window may lie in the padding alone, and its index is nowhere
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
    eps = p["eps"]
    if op.short in ("layer_norm", "rms_norm"):
        dims = list(range(-len(p["normalized_shape"]), 0))
        if op.short == "layer_norm":
            spread = x.var(dims, unbiased=False, keepdim=True)
        else:
            spread = x.square().mean(dims, keepdim=True)
            given = op.args[3] if len(op.args) > 3 else op.kwargs.get("eps")
            eps = torch.finfo(x.dtype).eps if given is None else given
    else:
        groups = p["num_groups"] if op.short == "group_norm" else x.shape[1]
        grouped = x.reshape(x.shape[0], groups, -1)
        spread = grouped.var(-1, unbiased=False).repeat_interleave(x.shape[1] // groups, 1)
        spread, weight = (t.reshape(*t.shape, *[1] * (x.dim() - 2)) if t.dim() else t for t in (spread, weight))
    op.saved.scale = (weight * (spread + eps).rsqrt()).expand(x.shape).clone()
    return run()


def gate(rectifier: str, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
    """Save the operand of a product that is a gate, a constant on the way back."""
    slot = _gate_slot(op, tape) if len(tensors) == 2 else None
    if slot is not None:
        op.saved.gate_slot = slot
        shape = torch.broadcast_shapes(*(x.shape for x in tensors))
        values = tensors[slot].detach() if op.short == "mul" else tensors[slot].detach().reciprocal()
        per_channel = values.dim() == len(shape) == 4 and values.shape[-2:] == (1, 1)
        if per_channel:  # small as it is; the rule broadcasts it over its windows
            shape = torch.Size((*shape[:2], 1, 1))
        op.saved.gate = values.expand(shape).clone()
    return run()


def _gate_slot(op: Op, tape: Tape) -> int | None:
    """Return which of a product's two tracked operands is the gate, None when neither or both could be.

    A gate comes out of a sigmoid, or is one number per channel (squeeze and excite) beside a map. A divisor that is
    smaller than what it divides is a statistic.
    """
    a, b = (tape.shapes[v] for v in op.inputs)
    full = torch.broadcast_shapes(a, b)
    if op.short == "div":
        return 1 if a == full and b.numel() < a.numel() and op.kwargs.get("rounding_mode") is None else None
    makers = tape.producer()
    candidates = [i for i, v in enumerate(op.inputs) if _squashed(v, makers) and tape.shapes[op.inputs[1 - i]] == full]
    if not candidates:
        candidates = [i for i, s in enumerate((a, b)) if _per_channel(s, full)]
    return candidates[0] if len(candidates) == 1 else None


def _per_channel(shape: torch.Size, full: torch.Size) -> bool:
    """Whether a tensor has one number per channel of maps (N, C, H, W), (N, H, W, C) or tokens (N, T, C)."""
    if len(shape) != len(full) or len(full) not in (3, 4):
        return False
    places = ((2, 3), (1, 2)) if len(full) == 4 else ((1,),)
    return any(all(shape[d] == 1 for d in p) and any(full[d] > 1 for d in p) for p in places)


# What makes a gate, or a statistic to multiply with.
_GATES = frozenset("sigmoid hardsigmoid softmax logsigmoid rsqrt".split())
_PASSIVE = frozenset((*VIEWS, *IDENTITIES, "interpolate", "upsample"))


def _passive(op: Op) -> bool:
    """Whether a gate stays one: moved, resized, scaled by constants, or through a dropout that is off."""
    off = "dropout" in op.short and refuse_dropout(op) is None
    return op.short in _PASSIVE or off or is_scaled(op)


def _squashed(value: int, makers: dict[int, Op]) -> bool:
    maker = makers.get(value)
    while maker is not None and (len(maker.inputs) == 1 or maker.short.endswith("_as")):
        if maker.short in _GATES or _hard_sigmoid(maker, makers) or _shifted_relu6(maker, makers):
            return True
        if not _passive(maker):
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
    return _cut(before) == (0, 6) and abs(factor - (6 if op.short == "div" else 1 / 6)) < 1e-3


def _shifted_relu6(op: Op, makers: dict[int, Op]) -> bool:
    """Whether an operation is six hard sigmoids: relu6(x + 3), which hand-written h-swishes divide by 6 at the end."""
    before = makers.get(op.inputs[0])
    if op.short not in _TOPS or before is None or before.short != "add" or len(before.inputs) != 1:
        return False
    shift = [x for x in (*before.args, *before.kwargs.values()) if isinstance(x, (int, float))]
    return _cut(op) == (0, 6) and shift == [3]


def _cut(op: Op) -> tuple[Any, Any]:
    low, high = _TOPS[op.short]
    p = {} if op.short == "relu6" else bound(op)
    return p.get(low, 0), p.get(high, 6)


_TOPS = {"relu6": ("", ""), "hardtanh": ("min_val", "max_val"), "clamp": ("min", "max")}
