"""Where a rule does not fit a call (`refuse_*`: the reason, or None), and where it works on windows (`local_*`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tape.arguments import bound, constant_factor, first_operand, plain_sum
from ..tape.operations import Op, Slot, Tape


def one_input(op: Op) -> str | None:
    """Only the first argument may depend on the images."""
    return "its second operand depends on the images, too" if len(op.inputs) != 1 else None


def refuse_clamp(op: Op) -> str | None:
    """A clamp is a rectifier where it cuts at 0 from below."""
    p = bound(op)
    low = p["min_val"] if op.short == "hardtanh" else p["threshold"] if op.short == "threshold" else p["min"]
    if isinstance(low, Tensor):
        low = low.item() if low.numel() == 1 and not low.requires_grad else None
    if low != 0 or isinstance(low, Slot):
        return f"it cuts at {low}, so it is no rectifier"
    if op.short == "threshold" and p["value"] != 0:
        return f"it puts {p['value']} in place of what it cuts, so it is no rectifier"
    return one_input(op)


def refuse_maximum(op: Op) -> str | None:
    """Both operands must depend on the images and have one size: units compete for each position."""
    if len(op.inputs) != 2:
        return "its second operand is a constant, so it is no maxout; write it as a clamp"
    return None if op.saved.gate is not None else "its operands are of different sizes"


def refuse_lp_pool(op: Op) -> str | None:
    """The norm must have a derivative."""
    power = bound(op)["norm_type"]
    return one_input(op) if 1 <= power < math.inf else f"its norm is {power}"


def refuse_regions(op: Op) -> str | None:
    """There must be one region for each image, in their order: else responses are not those of images."""
    regions = bound(op)["rois"]
    if len(op.inputs) != 1 or not isinstance(regions, Tensor):
        return "its regions depend on the images"
    if not torch.equal(regions[:, 0].cpu(), torch.arange(len(regions), dtype=regions.dtype)):
        return "it has not one region for each image, in their order"
    return None


def refuse_norm(op: Op) -> str | None:
    """Statistics must be the image's own or the model's."""
    p = bound(op)
    if len(op.inputs) != 1:
        return "its parameters depend on the images"
    if op.short == "batch_norm" and (p["training"] or p["running_var"] is None):
        return "it normalizes with the statistics of the batch, so the result depends on the other images"
    if op.short == "instance_norm" and not p["use_input_stats"]:
        return "it uses running statistics; write it as a batch norm"
    return None


def refuse_dropout(op: Op) -> str | None:
    """Dropout must be off."""
    on = op.args[2] if len(op.args) > 2 else op.kwargs.get("training", op.kwargs.get("train", True))
    return "it is random even in eval mode (training=True)" if on and bound(op)["p"] else None


def refuse_product(op: Op) -> str | None:
    """One operand must be a constant or a gate."""
    if op.kwargs.get("rounding_mode") is not None:
        return "it rounds"
    if len(op.inputs) == 1:
        divides = op.short == "div" and not isinstance(first_operand(op), Slot)
        return "it divides by the signal" if divides else None
    if op.saved.gate_slot is not None:
        return None
    return "both operands depend on the images and neither is a gate"


def refuse_power(op: Op) -> str | None:
    """A power of a rectifier's result, a squared ReLU, is a relative of the rectifier."""
    if op.saved.rectified:
        return None
    return (
        "what goes in is no rectifier's result, so it is no relative of one" if len(op.inputs) == 1 else one_input(op)
    )


def refuse_conv(op: Op) -> str | None:
    """The filters must be constants."""
    return "its filters depend on the images" if len(op.inputs) != 1 else None


def refuse_view(op: Op) -> str | None:
    """What is picked must not depend on the images; a second tensor may lend its shape."""
    return None if op.short in ("expand_as", "view_as", "reshape_as") else one_input(op)


def refuse_linear(op: Op) -> str | None:
    """A product with another tracked tensor is not linear, a stack of several is."""
    return None if op.short == "stack" else one_input(op)


def is_nchw(op: Op, tape: Tape) -> bool:
    """Everything has the form (N, C, H, W)."""
    return all(len(tape.shapes[v]) == 4 for v in (*op.inputs, *op.outputs))


def nowhere(op: Op, tape: Tape) -> bool:
    """The rule needs whole tensors."""
    return False


def local_conv(op: Op, tape: Tape) -> bool:
    """Padding in words is not worked out."""
    return is_nchw(op, tape) and not isinstance(bound(op)["padding"], str)


def local_average(op: Op, tape: Tape) -> bool:
    """Every window divides by the same number."""
    p = bound(op)
    counted = p["divisor_override"] or p["padding"] == (0, 0) or p["count_include_pad"]
    return is_nchw(op, tape) and not p["ceil_mode"] and bool(counted)


def local_sum(op: Op, tape: Tape) -> bool:
    """Nothing is broadcast."""
    return is_nchw(op, tape) and plain_sum(op, tape)


def local_join(op: Op, tape: Tape) -> bool:
    """Along channels, and no constants among the parts."""
    p = bound(op)
    return is_nchw(op, tape) and p["dim"] in (1, -3) and len(op.inputs) == len(p["tensors"])


def local_product(op: Op, tape: Tape) -> bool:
    """A gate of the same size, a number, or one number per channel."""
    if op.saved.gate_slot is not None:
        return is_nchw(op, tape) and tape.shapes[op.inputs[1 - op.saved.gate_slot]] == tape.shapes[op.outputs[0]]
    if len(op.inputs) == 2:
        return False
    factor = constant_factor(op)
    if not isinstance(factor, Tensor):
        return is_nchw(op, tape)
    flat = factor.numel() == 1 or (factor.dim() in (3, 4) and factor.shape[-2:] == (1, 1))
    shared = factor.dim() < 4 or factor.shape[0] == 1  # not one per image
    return is_nchw(op, tape) and flat and shared and tape.shapes[op.inputs[0]] == tape.shapes[op.outputs[0]]


def local_pad(op: Op, tape: Tape) -> bool:
    """A constant border around rows and columns."""
    p = bound(op)
    return is_nchw(op, tape) and p["mode"] == "constant" and len(p["pad"]) <= 4
