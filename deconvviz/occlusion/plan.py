"""What the fast path does, before anything runs: how each operation is computed, on which windows, in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedOp
from ..model.table import Layer
from ..rules import reach
from ..rules import table as rules
from ..tape.arguments import IDENTITIES, POINTWISE, Pair, bound
from ..tape.operations import Op, Slot, Tape
from .windows import Borders, Place, Window

# Whole maps are cheaper than windows that cover more than this share of them: no gathering, larger convolutions.
COVER = 0.8
# Positions near a border change less: they travel in batches of their own, this many sizes per axis.
SIZES = 4

FULL = "Use method='full'."
# Written for one image, with a state or indices of its batch: on other batches they do not check what they get.
_OF_ONE_BATCH = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
# How much they give depends on the values, and a model may go on with that number.
SIZED_BY_VALUES = frozenset("unique unique_consecutive nonzero argwhere masked_select nms".split())
RESHAPES = ("view", "reshape", "unflatten", "flatten", "view_as", "reshape_as")
# Views that leave alone what they do not name; `flip`, `roll` and the like are not among them.
_VIEWS = (
    *RESHAPES,
    *"permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze getitem select narrow chunk split".split(),
    *"tensor_split unbind split_with_sizes unsafe_chunk unsafe_split hsplit vsplit".split(),
)
_OWN_CHANNELS = ("batch_norm", "prelu", "local_response_norm")


class Unbatched(UnsupportedOp):
    """An operation that was recorded for one image does not run for several as it stands."""


class Way(Enum):
    """How an operation is computed where only windows of its inputs changed."""

    SLIDE = "a kernel slides over the windows"
    POINTWISE = "each position alone, constants cut to the windows"
    CHANNELS = "each position alone, constants belong to the channels"
    JOIN = "windows side by side"
    VIEW = "positions stay, other dimensions move"
    BORDER = "the windows move"
    WHOLE = "on whole tensors"


@dataclass(frozen=True, eq=False)
class Step:
    """One operation, how it runs, and the values that nothing reads after it."""

    op: Op
    way: Way
    frees: tuple[int, ...]
    alone: bool  # nothing else reads or shares the memory of its first input
    arguments: Mapping[str, Any]  # of a kernel or a border, by name

    @property
    def kernel(self) -> Pair:
        """Height and width of the kernel that slides."""
        weight = self.arguments.get("weight")
        return self.arguments["kernel_size"] if weight is None else tuple(weight.shape[2:])

    def reads(self, axis: int, count: int) -> int:
        """How many lines `count` outputs of a kernel read along an axis."""
        return (count - 1) * self.arguments["stride"][axis] + self._span(axis) + 1

    def borders(self, shape: torch.Size, out: torch.Size) -> Borders:
        """What a kernel reads around a map of `shape`: left, right, top, bottom."""
        sides: list[int] = []
        for axis in (1, 0):
            padding = self.arguments["padding"][axis]
            sides += [padding, max(0, self.reads(axis, out[-2 + axis]) - padding - shape[-2 + axis])]
        return sides[0], sides[1], sides[2], sides[3]

    def slide(self, window: Window, out: torch.Size) -> Window:
        """The outputs of a kernel that read what changed in the windows."""
        places = []
        for axis, place in enumerate((window.rows, window.cols)):
            stride, padding = self.arguments["stride"][axis], self.arguments["padding"][axis]
            low = -((self._span(axis) - padding - place.low) // stride)  # rounded up
            high = (place.high - 1 + padding) // stride + 1
            length = out[-2 + axis]
            places.append(Place.around(low.clamp(0, length), high.clamp(0, length), length))
        return Window(*places)

    def margins(self) -> Borders:
        """What a border adds: left, right, top, bottom; negative where it cuts."""
        left, right, top, bottom = (*self.arguments["pad"], 0, 0)[:4]
        return left, right, top, bottom

    def move(self, window: Window, out: torch.Size) -> Window:
        """The same windows on a map with its border; what is cut off changes nothing."""
        left, _, top, _ = self.margins()
        if min(self.margins()) >= 0:
            return Window(window.rows.shift(top), window.cols.shift(left))
        places = []
        for place, by, length in ((window.rows, top, out[-2]), (window.cols, left, out[-1])):
            places.append(Place.around((place.low + by).clamp(0, length), (place.high + by).clamp(0, length), length))
        return Window(*places)

    def _span(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.arguments.get("dilation", (1, 1))[axis]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one image's occluded versions are computed: `steps` up to `cut` on windows where that is less work."""

    tape: Tape
    steps: tuple[Step, ...]
    cut: int
    crossing: tuple[int, ...]  # the values that are needed whole after the cut
    boxes: Tensor  # (P, 4), on the CPU

    @staticmethod
    def of(tape: Tape, layer: Layer | None, boxes: Tensor) -> Plan:
        """Plan for the recorded pass of one image, and refuse what cannot run for several at once."""
        assert tape.output is not None
        ops = tape.needed_for({tape.output} | ({layer.value} if layer else set()))
        _check(tape, ops)
        last = {v: i for i, op in enumerate(ops) for v in op.inputs}
        uses = {v: sum(v in op.inputs for op in ops) for v in last}
        uses[tape.output] = uses[0] = 2
        if layer is not None:
            uses[layer.value] = 2
        fresh: set[int] = set()  # share their memory with nothing
        steps = []
        for i, op in enumerate(ops):
            way = way_of(op, tape)
            frees = tuple(v for v in dict.fromkeys(op.inputs) if last[v] == i and v != tape.output)
            alone = uses[op.inputs[0]] == 1 and op.inputs[0] in fresh
            steps.append(Step(op, way, frees, alone, bound(op) if way in (Way.SLIDE, Way.BORDER) else {}))
            if way in (Way.SLIDE, Way.POINTWISE) or op.short in _OWN_CHANNELS:
                fresh.update(op.outputs)
        cut = _cut(tape, ops)
        before = {v for op in ops[:cut] for v in op.outputs} | {0}
        after = {v for op in ops[cut:] for v in op.inputs} | {tape.output}
        return Plan(tape, tuple(steps), cut, tuple(sorted(before & after)), boxes.cpu())

    def windows(self, boxes: Tensor, cover: float = COVER) -> dict[int, Window | None]:
        """Return where each value before the cut changes for `boxes` (B, 4); None where it is computed whole."""
        shapes = self.tape.shapes
        found: dict[int, Window | None] = {0: Window.around(boxes, shapes[0][-2:])}
        for step in self.steps[: self.cut]:
            window = self._window(step, [found[v] for v in step.op.inputs], cover)
            found.update(dict.fromkeys(step.op.outputs, window))
        return found

    def _window(self, step: Step, inputs: Sequence[Window | None], cover: float) -> Window | None:
        windows = [window for window in inputs if window is not None]
        if step.way is Way.WHOLE or len(windows) < len(inputs):
            return None
        out = self.tape.shapes[step.op.outputs[0]]
        if step.way is Way.SLIDE:
            window = step.slide(windows[0], out)
        elif step.way is Way.BORDER:
            return step.move(windows[0], out)
        else:
            window = Window.joined(windows, out[-2:])
            if window is windows[0]:
                return window
        return None if window.rows.size * window.cols.size > cover * out[-2:].numel() else window

    def groups(self) -> Iterator[Tensor]:
        """Yield the numbers of positions that change about as much, group by group."""
        sizes = self._shares
        group = sizes[0] * SIZES + sizes[1]
        for number in group.unique().tolist():
            yield (group == number).nonzero().flatten()

    @cached_property
    def _shares(self) -> Tensor:
        """Class each position by the share of the maps' rows and columns that it changes, weighted by work: (2, P)."""
        windows = self.windows(self.boxes, float("inf"))
        share = torch.zeros(2, len(self.boxes), dtype=torch.float64)
        for step in self.steps[: self.cut]:
            window, out = windows[step.op.outputs[0]], self.tape.shapes[step.op.outputs[0]]
            if window is not None and step.op.short == "conv2d":
                work = out.numel() * step.arguments["weight"][0].numel()
                for axis, place in enumerate((window.rows, window.cols)):
                    share[axis] += work * (place.high - place.low).clamp(min=0) / out[-2 + axis]
        low, high = share.amin(1, keepdim=True), share.amax(1, keepdim=True)
        scaled = (share - low) / (high - low).clamp_min(1e-9)
        return (scaled * SIZES).long().clamp(max=SIZES - 1)

    def largest(self, boxes: Tensor) -> int:
        """Elements of the largest tensor of one position before the cut."""
        windows, most = self.windows(boxes), 1
        for step in self.steps[: self.cut]:
            for value in step.op.outputs:
                shape, window = self.tape.shapes[value], windows[value]
                pixels = shape[-2:].numel() if window is None else window.rows.size * window.cols.size
                most = max(most, shape[1:].numel() // max(1, shape[-2:].numel()) * pixels)
        return most


def _check(tape: Tape, ops: Sequence[Op]) -> None:
    """Refuse what was recorded for one image and cannot be computed for several."""
    if tape.reads:
        raise Unbatched(
            f"{tape.reads[0].where} takes numbers out of the image's own pass, which may be others for an occluded "
            f"image. {FULL}"
        )
    for op in tape.ops:
        if op.short in SIZED_BY_VALUES:
            raise Unbatched(f"{op.where} gives as many numbers as the data says. {FULL}")
    for op in ops:
        if op.short in _OF_ONE_BATCH:
            raise Unbatched(f"{op.where} has a state for each image of its batch. {FULL}")
    for op in ops:
        if " " in op.name:
            raise Unbatched(f"{op.where} cannot be seen, nor done again. {FULL}")
        if op.short == "batch_norm" and rules.RULES["batch_norm"].refuse(op) is not None:
            raise Unbatched(f"{op.where} normalizes with the statistics of its batch. {FULL}")
        for value in op.outputs:
            if tape.shapes[value][:1] != (1,):
                raise Unbatched(
                    f"{op.where} gives {tuple(tape.shapes[value])} for one image, not one row per image. {FULL}"
                )


def _cut(tape: Tape, ops: Sequence[Op]) -> int:
    """The operation from which positions run in large batches: behind the last convolution and pool.

    Fully connected layers read their weights once a batch, so the batch should be all positions.
    """
    cut = 0
    for i, op in enumerate(ops):
        if len(tape.shapes[op.inputs[0]]) == 4 and tape.shapes[op.inputs[0]][-2:] != (1, 1):
            cut = i + 1
    return cut


def way_of(op: Op, tape: Tape) -> Way:
    """Say how an operation runs on windows of its inputs' last two dimensions."""
    shapes = [tape.shapes[v] for v in (*op.inputs, *op.outputs)]
    if any(len(shape) < 3 for shape in shapes):
        return Way.WHOLE
    if op.short in ("conv2d", "max_pool2d", "avg_pool2d"):
        return Way.SLIDE if _slides(op, tape) else Way.WHOLE
    if op.short == "pad":
        return Way.BORDER if len(op.inputs) == 1 and rules.RULES["pad"].local(op, tape) else Way.WHOLE
    if any(shape[-2:] != shapes[0][-2:] for shape in shapes):
        return Way.WHOLE
    if op.short in POINTWISE:
        same = all(len(shape) == len(shapes[0]) for shape in shapes)
        return Way.POINTWISE if same and not op.kwargs.keys() & {"dim", "axis"} else Way.WHOLE
    rule = rules.RULES.get(op.short)
    if rule is not None and rule.kind == "concatenation":
        return Way.JOIN if _joins(op, tape) else Way.WHOLE
    if op.short in _VIEWS:
        return Way.VIEW if _stays(op, tape) else Way.WHOLE
    alone = len(op.inputs) == 1 and shapes[0] == shapes[1]
    if op.short in (*IDENTITIES, *_OWN_CHANNELS) or (rule is not None and rule.kind == "identity"):
        fits = rule is not None and rule.refuse(op) is None
        return Way.CHANNELS if alone and fits else Way.WHOLE
    return Way.WHOLE


def _slides(op: Op, tape: Tape) -> bool:
    rule = rules.RULES[op.short]
    if rule.refuse(op) is not None or not rule.local(op, tape):
        return False
    return op.short != "max_pool2d" or not bound(op)["return_indices"]


def _joins(op: Op, tape: Tape) -> bool:
    """Whether maps of one rank are joined along another dimension than the batch, rows and columns."""
    p, rank = bound(op), len(tape.shapes[op.outputs[0]])
    same = all(x.dim() == rank for x in p["tensors"] if isinstance(x, Tensor))
    return same and isinstance(p["dim"], int) and 1 <= p["dim"] % rank < rank - 2


def _stays(op: Op, tape: Tape) -> bool:
    """Whether a view leaves every row and column where it is, on maps of any size."""
    if op.short == "getitem" and not _plain(op.args[1], len(tape.shapes[op.inputs[0]])):
        return False
    return len(op.inputs) == 1 and reach.stays(op, tape)


def _plain(index: Any, rank: int) -> bool:
    """Whether rows and columns are sliced, if anything: a list of their numbers does not fit a window."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(x is None or isinstance(x, (bool, Slot)) or getattr(x, "dtype", None) == torch.bool for x in items):
        return False
    dots = [i for i, x in enumerate(items) if x is Ellipsis]
    for place in dots[:1]:
        items[place : place + 1] = [slice(None)] * (rank - len(items) + 1)
    return all(isinstance(x, slice) for x in items[rank - 2 :])
