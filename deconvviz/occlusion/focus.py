"""The fast path seen from one position of a layer: only what that position reads, and the occluder changes, is computed.

An activation reads a pyramid: itself in its own layer, a window of the layer below, its receptive field in the image.
An occluder changes a pyramid the other way round. What is computed again is where the two meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..devices import Portions
from ..model.table import Layer
from ..tape.operations import Tape
from ..tape.record import record_fast
from .confirm import close
from .incremental import Runner
from .memory import MOST_ELEMENTS
from .plan import COVER, FULL, Plan, Step, Unbatched, Way
from .windows import Place, Window

MOST_IMAGES = 32  # that run in full at once: more are no faster

# (numbers of boxes (b,), activations (b, units)): what each box leaves of all units at its position of the layer
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

    def groups(self) -> Iterator[Tensor]:
        """Yield all numbers at once: windows this small cost less than the calls that more groups would take."""
        yield torch.arange(len(self.boxes))

    def windows(self, boxes: Tensor, cover: float = COVER) -> dict[int, Window | None]:
        """Return what of each value is computed for `boxes` (B, 5); None where that is the whole tensor."""
        found: dict[int, Window | None] = {0: Window.around(boxes[:, :4], self.tape.shapes[0][-2:])}
        for step in self.steps:
            inputs = [found[v] for v in step.op.inputs]
            window = self._window(step, inputs, float("inf"))
            # A border that only adds hands its windows on as they are: only their places change.
            moved = step.way is Way.BORDER and min(step.margins()) >= 0
            if window is not None and window is not inputs[0] and not moved:
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
    if not len(boxes):
        return
    runner = Runner(Focus.on(tape, layer, boxes, goals), None, fill, memory, exact=True)
    asked = _Asked(network, tape, fill, boxes, goals, layer)
    for group in runner.plan.groups():
        portions = Portions(runner.most(boxes[group]))
        for numbers, found in portions.run(lambda some: (some, _activations(runner, layer, boxes[some])), group):
            asked.watch(numbers, found)
            receive(numbers, found)
    asked.confirm_most(lambda box: _probe(runner, layer, box))


def run_full(
    network: nn.Module,
    tape: Tape,
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

    Raises:
        Unbatched: They do, and `alone` was not asked for.
    """
    asked = _Asked(network, tape, fill, boxes, goals, layer)
    largest = max(shape.numel() for shape in tape.shapes)
    most = min(memory // (4 * largest * fill.element_size()), MOST_ELEMENTS // largest, MOST_IMAGES)
    portions = Portions(1 if alone else max(1, most))
    for numbers, found in portions.run(lambda some: (some, asked.network_on(some)), torch.arange(len(boxes))):
        asked.watch(numbers, found)
        receive(numbers, found)
    if not alone:
        asked.confirm_most()


def _probe(runner: Runner, layer: Layer, box: Tensor) -> Tensor:
    """Return the activations (units,) at one box's goal between others that are far off; alone where memory lacks."""
    return runner.three_or_one(
        lambda: _activations(runner, layer, box.expand(3, 5), strangers=True)[1],
        lambda: _activations(runner, layer, box[None])[0],
    )


def _activations(runner: Runner, layer: Layer, boxes: Tensor, *, strangers: bool = False) -> Tensor:
    """Return the activations (B, units) at the boxes' goals; `strangers`: all but the second are far off."""
    plan = runner.plan
    assert isinstance(plan, Focus)
    parts = {0: runner.windows(boxes[:, :4], strangers=strangers)}
    runner.advance(parts, 0, len(plan.steps), plan.windows(boxes), strangers=strangers)
    part, goals = parts[layer.value], plan.goals[boxes[:, 4]]
    if part.window is not None and layer.reach.dims == (2, 3) and part.data.dim() == 4:
        corner = torch.stack([part.window.rows.start, part.window.cols.start], 1)
        return _pick(part.data, goals - corner)
    return _pick(layer.as_maps(runner.kept.whole(layer.value, part)), goals)


def _pick(maps: Tensor, places: Tensor) -> Tensor:
    """Return (B, units): each map's numbers at its own place (B, 2)."""
    rows, cols = places.to(maps.device).unbind(1)
    return maps[torch.arange(len(maps), device=maps.device), :, rows, cols]


class _Asked:
    """What is covered, what the network itself makes of it, and whether that is what was found."""

    def __init__(
        self, network: nn.Module, tape: Tape, fill: Tensor, boxes: Tensor, goals: Tensor, layer: Layer
    ) -> None:
        self.network, self.image, self.fill = network, tape.kept[0], fill
        self.boxes, self.goals, self.layer = boxes, goals, layer
        self.usual = layer.as_maps(layer.response_in(tape))  # (1, units, height, width)
        self.most: tuple[float, int, Tensor] | None = None

    def network_on(self, numbers: Tensor) -> Tensor:
        """Return the activations (b, units) that the network has for the covered images of these boxes."""
        y, x = (torch.arange(n, device=self.image.device) for n in self.image.shape[-2:])
        edges = self.boxes[numbers, :4].to(self.image.device)
        top, left, bottom, right = (edge[:, None] for edge in edges.unbind(1))
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
        covered = torch.where(inside, self.fill, self.image)
        tape = record_fast(self.network, covered, until=self.layer.value, keep=[self.layer.value])
        return _pick(self.layer.as_maps(self.layer.response_in(tape)), self.goals[self.boxes[numbers, 4]])

    def watch(self, numbers: Tensor, found: Tensor) -> None:
        """Remember the box that changes most."""
        changes = (found - self._usual_at(numbers)).abs().amax(1)
        change, where = changes.max(0)
        if self.most is None or not float(change) <= self.most[0]:
            self.most = float(change), int(numbers[int(where)]), found[where]

    def confirm_most(self, probe: Callable[[Tensor], Tensor] | None = None) -> None:
        """Ask the network itself about the box that changes most, alone, and refuse another answer (units,).

        `probe` finds the answer for a box (5,) once more, between others that are not of this image.
        """
        if self.most is None:  # no boxes at all
            return
        _, number, found = self.most
        one = torch.tensor([number])
        expected, usual = self.network_on(one)[0], self._usual_at(one)[0]
        answers = [found] if probe is None else [found, probe(self.boxes[number])]
        if not all(close(answer, expected, usual, among=self.usual) for answer in answers):
            raise Unbatched(
                "the layer's response to an image depends on the other images of its batch, or on more than its "
                f"input, such as a number that it takes out of the data. {FULL}"
            )

    def _usual_at(self, numbers: Tensor) -> Tensor:
        rows, cols = self.goals[self.boxes[numbers, 4]].to(self.usual.device).unbind(1)
        return self.usual[0, :, rows, cols].T
