"""The fast path seen from one position of a layer: only what that position reads, and the occluder changes, is computed.

An activation reads a pyramid: itself in its own layer, a window of the layer below, its receptive field in the image.
An occluder changes a pyramid the other way round. What is computed again is where the two meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..model.survey import held
from ..model.table import Layer
from ..tape.operations import Tape
from ..tape.record import record
from .confirm import close
from .incremental import Runner
from .memory import MOST_ELEMENTS, Portions
from .plan import COVER, FULL, Plan, Step, Unbatched, Way
from .windows import Part, Place, Window

# (positions (b,), activations (b, units)): what each box leaves of all units at its position of the layer
Receive = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Focus(Plan):
    """A plan for boxes (P, 5), whose last number says which of `goals` (G, 2), positions (row, column), is asked about.

    `needs` has for each value the box (G, 4) of its rows and columns that the goals read, for all that lie on maps.
    """

    goals: Tensor
    needs: dict[int, Tensor]

    @staticmethod
    def on(tape: Tape, layer: Layer, boxes: Tensor, goals: Tensor) -> Focus:
        """Plan for the recorded pass of one image up to the layer."""
        plan = Plan.of(replace(tape, output=layer.value), None, boxes)
        needs = _needs(plan.steps, tape, layer, goals)
        return Focus(plan.tape, plan.steps, len(plan.steps), (), plan.boxes, goals, needs)

    def windows(self, boxes: Tensor, cover: float = COVER) -> dict[int, Window | None]:
        """Return what of each value is computed for `boxes` (B, 5); None where that is the whole tensor."""
        found: dict[int, Window | None] = {0: Window.around(boxes[:, :4], self.tape.shapes[0][-2:])}
        for step in self.steps:
            inputs = [found[v] for v in step.op.inputs]
            window = self._window(step, inputs, float("inf"))
            if window is not None and window is not inputs[0]:
                out = step.op.outputs[0]
                window = _within(window, self.needs[out][boxes[:, 4]], self.tape.shapes[out])
            found.update(dict.fromkeys(step.op.outputs, window))
        return found


def _needs(steps: Sequence[Step], tape: Tape, layer: Layer, goals: Tensor) -> dict[int, Tensor]:
    """Go back from the goals, and note what they read of each value."""
    wide = {v: _all_of(tape.shapes[v], len(goals)) for step in steps for v in (*step.op.inputs, *step.op.outputs)}
    needs: dict[int, Tensor] = {}
    if layer.reach.dims == (2, 3) and len(tape.shapes[layer.value]) == 4:
        needs[layer.value] = torch.cat([goals, goals + 1], 1)
    else:
        needs[layer.value] = wide[layer.value]
    for step in reversed(steps):
        read = [needs[v] for v in step.op.outputs if v in needs]
        if not read:
            continue
        out = _hull(read)
        for value in step.op.inputs:
            before = _read_by(step, out, tape, value) if step.way is not Way.WHOLE else wide[value]
            needs[value] = before if value not in needs else _hull([needs[value], before])
    return wide | needs


def _read_by(step: Step, out: Tensor, tape: Tape, value: int) -> Tensor:
    """Return what of a step's input is read for its outputs in boxes (G, 4)."""
    lengths = tape.shapes[value][-2:]
    if step.way is Way.BORDER:
        left, _, top, _ = step.margins()
        moved = out - torch.tensor([top, left, top, left])
    elif step.way is Way.SLIDE:
        stride, padding = (torch.tensor(step.arguments[name]) for name in ("stride", "padding"))
        first = out[:, :2] * stride - padding
        size = torch.stack([(out[:, 2 + a] - out[:, a] - 1) * int(stride[a]) + step.reads(a, 1) for a in (0, 1)], 1)
        moved = torch.cat([first, first + size], 1)
    else:
        return out
    end = torch.tensor([*lengths, *lengths])
    return torch.minimum(moved.clamp(min=0), end)


def _all_of(shape: torch.Size, count: int) -> Tensor:
    height, width = shape[-2:] if len(shape) > 2 else (1, 1)
    return torch.tensor([0, 0, height, width]).expand(count, 4)


def _hull(boxes: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(boxes))
    return torch.cat([stacked[..., :2].amin(0), stacked[..., 2:].amax(0)], 1)


def _within(window: Window, need: Tensor, shape: torch.Size) -> Window:
    """Cut windows to what is needed (B, 4); one that meets nothing of it gets a place in it."""
    places = []
    for axis, place in enumerate((window.rows, window.cols)):
        first, end = need[:, axis], need[:, axis + 2]
        low = torch.minimum(torch.maximum(place.low, first), end - 1)
        high = torch.maximum(torch.minimum(place.high, end), low)
        places.append(Place.around(low, high, shape[-2 + axis]))
    return Window(*places)


def run_focused(
    network: nn.Module,
    tape: Tape,
    fill: Tensor,
    boxes: Tensor,
    goals: Tensor,
    layer: Layer,
    receive: Receive,
    *,
    memory: int,
) -> None:
    """Hand the layer's activations for every occluded image to `receive`, each box at its own position.

    Must be called inside `untouched`. `tape` has all tensors of the image's own pass up to the layer, `fill` is
    (C, H, W), `boxes` are (P, 5): a box and the number of its goal; `goals` (G, 2) are positions of the layer.

    Raises:
        Unbatched: The network cannot be followed for several images at once, or does otherwise than was recorded.
    """
    runner = Runner(Focus.on(tape, layer, boxes, goals), None, fill, memory, exact=True)
    confirm = _Confirm(network, tape, layer, runner)
    middle = boxes[len(boxes) // 2 :][:1]
    confirm.check(middle, _activations(runner, layer, middle.expand(3, 5), strangers=True)[1])
    most = _Most()
    for positions, found in _run(runner, layer):
        most.look(positions, (found - confirm.usual(boxes[positions])).abs().amax(1), found)
        receive(positions, found)
    if most.found is not None:
        confirm.check(boxes[most.position][None], most.found)


def _run(runner: Runner, layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    plan = runner.plan
    for group in plan.groups():
        portions = Portions(runner.most(plan.boxes[group]))
        yield from portions.run(lambda some: (some, _activations(runner, layer, plan.boxes[some])), group)


def _activations(runner: Runner, layer: Layer, boxes: Tensor, *, strangers: bool = False) -> Tensor:
    """Return the activations (B, units) at the boxes' goals; `strangers`: all but the second are no numbers."""
    plan = runner.plan
    assert isinstance(plan, Focus)
    parts = {0: runner.windows(boxes[:, :4])}
    if strangers:
        parts[0].data[0::2] = torch.nan
    runner.advance(parts, 0, len(plan.steps), plan.windows(boxes))
    return at_goals(runner, parts[layer.value], layer, plan.goals[boxes[:, 4]])


def at_goals(runner: Runner, part: Part, layer: Layer, goals: Tensor) -> Tensor:
    """Return the activations (B, units) of a part at positions (B, 2) of the layer."""
    item = torch.arange(len(goals), device=part.data.device)
    rows, cols = goals.unbind(1)
    if part.window is not None and layer.reach.dims == (2, 3) and part.data.dim() == 4:
        rows, cols = rows - part.window.rows.start, cols - part.window.cols.start
        return part.data[item, :, rows.to(item.device), cols.to(item.device)]
    whole = layer.maps(runner.kept.whole(layer.value, part))
    return whole[item, :, rows.to(item.device), cols.to(item.device)]


class _Most:
    """The position whose activations changed most."""

    def __init__(self) -> None:
        self.position, self.change = 0, -1.0
        self.found: Tensor | None = None

    def look(self, positions: Tensor, changes: Tensor, found: Tensor) -> None:
        """Remember the largest of some changes (b,)."""
        change, where = changes.max(0)
        if float(change) > self.change:
            self.change, self.position, self.found = float(change), int(positions[where]), found[where]


class _Confirm:
    """Asks the network itself about one occluded image, and refuses another answer."""

    def __init__(self, network: nn.Module, tape: Tape, layer: Layer, runner: Runner) -> None:
        self.network, self.layer, self.runner = network, layer, runner
        self.maps = layer.maps(tape.kept[layer.value])[0]  # unoccluded (units, height, width)

    def usual(self, boxes: Tensor) -> Tensor:
        """Return the unoccluded activations (B, units) at the boxes' goals."""
        plan = self.runner.plan
        assert isinstance(plan, Focus)
        rows, cols = plan.goals[boxes[:, 4]].to(self.maps.device).unbind(1)
        return self.maps[:, rows, cols].T

    def check(self, box: Tensor, found: Tensor) -> None:
        """Compare the activations (units,) found for one box (1, 5)."""
        plan = self.runner.plan
        assert isinstance(plan, Focus)
        image = self.runner.kept.whole(0, self.runner.windows(box[:, :4]))
        maps = self.layer.maps(
            held(record(self.network, image, until=self.layer.value, keep=[self.layer.value]), self.layer)
        )
        row, col = plan.goals[box[0, 4]].tolist()
        if not close(found, maps[0, :, row, col], self.usual(box)[0], among=self.maps):
            raise Unbatched(
                "the layer's response to an image depends on the other images of its batch, or on more than its "
                f"input, such as a number that it takes out of the data. {FULL}"
            )


def run_full(
    network: nn.Module,
    image: Tensor,
    fill: Tensor,
    boxes: Tensor,
    goals: Tensor,
    layer: Layer,
    receive: Receive,
    *,
    memory: int,
    alone: bool = False,
) -> None:
    """Do what `run_focused` does by running the network up to the layer on every occluded image: the oracle.

    `alone` runs the images one by one, where those of a batch see each other.
    """
    y, x = (torch.arange(n, device=image.device) for n in image.shape[-2:])

    def measure(positions: Tensor) -> None:
        top, left, bottom, right = (edge[:, None] for edge in boxes[positions, :4].to(image.device).unbind(1))
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
        covered = torch.where(inside, fill, image)
        tape = record(network, covered, until=layer.value, keep=[layer.value])
        rows, cols = goals[boxes[positions, 4]].to(image.device).unbind(1)
        item = torch.arange(len(positions), device=image.device)
        receive(positions, layer.maps(held(tape, layer))[item, :, rows, cols])

    tape = record(network, image, until=layer.value)
    largest = max(shape.numel() for shape in tape.shapes)
    most = min(memory // (4 * largest * image.element_size()), MOST_ELEMENTS // largest, 32)
    for _ in Portions(1 if alone else max(1, most)).run(measure, torch.arange(len(boxes))):
        pass
