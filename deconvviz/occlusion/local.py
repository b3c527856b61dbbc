"""Operations on windows: which keep every position in its place, and those that slide, without their padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..rules import table as rules
from ..rules.backward import Pair
from ..rules.reach import Reach
from ..tape.record import Op, Tape


def stays(op: Op, tape: Tape, reaches: Mapping[int, Reach]) -> bool:
    """Whether each position of the outputs depends on the same position of the inputs alone."""
    rule = rules.RULES.get(op.short)
    if rule is None:
        return False
    if rule.kind == "border":
        return rules.RULES["pad"].local(op, tape)
    if rule.kind not in ("rectifier", "identity", "normalization", "sum", "concatenation", "product", "view"):
        return False
    if op.short in ("layer_norm", "group_norm", "instance_norm"):
        return False
    if rule.refuse(op) is not None and rule.kind != "product":
        return False
    if rule.kind != "view" and not (rule.local(op, tape) or (op.short == "mul" and len(op.inputs) == 2)):
        return False
    ins, outs = ([reaches[v] for v in values] for values in (op.inputs, op.outputs))
    for values, found in ((op.inputs, ins), (op.outputs, outs)):
        for value, reach in zip(values, found, strict=True):
            n = len(tape.shapes[value])
            if reach.dims != (n - 2, n - 1) or tape.shapes[value][-2:] != tape.shapes[op.inputs[0]][-2:]:
                return False
    if rule.kind != "view":
        return True
    return all(np.array_equal(a.lo, b.lo) for o in outs for a, b in ((o.rows, ins[0].rows), (o.cols, ins[0].cols)))


def valid(op: Op, p: dict[str, Any], kernel: Pair, data: Tensor) -> Tensor:
    """Run a convolution or pool without padding: the windows bring their own borders."""
    if op.short == "conv2d":
        return F.conv2d(data, p["weight"], p["bias"], p["stride"], 0, p["dilation"], p["groups"])
    if op.short == "max_pool2d":
        return F.max_pool2d(data, kernel, p["stride"], 0, p["dilation"])
    return F.avg_pool2d(data, kernel, p["stride"], 0, divisor_override=p["divisor_override"])


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors of what an operation returned."""
    return [result] if isinstance(result, Tensor) else [x for x in result if isinstance(x, Tensor)]


def needed(tape: Tape, wanted: set[int]) -> list[Op]:
    """Drop the operations that nothing wanted depends on."""
    needed, out = set(wanted), []
    for op in reversed(tape.ops):
        if needed & set(op.outputs):
            needed |= set(op.inputs)
            out.append(op)
    return out[::-1]
