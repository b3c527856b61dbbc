"""evidence: which part of each of a unit's patches excites it, found by covering the patch place by place."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import whole
from ..errors import ModelError, OptionError
from ..guard import check_weights, placement, untouched
from ..images import Images, ImageSet, open_images
from ..jobs.draft import Draft, Fields
from ..jobs.runner import After, Kept, Memory, Place, Step, laid_out, run
from ..model.output import known_names, measuring
from ..model.survey import resolve
from ..projection.bulk import Frames
from ..projection.bulk import fill as project_all
from ..projection.likeness import likeness
from ..projection.project import rehearse
from ..projection.strongest import find_frames, hash_job, images_per_unit
from ..rules.table import Saving
from ..tape.operations import Tape
from ..tape.record import record_fast
from ..topk.result import TopK
from . import memory
from .confirm import ROUNDING, TRIALS, Dice, close, unrepeatable
from .field import Evidence, effective_field
from .fill import Filling
from .focus import run_focused, run_full
from .occluder import Occluder, grid
from .plan import FULL, Unbatched
from .refine import changing, coarse, spread

_log = logging.getLogger("deconvviz")


@ranks.together
def evidence(
    model: nn.Module,
    images: Images = None,
    *,
    layer: int | str | None = None,
    units: Sequence[int] | str | None = None,
    target: Any = None,
    k: int = 9,
    top: TopK | None = None,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: Any = "gray",
    refine: int | None = None,
    method: str | None = None,
    rule: str | None = None,
    preprocess: Any = None,
    call: Call | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    distinct: str | None = None,
    interior: bool = False,
    on_error: str = "raise",
    progress: bool = True,
) -> Evidence:
    """Cover the patches that excite a unit most place by place, and measure what that takes from its activation.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> images = torch.randn(20, 3, 64, 64)
        >>> result = deconvviz.evidence(model, images, layer=2, units=[0, 1], k=3, progress=False)
        >>> result.maps.shape, result.patches.shape
        (torch.Size([2, 3, 13, 13]), torch.Size([2, 3, 3, 21, 21]))

    It works on any network, with max-pools or without: what is measured is the unit itself. The patches are those of
    `project`. Only what lies inside the patch, below the unit, and within reach of the occluder is computed again
    (`method="incremental"`, exact); `method="full"` runs the network up to the layer on every covered image.

    Args:
        model: Any network; it is left as it was.
        images: As for `project`; None: the sample photos.
        layer: Number or module path, see `deconvviz.layers`.
        units: A list, "all", or None for 16 spread evenly over the layer.
        target: In place of a layer: a class by number or name, a function of what the model returns for N images, with
            one number for each, (N,), see `deconvviz.targets`; or a list of these. They are the units 0, 1, … of a layer
            "target" whose patches are whole images.
        k: How many images per unit.
        top: A scan of the same images that holds this layer, in place of a new one; `k` is then its own.
        size: Of the occluder in pixels, or (height, width); None: a seventh of the patch's short side.
        stride: Pixels between its places, or (down, right); None: half the size.
        fill: What covers, see `occlude`: "gray", "mean", "blur", "noise", a colour or another image.
        refine: Measure every n-th place of each patch first, and all others only where these differ by more than a
            fifth of the patch's range; the rest is interpolated, `measured` says which. None: every place.
        method: "incremental", "full", or None: incremental unless the network (a transformer) cannot be followed for
            several images at once; the result's `in_full` says where.
        rule: "deconvnet", "guided" or "backprop": also carry the activations back to pixels, as `project` does, so that
            the picture has patches, evidence and projections. None: leave that.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        batch_size: Images per forward pass of the scan; None: what a `DataLoader` says, else 64.
        workers: Processes that read images.
        seed: Of the noise.
        out: File to stream the result to; a job that was killed goes on from the files `.name.draft…` beside it when
            the same call is made again.
        distinct: "source": of each photo, file or video at most one image per unit, its strongest; "label": of each
            label; None: every image counts.
        interior: Take only places whose receptive field lies inside the image, see `top`.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Whether to show progress bars.

    Returns:
        `Evidence`: per unit its patches, the maps, and the effective field.

    Raises:
        OptionError: An occluder larger than the patch, or another option without meaning.
        UnsupportedOp: With `rule`, an operation on the path has no rule.
        LayerError, UnitError, ImageError, ModelError, StoreError: As their names say.

    Source:
        Zhou et al., "Object Detectors Emerge in Deep Scene CNNs", ICLR 2015, section 3.2.
    """
    if method not in (None, "incremental", "full"):
        raise OptionError(f"method={method!r} has no meaning here. Give 'incremental', 'full' or None.")
    step = None if refine is None else whole(refine, "refine", 2)
    saving = None if rule is None else Saving(rule)
    model = called(model, call)
    if (layer is None) == (target is None):
        raise OptionError("give either layer=, with units=, or target=.")
    if target is not None:
        if units is not None:
            raise OptionError("units are of a layer: leave them out, or give layer= in place of target=.")
        if rule is not None or interior:
            raise OptionError("rule= and interior= are for units: a target has no place and no projection.")
        model = measuring(model, target, known_names(model, preprocess, None))
        layer, units = model.asked, "all"
    assert layer is not None
    k, scan = images_per_unit(k, top)
    source = open_images(model, images, preprocess)
    device, dtype = placement(model)
    team = ranks.team()
    with contextlib.nullcontext() if out is None or team.rank > 0 else Draft(out) as draft:
        first = source.example(on_error)
        example = first.to(device, dtype)
        with untouched(model) as network:
            check_weights(network)
            found = resolve(network, layer, example, saving)
            steps: list[str] = []
            if saving is not None:
                steps = rehearse(network, found, example, saving)
        chosen = torch.tensor(found.choose(units))
        places = grid(found.reach.window(), size, stride, "clip")
        filling = Filling(fill, model, source, preprocess, seed)
        fill_name = filling.on(first[0], places.size)[1]  # refuses what has no meaning before the scan
        frames, scan = find_frames(
            *(model, source, found, chosen, scan or k, draft),
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            distinct=distinct,
            interior=interior,
            on_error=on_error,
        )
        facts = _facts(frames, source, places, fill_name) | {"skipped": scan.skipped, "rule": rule}
        facts |= {"steps": tuple(steps)}
        fields = _fields(frames, places, projected=saving is not None, refined=step is not None)
        options = places.size, places.stride, repr(fill), seed, method, step, rule
        key = "" if draft is None and team.size == 1 else hash_job(model, source, frames, *options)
        team.agree(key, "weights, images or options")
        if team.rank > 0:
            arrays = laid_out(fields)
        elif draft is None:
            arrays = _allocate(fields, _known(frames, places))
        else:
            arrays = draft.open(key, fields, {"kind": Evidence.file_kind, **facts}, _known(frames, places))
        kept: Kept = draft or Memory()
        with untouched(model) as network:
            job = _Job(network, source, frames, places, filling, arrays, method, step)
            done = job.run(kept, progress)
            if saving is not None:
                at_once = batch_size or 32
                project_all(network, source, frames, arrays, After(kept, done), saving, at_once, progress, steps)

        def finish() -> Evidence:
            if saving is not None:
                arrays["likeness"].copy_(likeness(frames, arrays["projections"]))
            _fill_fields(arrays, places, torch.finfo(dtype).eps)
            if draft is None:
                return Evidence.from_header(facts, arrays)
            draft.finish()
            return Evidence.load(draft.path)

        result: Evidence = team.deliver(finish, Evidence, out)
    return result


def _facts(frames: Frames, source: ImageSet, places: Occluder, fill_name: str) -> dict[str, Any]:
    """Return the fields of the result that are no arrays."""
    seen, layer = source.preprocess.inverse, frames.layer
    facts: dict[str, Any] = {"layer": layer.name, "number": layer.number, "size": places.size, "stride": places.stride}
    facts |= {"fill_name": fill_name, "mean": seen.mean, "std": seen.std, "order": seen.order}
    facts |= {"names": source.names_of(frames.ids), "labels": source.labels_of(frames.ids)}
    return facts | {"switches": layer.switches, "count": len(source)}


def _fields(
    frames: Frames, places: Occluder, *, projected: bool, refined: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return type and shape of each array of the result."""
    units, k = frames.shape[:2]
    known = {name: (x.dtype, tuple(x.shape)) for name, x in _known(frames, places).items()}
    known |= {"patches": (torch.float32, frames.shape), "maps": (torch.float32, (units, k, *places.shape))}
    if refined:
        known |= {"measured": (torch.bool, (units, k, *places.shape))}
    if projected:
        known |= frames.carried()
    return known | {"in_full": (torch.bool, (units, k)), "field": (torch.int64, (units, 4))}


@torch.inference_mode(False)  # a result that is filled here must be writable here
def _allocate(fields: Fields, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    arrays = {name: torch.zeros(shape, dtype=kind) for name, (kind, shape) in fields.items()}
    for name, array in known.items():
        arrays[name].copy_(array)
    return arrays


def _known(frames: Frames, places: Occluder) -> dict[str, Tensor]:
    """Return the arrays that are known before anything is covered."""
    return {**frames.arrays(), "rows": places.rows, "cols": places.cols}


# An image's number, and the numbers of the patches on it.
Block = tuple[int, Tensor]


@dataclass(frozen=True)
class _Job:
    """What is the same for every image."""

    network: nn.Module
    source: ImageSet
    frames: Frames
    places: Occluder
    filling: Filling
    arrays: Mapping[str, Tensor]
    method: str | None
    step: int | None  # of the coarse grid

    def run(self, kept: Kept, progress: bool) -> int:
        """Measure all patches, image after image; return how many blocks that were."""
        ids = self.frames.ids.flatten()
        blocks = [(i, (ids == i).nonzero().flatten()) for i in ids.unique().tolist() if i >= 0]
        sizes = [len(items) for _, items in blocks]
        name = f"evidence {self.frames.layer.name}"
        how: dict[str, Any] = {"name": name, "unit": "patches", "progress": progress}
        wanted = ("patches", "maps", "in_full") + ("measured",) * (self.step is not None)
        targets = {name: self.arrays[name].flatten(0, 1) for name in wanted}
        run(blocks, self._compute, kept, arrays=targets, rows=lambda block: block[1], sizes=sizes, **how)
        return len(blocks)

    def _compute(self, block: Block, place: Place) -> Iterator[Step]:
        number, items = block
        pixels = self.source.take([number])
        zero = torch.zeros_like(items)
        targets, rows = place
        patches = partial(self.frames.put, targets["patches"], rows, items, pixels.cpu(), zero, zero, zero)
        maps, measured, in_full = self._measure(pixels, items)

        def write() -> None:
            targets["maps"][rows] = maps.view(len(items), *self.places.shape)
            if "measured" in targets:
                targets["measured"][rows] = measured.view(len(items), *self.places.shape)
            targets["in_full"][rows] = in_full

        yield len(items), [patches, write]

    def _measure(self, pixels: Tensor, items: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return the maps (items, P) of one image's patches, what of them was measured, and whether all in full."""
        image = pixels.to(*placement(self.network))
        fill = self.filling.on(pixels[0], self.places.size)[0].to(image)
        layer = self.frames.layer
        dice = Dice(image.device)
        tape = record_fast(self.network, image, keep=None, until=layer.value, saver=Saving())
        covers = _Covers.of(self.frames, self.places, items)
        usual = layer.as_maps(layer.response_in(tape))[0]
        if dice.rolled():
            self._check_repeats(image, usual)
        in_full = self.method == "full"
        first = covers.coarse(self.places, self.step)
        in_full = self._cover(tape, fill, covers, usual, first, in_full)
        if self.step is not None:
            rest = covers.changing(self.places, self.step)
            in_full = self._cover(tape, fill, covers, usual, rest, in_full)
            covers.interpolate(self.places, self.step, torch.cat([first, rest]))
        return covers.finish(), covers.measured, in_full

    def _cover(self, tape: Tape, fill: Tensor, covers: _Covers, usual: Tensor, chosen: Tensor, in_full: bool) -> bool:
        """Measure the chosen boxes; return whether the network ran in full for them."""
        room = memory.budget(fill.device)
        receive = partial(covers.receive, usual, chosen)
        asked = tape, fill, covers.boxes[chosen], covers.goals, self.frames.layer, receive
        if not in_full:
            try:
                run_focused(self.network, *asked, memory=room)
                return False
            except Unbatched as error:
                if self.method is not None:  # asked for
                    raise
                _log.debug("evidence: %s", str(error).removesuffix(FULL).strip())
        try:
            run_full(self.network, *asked, memory=room)
        except Unbatched:
            run_full(self.network, *asked, memory=room, alone=True)
        return True

    def _check_repeats(self, image: Tensor, usual: Tensor) -> None:
        """Refuse a network whose response (units, h, w) to the same image is another one each time."""
        layer = self.frames.layer
        for _ in range(TRIALS):
            tape = record_fast(self.network, image, keep=[layer.value], until=layer.value, saver=Saving())
            if not close(layer.as_maps(layer.response_in(tape))[0], usual, usual):
                raise unrepeatable()


@dataclass(frozen=True, eq=False)
class _Covers:
    """All that is covered of one image: `boxes` (N, 5), a box and its goal; `goals` (G, 2), positions of the layer.

    A goal's activations are measured once for all patches there: `items` are sorted by goal, `first` (G + 1,) says
    where each goal's begin, `units` (items,) which activation each is of, `place` (N,) which of the P places a box is.
    """

    boxes: Tensor
    goals: Tensor
    place: Tensor
    first: Tensor
    order: Tensor
    units: Tensor
    maps: Tensor
    measured: Tensor

    @classmethod
    def of(cls, frames: Frames, places: Occluder, items: Tensor) -> _Covers:
        """Place the occluder on each patch of `items`, within what the image has of it."""
        assert places.boxes is not None
        positions = frames.positions.flatten(0, 1)[items]
        goals, goal = positions.unique(dim=0, return_inverse=True)
        order = goal.argsort(stable=True)
        first = torch.cat([torch.zeros(1, dtype=torch.long), goal.bincount(minlength=len(goals)).cumsum(0)])
        one = items[order[first[:-1]]]  # a patch of each goal: all have the same box
        box, corner = frames.boxes.flatten(0, 1)[one], frames.shift[one]
        origin = box[:, :2] - corner
        placed = places.boxes + origin.repeat(1, 2)[:, None]  # (G, P, 4)
        low = torch.maximum(placed[..., :2], box[:, None, :2])
        high = torch.minimum(placed[..., 2:], box[:, None, 2:])
        which, place = (low < high).all(-1).nonzero().unbind(1)
        boxes = torch.cat([low[which, place], high[which, place], which[:, None]], 1)
        maps = torch.zeros(len(items), len(places.boxes), dtype=torch.float64)
        measured = torch.ones(maps.shape, dtype=torch.bool)
        return cls(boxes, goals, place, first, order, frames.item_units[items], maps, measured)

    def coarse(self, places: Occluder, step: int | None) -> Tensor:
        """Return the numbers of the boxes on the coarse grid; of all where there is no step."""
        chosen = torch.ones(places.shape, dtype=torch.bool)
        if step is not None:
            rows, cols = (coarse(n, step) for n in places.shape)
            chosen.zero_()[rows[:, None], cols] = True
        return chosen.flatten()[self.place].nonzero().flatten()

    def changing(self, places: Occluder, step: int) -> Tensor:
        """Return the numbers of the other boxes near which the coarse maps of a goal's patches change."""
        rows, cols = (coarse(n, step) for n in places.shape)
        maps = self.maps.view(-1, *places.shape)
        marked = torch.zeros(len(self.goals), *places.shape, dtype=torch.bool)
        for goal, (start, end) in enumerate(itertools.pairwise(self.first.tolist())):
            known = {"evidence": maps[self.order[start:end]][:, rows[:, None], cols]}
            marked[goal] = changing(known, {"evidence": torch.zeros(end - start)}, rows, cols)
        marked[:, rows[:, None], cols] = False
        return marked.flatten(1)[self.boxes[:, 4], self.place].nonzero().flatten()

    def interpolate(self, places: Occluder, step: int, known: Tensor) -> None:
        """Fill in what the boxes of the `known` numbers leave open, from the coarse grid."""
        rows, cols = (coarse(n, step) for n in places.shape)
        maps = self.maps.view(-1, *places.shape)
        between = spread(maps[:, rows[:, None], cols], "evidence", rows, cols, (places.rows, places.cols)).flatten(1)
        left = torch.ones(len(self.boxes), dtype=torch.bool)
        left[known] = False
        open_ = torch.zeros(len(self.goals), self.maps.shape[1], dtype=torch.bool)
        open_[self.boxes[left, 4], self.place[left]] = True
        goal_of = torch.empty_like(self.order)
        goal_of[self.order] = torch.arange(len(self.goals)).repeat_interleave(self.first.diff())
        self.measured.copy_(~open_[goal_of])
        self.maps.copy_(torch.where(self.measured, self.maps, between))

    def receive(self, usual: Tensor, chosen: Tensor, among: Tensor, found: Tensor) -> None:
        """Take the activations (b, units) that the boxes `chosen[among]` (b,) leave; `usual` is (units, h, w)."""
        numbers = chosen[among]
        goal = self.boxes[numbers, 4]
        counts = self.first[goal + 1] - self.first[goal]
        row = torch.arange(len(numbers)).repeat_interleave(counts)
        start = counts.cumsum(0) - counts
        item = self.order[self.first[goal][row] + torch.arange(len(row)) - start[row]]
        unit = self.units[item]
        at = [x.to(found.device) for x in (unit, *self.goals[goal][row].unbind(1), row)]
        left = usual[at[0], at[1], at[2]] - found[at[3], at[0]]
        self.maps[item, self.place[numbers][row]] = left.double().cpu()

    def finish(self) -> Tensor:
        """Return the maps, all of them finite."""
        if not self.maps.isfinite().all():
            raise ModelError("a covered patch gives NaN or infinity. Give another fill=.")
        return self.maps.float()


def _fill_fields(arrays: Mapping[str, Tensor], places: Occluder, eps: float) -> None:
    assert places.size is not None
    height, width = arrays["patches"].shape[-2:]
    at = places.rows, places.cols, places.size, (height, width)
    for unit, maps in enumerate(arrays["maps"]):
        least = ROUNDING * eps * float(arrays["activations"][unit].abs().max())
        arrays["field"][unit] = effective_field(maps, *at, least)
