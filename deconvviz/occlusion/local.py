"""Operations that slide, run on windows that bring their own borders."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..tape.arguments import Pair
from ..tape.operations import Op


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
