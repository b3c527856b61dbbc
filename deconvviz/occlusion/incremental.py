"""The exact scanner's fast path: only what the occluder can reach is computed again.

The unoccluded pass is kept. For each position the changed part of every tensor is one window; around it the tensor is
as it was. An operation that works on windows gathers the part of its input that its changed outputs read (unoccluded
values with the changed window pasted in) and computes just those outputs. From the point where the windows cover
the map, or where an operation needs whole tensors, whole tensors are computed. `plan` says which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices import Portions, lacks_memory, release, sent
from ..model.table import Layer
from ..tape.operations import Op, Tape, mapped, tensors_in
from .answer import Answer, Pass, recorded_answer
from .confirm import Confirmation, between_strangers
from .memory import MOST_ELEMENTS
from .plan import FULL, RESHAPES, Plan, Step, Unbatched, Way
from .windows import Part, Unoccluded, Window

# The largest tensor of a batch of windows: big enough for the convolutions, small enough to stay near the caches.
WINDOW_BYTES = 24 << 20

Receive = Callable[[Tensor, Tensor, "Tensor | None"], None]
# Positions, the tensors at the cut by value, and the layer's response where it came before.
_Found = TypeVar("_Found")
_Early = tuple[Tensor, "dict[int, Tensor]", "Tensor | None"]


def run_boxes(
    network: nn.Module,
    tape: Tape,
    fill: Tensor,
    boxes: Tensor,
    layer: Layer | None,
    receive: Receive,
    *,
    memory: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Hand the network's outputs for every occluded image to `receive(positions, output, response)`.

    Must be called inside `untouched`. `tape` has all tensors of the image's own pass, `fill` is (C, H, W), `boxes` are
    (P, 4), `response` is the layer's (b, units, height, width) or None. `memory` bounds the bytes of one batch.

    Raises:
        Unbatched: The network cannot be followed for several images at once, or does otherwise than was recorded.
    """
    image = tape.kept[0]
    with torch.autocast(image.device.type, dtype, enabled=dtype not in (None, image.dtype)):
        runner = Runner(Plan.of(tape, layer, boxes), layer, fill, memory, exact=dtype in (None, image.dtype))
        # The network's own precision is that of the scan: the autocast above holds for it, too.
        confirmation = Confirmation(Pass(network, tape, layer, None), recorded_answer(tape, layer), dtype)
        middle = runner.plan.boxes[len(boxes) // 2]
        confirmation.check(runner.between_others(middle), runner.occluded(middle[None]))
        for positions, output, response in runner.run():
            confirmation.watch(positions, Answer(output, response))
            receive(positions, output, response)
        changed, answer = confirmation.most_changed()
        for i, position in enumerate(changed.tolist()):
            confirmation.check(answer.row(i), runner.occluded(runner.plan.boxes[position][None]))


class Runner:
    """Computes what a plan says."""

    def __init__(self, plan: Plan, layer: Layer | None, fill: Tensor, memory: int, *, exact: bool) -> None:
        self.plan, self.layer, self.fill, self.exact = plan, layer, fill, exact
        self.tape, self.kept = plan.tape, Unoccluded(plan.tape)
        self.memory = memory
        ends = sum(self.tape.shapes[v][1:].numel() for v in plan.crossing)
        if layer is not None:
            ends += self.tape.shapes[layer.value][1:].numel()
        bytes_each = self.tape.kept[0].element_size() * max(1, ends)
        self.large = Portions(min(int(memory / 4 / bytes_each), MOST_ELEMENTS // max(1, ends)))

    def run(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield (positions, outputs, responses), batch by batch."""
        waiting: list[_Early] = []

        def work(positions: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            early = self._tried(positions, others=bool(waiting))
            if early is None:  # what waits takes the room
                yield from self._late(waiting)
                waiting.clear()
                release()
                early = self._early(positions)
            if waiting and sum(len(w[0]) for w in waiting) + len(early[0]) > self.large.most:
                yield from self._late(waiting)
                waiting.clear()
            waiting.append(early)

        limit = len(self.plan.boxes)
        for group in self.plan.groups():
            fits = min(self.most(self.plan.boxes[group]), self.large.most, limit)
            small = Portions(fits)
            yield from small.steps(work, group)
            limit = limit if small.most == fits else small.most
        if waiting:
            yield from self._late(waiting)

    def between_others(self, box: Tensor) -> Answer:
        """Answer for one box in a batch between others of far other colours: nothing of them may get in."""
        return self.three_or_one(lambda: self._answer(box.expand(3, 4)).row(1), lambda: self._answer(box[None]))

    def three_or_one(self, three: Callable[[], _Found], one: Callable[[], _Found]) -> _Found:
        """Return what `three` positions at once find, or where memory lacks for them `one`, as all do from here on."""
        try:
            return three()
        except Exception as error:
            if not lacks_memory(error):
                raise
        self.large.most = 1
        release()
        return one()

    def _answer(self, boxes: Tensor) -> Answer:
        strangers = len(boxes) > 1
        parts = {0: self.windows(boxes, strangers=strangers)}
        response = self.advance(parts, 0, self.plan.cut, self.plan.windows(boxes), strangers=strangers)
        whole = {v: Part(self._whole(v, parts[v], strangers)) for v in self.plan.crossing}
        late = self.advance(whole, self.plan.cut, len(self.plan.steps), {})
        return Answer(self._output(whole), late if response is None else response)

    def occluded(self, boxes: Tensor) -> Tensor:
        """The whole occluded images (B, C, H, W)."""
        return self.kept.whole(0, self.windows(boxes))

    def windows(self, boxes: Tensor, *, strangers: bool = False) -> Part:
        """Windows of the occluded image, as large as the largest occluder; `strangers`: all but the second are far off."""
        height, width = self.tape.shapes[0][-2:]
        window = Window.around(boxes, (height, width))
        rows, cols = window.rows, window.cols
        data = self.kept.gather(0, None, rows.start, cols.start, window.size)
        edges = [rows.start, rows.low, rows.high, cols.start, cols.low, cols.high]
        at = sent(torch.stack(edges), data.device)[:, :, None]
        row = at[0] + torch.arange(rows.size, device=data.device)
        col = at[3] + torch.arange(cols.size, device=data.device)
        inside = ((row >= at[1]) & (row < at[2]))[:, None, :, None] & ((col >= at[4]) & (col < at[5]))[:, None, None, :]
        cover = self.fill.flatten(1)[:, row[:, :, None] * width + col[:, None, :]].movedim(0, 1).to(data.dtype)
        covered = torch.where(inside, cover, data)
        return Part(between_strangers(covered[1:2]) if strangers else covered, window)

    def most(self, boxes: Tensor) -> int:
        """How many positions of a group fit into one batch of windows."""
        size, largest = self.tape.kept[0].element_size(), self.plan.largest(boxes)
        room = min(self.memory / 4, WINDOW_BYTES) if self.fill.device.type == "cpu" else self.memory / 8
        return max(1, min(int(room / (size * largest)), MOST_ELEMENTS // largest, self.large.most))

    def _tried(self, positions: Tensor, *, others: bool) -> _Early | None:
        """Do the early part; return None where memory lacks and there are others that may hold it."""
        try:
            return self._early(positions)
        except Exception as error:
            if not others or not lacks_memory(error):
                raise
            return None

    def _early(self, positions: Tensor) -> _Early:
        boxes = self.plan.boxes[positions]
        parts = {0: self.windows(boxes)}
        response = self.advance(parts, 0, self.plan.cut, self.plan.windows(boxes))
        return positions, {v: self.kept.whole(v, parts[v]) for v in self.plan.crossing}, response

    def _late(self, waiting: Sequence[_Early]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        positions = torch.cat([w[0] for w in waiting])
        heads = {v: [w[1][v] for w in waiting] for v in self.plan.crossing}
        early = [w[2] for w in waiting if w[2] is not None]

        def finish(rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            where = slice(int(rows[0]), int(rows[-1]) + 1)
            parts = {v: Part(_joined(head, where)) for v, head in heads.items()}
            late = self.advance(parts, self.plan.cut, len(self.plan.steps), {})
            return positions[where], self._output(parts), _joined(early, where) if early else late

        yield from self.large.run(finish, torch.arange(len(positions)))

    def _output(self, parts: dict[int, Part]) -> Tensor:
        assert self.tape.output is not None
        return self.kept.whole(self.tape.output, parts[self.tape.output])

    def advance(
        self,
        parts: dict[int, Part],
        start: int,
        stop: int,
        windows: dict[int, Window | None],
        *,
        strangers: bool = False,
    ) -> Tensor | None:
        """Run steps `start` to `stop` on `parts`; return the layer's response if it came by.

        `strangers`: the second of three is between two that have nothing of it, around their windows either.
        """
        response = None
        for step in self.plan.steps[start:stop]:
            window = windows.get(step.op.outputs[0])
            for value, part in zip(step.op.outputs, self._step(step, parts, window, strangers), strict=True):
                parts[value] = part
                if self.layer is not None and value == self.layer.value:
                    response = self.layer.as_maps(self.kept.whole(value, part)).contiguous()
            for value in step.frees:
                del parts[value]
        return response

    def _step(self, step: Step, parts: dict[int, Part], window: Window | None, strangers: bool) -> list[Part]:
        inputs = [parts[v] for v in step.op.inputs]
        if window is not None and all(part.window is not None for part in inputs):
            data = self._on_windows(step, inputs, window)
            if data is not None:
                return [Part(x, window) for x in data]
        whole = [self._whole(v, part, strangers) for v, part in zip(step.op.inputs, inputs, strict=True)]
        return [Part(x) for x in self._on_whole(step.op, whole)]

    def _whole(self, value: int, part: Part, strangers: bool) -> Tensor:
        """The whole tensor (B, …); what would fill it up around the windows of strangers is the image's own."""
        data = self.kept.whole(value, part)
        foreign = strangers and part.window is not None and data.is_floating_point()
        return between_strangers(data[1:2]) if foreign else data

    # ---- on windows ----

    def _on_windows(self, step: Step, parts: list[Part], window: Window) -> list[Tensor] | None:
        """Run a step on windows; None where it does not work on tensors of that size."""
        op = step.op
        try:
            if step.way is Way.SLIDE:
                data = [self._slide(step, parts[0], window)]
            elif step.way is Way.BORDER:
                data = [self._border(step, parts[0], window)]
            else:
                inputs = [self.kept.at(v, p, window) for v, p in zip(op.inputs, parts, strict=True)]
                data = self._in_place(step, inputs, window)
        except (RuntimeError, ValueError, IndexError) as error:
            if lacks_memory(error) or step.way is Way.SLIDE:
                raise
            return None
        count = len(parts[0].data)
        for value, tensor in zip(op.outputs, data, strict=True):
            if tensor.shape != (count, *self.tape.shapes[value][1:-2], *window.size):
                return None
            self._check_precision(op, value, tensor)
        return data

    def _slide(self, step: Step, part: Part, window: Window) -> Tensor:
        """Run a convolution or a pool on what its changed outputs read: the windows bring their own borders."""
        op, p, value = step.op, step.arguments, step.op.inputs[0]
        borders = step.borders(self.tape.shapes[value], self.tape.shapes[op.outputs[0]])
        read = step.reads(0, window.rows.size), step.reads(1, window.cols.size)
        top, left = window.rows.start * p["stride"][0], window.cols.start * p["stride"][1]  # on the padded map
        outside = -torch.inf if op.short == "max_pool2d" else 0.0
        data = self.kept.gather(value, part, top, left, read, borders, outside)
        if op.short == "conv2d":
            return F.conv2d(data, p["weight"], p["bias"], p["stride"], 0, p["dilation"], p["groups"])
        if op.short == "max_pool2d":
            return F.max_pool2d(data, step.kernel, p["stride"], 0, p["dilation"])
        return F.avg_pool2d(data, step.kernel, p["stride"], 0, divisor_override=p["divisor_override"])

    def _border(self, step: Step, part: Part, window: Window) -> Tensor:
        left, right, top, bottom = step.margins()
        if min(left, right, top, bottom) >= 0:
            return part.data
        borders = max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)
        first = window.rows.start + max(-top, 0), window.cols.start + max(-left, 0)
        return self.kept.gather(step.op.inputs[0], part, *first, window.size, borders, step.arguments["value"] or 0.0)

    def _in_place(self, step: Step, inputs: list[Tensor], window: Window) -> list[Tensor]:
        """Run a step whose outputs sit where its inputs do."""
        op, shapes = step.op, self.tape.shapes
        if op.short == "relu":
            return [inputs[0].relu_() if step.alone else inputs[0].relu()]
        if step.way is Way.VIEW and op.short in RESHAPES:
            return [inputs[0].reshape(len(inputs[0]), *shapes[op.outputs[0]][1:-2], *window.size)]
        if step.way is Way.POINTWISE:
            op = _with_constants(op, lambda x: self.kept.crop(x, window, shapes[op.outputs[0]]))
        elif step.way is Way.JOIN:
            count, shape = len(inputs[0]), shapes[op.outputs[0]]
            op = _with_constants(op, lambda x: self._spread(self.kept.crop(x, window, shape), count, window))
        return list(tensors_in(op.replay(inputs)))

    def _spread(self, constant: Tensor, count: int, window: Window) -> Tensor:
        return constant.expand(count, *constant.shape[1:-2], *window.size)

    # ---- on whole tensors ----

    def _on_whole(self, op: Op, inputs: list[Tensor]) -> list[Tensor]:
        """Run an operation on whole tensors of B positions; it was recorded with one image."""
        count = len(inputs[0])
        try:
            out = self._replayed(op, inputs, count)
        except (RuntimeError, ValueError, IndexError) as error:
            if lacks_memory(error):
                raise
            raise Unbatched(f"{op.where} ran for one image and cannot for several: {error}. {FULL}") from error
        for value, tensor in zip(op.outputs, out, strict=True):
            if tensor.shape != (count, *self.tape.shapes[value][1:]):
                raise Unbatched(f"{op.where} mixes images of a batch. {FULL}")
            self._check_precision(op, value, tensor)
        return out

    def _replayed(self, op: Op, inputs: list[Tensor], count: int) -> list[Tensor]:
        if op.short in RESHAPES:
            return [inputs[0].reshape(count, *self.tape.shapes[op.outputs[0]][1:])]
        if op.short in ("expand", "expand_as"):
            return [inputs[0].expand(count, *self.tape.shapes[op.outputs[0]][1:])]
        if op.short in ("cat", "concat", "concatenate") and inputs[0].dim() > 1:
            # What is the same for every image was recorded for one.
            rank = inputs[0].dim()
            op = _with_constants(op, lambda x: x.expand(count, *x.shape[1:]) if x.dim() == rank and len(x) == 1 else x)
        return list(tensors_in(op.replay(inputs)))

    def _check_precision(self, op: Op, value: int, tensor: Tensor) -> None:
        recorded = self.tape.kept[value].dtype
        if self.exact and tensor.dtype != recorded:
            raise Unbatched(f"{op.where} ran in {recorded} in the model, by a setting of its own. {FULL}")


def _joined(parts: Sequence[Tensor], where: slice) -> Tensor:
    """Return some rows of tensors as if these were one."""
    found, first = [], 0
    for part in parts:
        low, high = max(where.start - first, 0), min(where.stop - first, len(part))
        if low < high:
            found.append(part[low:high])
        first += len(part)
    return found[0] if len(found) == 1 else torch.cat(found)


def _with_constants(op: Op, change: Callable[[Tensor], Tensor]) -> Op:
    """Return the operation with its constant tensors changed."""

    def put(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) else x

    return replace(op, args=mapped(op.args, put), kwargs=mapped(op.kwargs, put))
