"""What operations cost: multiply-adds counted while they run, parameters given to the operation that uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UnsupportedOp
from ..rules.kinds import Kind
from ..rules.table import kind_of
from ..tape.arguments import bound
from ..tape.operations import Op, Tape, tensors_in
from ..tape.record import Saver

# Multiply in ways that are counted nowhere below: a sum without them would be wrong.
_UNCOUNTED = re.compile(r".*(rnn|lstm|gru|multi_head_attention|transformer_encoder)|_trilinear|_fft")


class Counting:
    """Counts the multiply-adds of each operation, and the biases added with them, while another saver runs it.

    What is counted is what torch's own kernels are called for: an attention or any other function of several
    products counts as all of them. Taps that lie in a padding count, as they do in the papers. What multiplies in a
    way that is not counted is refused where the count is `strict`, else it counts nothing.
    """

    def __init__(self, saver: Saver, *, strict: bool = True) -> None:
        self._saver, self._strict = saver, strict
        self.macs: dict[Op, int] = {}
        self.biases: dict[Op, int] = {}

    def __call__(self, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
        """Run the operation as the other saver does."""

        def counted() -> Any:
            with _Products(op, self._strict) as products:
                result = run()
            if products.macs:
                self.macs[op], self.biases[op] = products.macs, products.biases
            return result

        return self._saver(tape, op, tensors, counted)

    def corrected(self, tape: Tape, network: nn.Module) -> dict[Op, int]:
        """Return each operation's multiply-adds, without those of maps that a module says are not connected."""
        modules = dict(network.named_modules())
        found = dict(self.macs)
        for op in found:
            connected = getattr(modules.get(op.module), "connected", None)
            if connected is not None:
                found[op] = connected * tape.shapes[op.outputs[0]][2:].numel()
        return found


class _Products(TorchDispatchMode):
    """Adds up the products of one operation."""

    def __init__(self, op: Op, strict: bool) -> None:
        super().__init__()
        self._op, self._strict = op, strict
        self.macs = self.biases = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if self._strict and _UNCOUNTED.match(name):
            raise UnsupportedOp(
                f"{self._op.where} runs {name}, whose multiply-adds are not counted. Leave that module out."
            )
        if name.startswith("_scaled_dot_product") and len(args) > 2:
            query, key, value = args[:3]
            self.macs += query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif name in ("convolution", "_convolution", "convolution_overrideable"):
            moved = args[0] if args[6] else result  # a transposed one spreads what goes in
            self.macs += moved.numel() * args[1][0].numel()
            self.biases += 0 if args[2] is None else result.numel()
        elif name == "deform_conv2d":
            self.macs += result.numel() * args[1][0].numel()
        elif name in _PRODUCTS:
            first = _PRODUCTS[name]
            left, right = args[first], args[first + 1]
            self.macs += left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
            self.biases += result.numel() if first else 0
        return result


# Where the left factor stands among the arguments; what is before it is added.
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "addbmm": 1, "baddbmm": 1, "addmv": 1}


def biases(tape: Tape, op: Op, counting: Counting) -> int:
    """Return how many numbers an operation adds that are not made of the images: one for each output, or none."""
    outputs = tape.shapes[op.outputs[0]][1:].numel()
    if op.short == "linear":
        return outputs if bound(op)["bias"] is not None else 0
    if op.short == "add" and any(x.numel() > 1 for x in tensors_in((op.args, op.kwargs))):
        return outputs
    return counting.biases.get(op, 0)


def pooled(tape: Tape, op: Op) -> int:
    """Return how many numbers a pool reads, over all its outputs."""
    before, after = tape.shapes[op.inputs[0]], tape.shapes[op.outputs[0]]
    if op.short in ("max_pool2d", "avg_pool2d", "max_pool2d_with_indices"):
        height, width = bound(op)["kernel_size"]
        return after[1:].numel() * height * width
    if op.short.startswith("adaptive"):
        rows, cols = (_windows(b, a) for b, a in zip(before[-2:], after[-2:], strict=True))
        return after[1:-2].numel() * rows * cols
    return before[1:].numel()  # a mean over all


def _windows(size: int, count: int) -> int:
    """Return the lengths of an adaptive pool's windows, as torch cuts them, in sum."""
    return sum(-(-(i + 1) * size // count) - i * size // count for i in range(count))


POOLS = (Kind.MAX_POOL, Kind.AVERAGE_POOL)


def is_layer(op: Op, macs: Mapping[Op, int]) -> bool:
    """Say whether an operation makes outputs that a paper counts: by products or by a pool."""
    return op in macs or kind_of(op) in POOLS


def owners(tape: Tape, network: nn.Module, macs: Mapping[Op, int]) -> tuple[dict[Op, int], int]:
    """Return how many parameters each operation has, and how many nothing that ran uses.

    A parameter belongs to the first operation that takes it, or a view of it; else, where it is reshaped or computed
    with before, to the first operation with products in the module that holds it, or to its first one. Parameters
    that are shared count once.
    """
    taken: dict[int, Op] = {}
    inside: dict[str, list[Op]] = {}
    for op in tape.ops:
        inside.setdefault(op.module, []).append(op)
        for x in tensors_in((op.args, op.kwargs)):
            taken.setdefault(id(x), op)
            if not x.is_inference() and x._base is not None:
                taken.setdefault(id(x._base), op)
    counts: dict[Op, int] = {}
    idle = 0
    for name, parameter in network.named_parameters():
        path = re.sub(r"(^|\.)parametrizations\..*", "", name.rpartition(".")[0] + ".").removesuffix(".")
        ops = inside.get(path, [])
        user = taken.get(id(parameter)) or next((op for op in ops if op in macs), ops[0] if ops else None)
        if user is None:
            idle += parameter.numel()
        else:
            counts[user] = counts.get(user, 0) + parameter.numel()
    return counts, idle
