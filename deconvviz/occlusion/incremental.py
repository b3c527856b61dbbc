"""The exact scanner's fast path: only what the occluder can reach is computed again.

The unoccluded pass is kept. For each position the changed part of every tensor is one window; around it the tensor is
as it was. An operation with a local rule gathers the part of its input that its changed outputs read (unoccluded
values with the changed window pasted in) and computes just those outputs. From the point where the windows cover
the map, or where an operation has no local rule, whole tensors are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedOp
from ..model.table import Layer
from ..rules import table as rules
from ..rules.kinds import Kind
from ..tape.arguments import Pair, bound
from ..tape.operations import Op, Tape
from .brute_force import order_of
from .local import tensors, valid
from .windows import Part, Place, Unoccluded

# Whole maps are cheaper than windows that cover more than this share of them: no gathering, larger convolutions.
COVER = 0.8
# The largest tensor of a batch of windows: big enough for the convolutions, small enough to stay near the caches.
WINDOW_BYTES = 24 << 20
# Positions near a border change less: they travel in batches of their own, this many sizes per axis.
SIZES = 4

FULL = "Use method='full'."
Receive = Callable[[Tensor, Tensor, "Tensor | None"], None]


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
    """
    image = tape.kept[0]
    with torch.autocast(image.device.type, dtype, enabled=dtype not in (None, image.dtype)):
        scanner = _Scanner(tape, layer, fill, boxes, memory)
        for number, (positions, output, response) in enumerate(scanner.run()):
            if number == 0 and dtype in (None, image.dtype):
                one = scanner.occluded(boxes[positions[:1]]).contiguous(memory_format=order_of(image))
                _confirm(network, one, output[:1])
            receive(positions, output, response)


class Unbatched(UnsupportedOp):
    """An operation that was recorded for one image does not run for several as it stands."""


def _confirm(network: nn.Module, occluded: Tensor, output: Tensor) -> None:
    """Run one occluded image through the network itself; a network that mixes the batch gives something else."""
    expected = network(occluded)
    if not torch.allclose(output, expected, rtol=0, atol=1e-3 * float(expected.abs().max())):
        raise UnsupportedOp(
            "the network's output for an image depends on the other images of its batch, or on more than its input; "
            "use method='full', memory=1 to run the occluded images one by one."
        )


class _Scanner:
    def __init__(self, tape: Tape, layer: Layer | None, fill: Tensor, boxes: Tensor, memory: int) -> None:
        assert tape.output is not None
        self.tape, self.layer, self.fill, self.boxes = tape, layer, fill, boxes
        self.kept, self.reaches = Unoccluded(tape), rules.reach_all(tape)
        self.ops = tape.needed_for({tape.output} | ({layer.value} if layer else set()))
        self.last_use = {v: i for i, op in enumerate(self.ops) for v in op.inputs}
        self.uses = {v: sum(v in op.inputs for op in self.ops) for v in self.last_use}
        self.cut = self._cut()
        self.large, self.small = self._batches(memory)

    def run(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield (positions, outputs, responses), batch by batch."""
        for batch in _gathered(self._groups(), self.large):
            heads, responses = [], []
            for group in batch:
                parts = {0: self.windows(self.boxes[group])}
                response = self._advance(parts, 0, self.cut)
                heads.append({v: self.kept.whole(v, parts[v]) for v in self._crossing()})
                if response is not None:
                    responses.append(response)
            joined = {v: Part(torch.cat([h[v] for h in heads])) for v in heads[0]}
            late = self._advance(joined, self.cut, len(self.ops))
            assert self.tape.output is not None
            output = self.kept.whole(self.tape.output, joined[self.tape.output])
            yield torch.cat(batch), output, torch.cat(responses) if responses else late

    def _groups(self) -> Iterator[Tensor]:
        """Yield position numbers in batches of at most `small` that change about as much."""
        sizes = [self._sizes(axis) for axis in (0, 1)]
        group = sizes[0] * SIZES + sizes[1]
        for number in group.unique().tolist():
            yield from (group == number).nonzero().flatten().split(self.small)

    def _sizes(self, axis: int) -> Tensor:
        """Class each position by the share of the maps' rows (columns) that it changes, weighted by work."""
        low, high = self.boxes[:, axis].numpy()[:, None], self.boxes[:, 2 + axis].numpy()[:, None]
        share = np.zeros(len(self.boxes))
        for op in self.ops:
            reach = self.reaches[op.outputs[0]]
            if op.short == "conv2d" and reach.dims == (2, 3):
                span = (reach.rows, reach.cols)[axis]
                work = self.tape.shapes[op.outputs[0]].numel() * bound(op)["weight"][0].numel()
                share += work * ((span.lo < high) & (span.hi > low)).mean(1)
        scaled = (share - share.min()) / max(float(np.ptp(share)), 1e-9)
        return torch.from_numpy(np.minimum((scaled * SIZES).astype(np.int64), SIZES - 1))

    def _advance(self, parts: dict[int, Part], start: int, stop: int) -> Tensor | None:
        """Run operations `start` to `stop` on `parts`; return the layer's response if it came by."""
        response, keep = None, {self.tape.output}
        for i in range(start, stop):
            op = self.ops[i]
            for value, part in zip(op.outputs, self._step(op, [parts[v] for v in op.inputs]), strict=True):
                parts[value] = part
                if self.layer is not None and value == self.layer.value:
                    response = self.layer.as_maps(self.kept.whole(value, part)).contiguous()
            for value in set(op.inputs) - keep:
                if self.last_use[value] == i:
                    del parts[value]
        return response

    def _step(self, op: Op, inputs: list[Part]) -> list[Part]:
        if all(p.rows is not None for p in inputs):
            if rules.kind_of(op) is Kind.CONVOLUTION and rules.RULES[op.short].local(op, self.tape):
                out = self._slide(op, inputs[0], tuple(bound(op)["weight"].shape[2:]), 0.0)
            elif op.short == "max_pool2d" and not bound(op)["return_indices"]:
                out = self._slide(op, inputs[0], bound(op)["kernel_size"], -torch.inf)
            elif op.short == "avg_pool2d" and rules.RULES["avg_pool2d"].local(op, self.tape):
                out = self._slide(op, inputs[0], bound(op)["kernel_size"], 0.0)
            else:
                out = self._in_place(op, inputs)
            if out is not None:
                return out
        return [
            Part(x) for x in self._replay(op, [self.kept.whole(v, p) for v, p in zip(op.inputs, inputs, strict=True)])
        ]

    def occluded(self, boxes: Tensor) -> Tensor:
        """The whole occluded images (B, C, H, W)."""
        return self.kept.whole(0, self.windows(boxes))

    def windows(self, boxes: Tensor) -> Part:
        """Windows of the occluded image, as large as the largest occluder."""
        height, width = self.tape.shapes[0][-2:]
        rows, h = Place.around(boxes[:, 0], boxes[:, 2], height)
        cols, w = Place.around(boxes[:, 1], boxes[:, 3], width)
        data = self.kept.gather(0, None, rows.start, cols.start, (h, w))
        row, col = rows.start[:, None] + torch.arange(h), cols.start[:, None] + torch.arange(w)
        inside = ((row >= rows.low[:, None]) & (row < rows.high[:, None]))[:, None, :, None] & (
            (col >= cols.low[:, None]) & (col < cols.high[:, None])
        )[:, None, None, :]
        index = (row[:, :, None] * width + col[:, None, :]).to(data.device)
        cover = self.fill.flatten(1)[:, index].movedim(0, 1).to(data.dtype)
        return Part(torch.where(inside.to(data.device), cover, data), rows, cols)

    def _slide(self, op: Op, part: Part, kernel: Pair, outside: float) -> list[Part] | None:
        """Run a convolution or a pool on what its changed outputs read; None when that is most of the map."""
        p, shape, (out_h, out_w) = bound(op), self.tape.shapes[op.inputs[0]], self.tape.shapes[op.outputs[0]][-2:]
        assert part.rows is not None and part.cols is not None
        places, counts, reads, borders = [], [], [], []
        for axis, (place, out) in enumerate(((part.rows, out_h), (part.cols, out_w))):
            stride, padding = p["stride"][axis], p["padding"][axis]
            span = (kernel[axis] - 1) * p.get("dilation", (1, 1))[axis]
            low = -((span - padding - place.low) // stride)  # ceil: the first output that reads what changed
            high = (place.high - 1 + padding) // stride + 1
            place, count = Place.around(low.clamp(0, out), high.clamp(0, out), out)
            places.append(place)
            counts.append(count)
            reads.append((count - 1) * stride + span + 1)
            borders.append((padding, max(0, (out - 1) * stride + span + 1 - padding - shape[2 + axis])))
        if counts[0] * counts[1] > COVER * out_h * out_w:
            return None
        rows, cols = places
        top, left = rows.start * p["stride"][0], cols.start * p["stride"][1]  # on the padded map
        edges, read = (*borders[1], *borders[0]), (reads[0], reads[1])
        data = self.kept.gather(op.inputs[0], part, top, left, read, edges, outside)
        return [Part(valid(op, p, kernel, data), rows, cols)]

    def _in_place(self, op: Op, inputs: list[Part]) -> list[Part] | None:
        """Run an operation whose outputs sit where its inputs do; None when it moves or mixes positions."""
        if not rules.stays(op, self.tape, self.reaches):
            return None
        kind = rules.kind_of(op)
        if kind is Kind.BORDER:
            return self._border(op, inputs[0])
        if len(inputs) > 1:
            joined = self.kept.join(op.inputs, inputs, self.tape.shapes[op.outputs[0]], COVER)
            if joined is None:
                return None
            inputs = joined
        part = inputs[0]
        if kind is Kind.VIEW:
            shapes = [self.tape.shapes[v] for v in op.outputs]
            if op.short in ("view", "reshape", "view_as", "reshape_as", "unflatten", "flatten"):
                data = [part.data.reshape(len(part.data), *shapes[0][1:-2], *part.data.shape[-2:])]
            else:
                data = tensors(op.replay([part.data]))
        elif op.short == "relu":
            alone = self.uses[op.inputs[0]] == 1 and op.inputs[0] != getattr(self.layer, "value", None)
            data = [part.data.relu_() if alone else part.data.relu()]
        else:
            data = tensors(op.replay([x.data for x in inputs]))
        return [Part(x, part.rows, part.cols) for x in data]

    def _border(self, op: Op, part: Part) -> list[Part]:
        margins = bound(op)["pad"]
        assert part.rows is not None and part.cols is not None
        return [Part(part.data, part.rows.shift(margins[2] if len(margins) > 2 else 0), part.cols.shift(margins[0]))]

    def _replay(self, op: Op, inputs: list[Tensor]) -> list[Tensor]:
        """Run an operation on whole tensors of B positions; it was recorded with one image."""
        count = len(inputs[0])
        try:
            out = self._replayed(op, inputs, count)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise Unbatched(f"{op.where} ran for one image and cannot for several: {error}. {FULL}") from error
        for value, tensor in zip(op.outputs, out, strict=True):
            if tensor.shape != (count, *self.tape.shapes[value][1:]):
                raise Unbatched(f"{op.where} mixes images of a batch. {FULL}")
        return out

    def _replayed(self, op: Op, inputs: list[Tensor], count: int) -> list[Tensor]:
        if op.short in ("view", "reshape", "unflatten", "flatten", "view_as", "reshape_as"):
            return [inputs[0].reshape(count, *self.tape.shapes[op.outputs[0]][1:])]
        if op.short in ("expand", "expand_as", "repeat", "tile"):
            return [torch.cat([op.replay([x[i : i + 1] for x in inputs]) for i in range(count)])]
        return tensors(op.replay(inputs))

    def _cut(self) -> int:
        """The operation from which positions run in large batches: behind the last convolution and pool.

        Fully connected layers read their weights once a batch, so the batch should be all positions.
        """
        cut = 0
        for i, op in enumerate(self.ops):
            if len(self.tape.shapes[op.inputs[0]]) == 4 and self.tape.shapes[op.inputs[0]][-2:] != (1, 1):
                cut = i + 1
        return cut

    def _crossing(self) -> list[int]:
        made = {v for op in self.ops[: self.cut] for v in op.outputs} | {0}
        read = {v for op in self.ops[self.cut :] for v in op.inputs} | {self.tape.output}
        return sorted(v for v in made & read if v is not None)

    def _batches(self, memory: int) -> tuple[int, int]:
        size = self.tape.kept[0].element_size()
        ends = sum(self.tape.shapes[v][1:].numel() for v in self._crossing())
        if self.layer is not None:
            ends += self.tape.shapes[self.layer.value][1:].numel()
        large = max(1, int(memory / 4 / (size * max(1, ends))))
        largest = self._largest_window()
        small = max(1, int(min(memory / 4, WINDOW_BYTES) / (size * largest)))
        if self.fill.device.type == "cuda":
            small = max(1, int(memory / 8 / (size * largest)))
        return large, min(small, large)

    def _largest_window(self) -> int:
        """Elements of the largest tensor of one position, found by sending one position through."""
        middle = self.boxes[len(self.boxes) // 2 : len(self.boxes) // 2 + 1]
        parts, largest = {0: self.windows(middle)}, 1
        for i, op in enumerate(self.ops[: self.cut]):
            for value, part in zip(op.outputs, self._step(op, [parts[v] for v in op.inputs]), strict=True):
                parts[value] = part
                largest = max(largest, part.data[0].numel())
            for value in set(op.inputs) - {self.tape.output}:
                if self.last_use[value] == i:
                    del parts[value]
        return largest


def _gathered(groups: Iterator[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Join groups to batches of at most `limit` positions (one group at the least)."""
    batch: list[Tensor] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > limit:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
