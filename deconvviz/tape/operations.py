"""What a tape is made of: operations, the slots of their arguments, their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """The place of a tracked tensor among an operation's arguments."""

    index: int


@dataclass(eq=False)
class Saved:
    """What a recorded operation keeps for its way back, over the N recorded images; None where it needs nothing.

    `switches` (N, C, h, w): which tap of its window each maximum was; `indices` (N, C, h, w): where in the flattened map
    each maximum of an adaptive pool was. `slope` (N, ...): a rectifier's derivative; `scale` (N, ...): what a
    normalization multiplies with, both as large as the input. `gate` (N, ...): the factor of a product, which
    broadcasts to the result, and `gate_slot`: which operand it was, 0 or 1. `at`: the tensors that went in, where the
    operation's own gradient is taken: always if `own`, else where its rule does not fit. `rectified`: what went in is a
    rectifier's result. `separate`: it was seen to treat each image for itself.
    """

    switches: Tensor | None = None
    indices: Tensor | None = None
    slope: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None
    gate_slot: int | None = None
    at: list[Tensor] | None = None
    own: bool = False
    rectified: bool = False
    separate: bool = False


@dataclass(eq=False)
class Op:
    """One operation as it ran.

    `args` and `kwargs` are those of the call, without `out`, with a `Slot` in place of each tracked tensor; `inputs`
    and `outputs` are value numbers. `integral`: no result is a floating-point tensor. `saved` holds what the way back
    needs. `cut`: for each result which of the inputs takes a gradient as it is, None where autograd passes none back; only
    where that was asked for and the operation's derivative does not count. `whole`: it stands for operations before it on
    the tape, which made its results.
    """

    name: str
    func: Callable[..., Any]
    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    in_place: bool = False
    integral: bool = False
    cut: tuple[int | None, ...] | None = None
    whole: bool = False
    saved: Saved = field(default_factory=Saved)

    @property
    def short(self) -> str:
        """The function's bare name: "torch.Tensor.add_" and "operator +=" are both "add"."""
        return short_name(self.name)

    @property
    def where(self) -> str:
        """How an error names the operation."""
        return f"{self.name} in module {self.module!r}" if self.module else f"{self.name} in the model itself"

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run the operation again on other tensors; they and the constants stay as they are."""

        def put(x: Any) -> Any:
            x = inputs[x.index] if isinstance(x, Slot) else x
            return x.clone() if self.in_place and isinstance(x, Tensor) else x

        args, kwargs = mapped(self.args, put), mapped(self.kwargs, put)
        result = self.func(*args, **kwargs)
        return args[0] if result is None else result


@dataclass(eq=False)
class Tape:
    """What one forward pass did.

    `shapes[value]` and `kept[value]` describe and hold tensors by number; value 0 is the images. `calls` maps
    ("module path", nth call) to the value that the module returned; `silent` are the paths of modules that returned
    nothing that depends on the images. `returned` says in words what the network returned. `axes` maps values to their
    dimension of images, once it was worked out; `mixed` are the values of all images together. `reads` are the calls
    that took numbers out of tensors, such as `item()` or an `if`: what the model did with these numbers is not seen.
    `hidden` are those inside a transform of torch.func, where what they do to the images is not seen either.
    """

    ops: list[Op] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[tuple[str, int], int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    axes: dict[int, int | None] = field(default_factory=dict)
    mixed: set[int] | None = None
    output: int | None = None
    returned: str = "a tensor"
    reads: list[Op] = field(default_factory=list)
    hidden: list[Op] = field(default_factory=list)

    def producer(self) -> dict[int, Op]:
        """Map each value to the operation that made it."""
        return {value: op for op in self.ops for value in op.outputs}

    def consumers(self) -> dict[int, list[Op]]:
        """Map each value to the operations that read it."""
        readers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in op.inputs:
                readers.setdefault(value, []).append(op)
        return readers

    def needed_for(self, wanted: Collection[int]) -> list[Op]:
        """Return the operations that any of the values `wanted` depends on, in their order."""
        needed, found = set(wanted), []
        for op in reversed(self.ops):
            if not needed.isdisjoint(op.outputs):
                needed.update(op.inputs)
                found.append(op)
        return found[::-1]


def short_name(name: str) -> str:
    """Return the bare name of a torch function: no package, no underscores, no in-place mark."""
    package, bare = ("." + name).rsplit(".", 1)
    if bare == "__get__":  # a property, such as torch.Tensor.T
        return package.rsplit(".", 1)[-1]
    if bare.startswith("__"):
        bare = bare.strip("_")
        return _OPERATORS.get(bare, bare)
    bare = bare.rstrip("_")
    return _ALIASES.get(bare, bare)


_ALIASES = {
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
}
_OPERATORS = {
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "rsub": "rsub",
    "imul": "mul",
    "rmul": "mul",
    "truediv": "div",
    "itruediv": "div",
}


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors among nested arguments, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested arguments with every leaf changed."""
    if type(tree) in (tuple, list):
        return type(tree)(mapped(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: mapped(item, change) for key, item in tree.items()}
    return change(tree)
