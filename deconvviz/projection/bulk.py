"""Projections in bulk: where each one comes from and goes to, and a batch of images after the other."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..devices import Portions, sent
from ..errors import StoreError
from ..guard import placement
from ..images import ImageSet
from ..jobs.runner import Kept, Place, Step, run
from ..model.table import Layer
from ..results import store as _store
from ..rules import table as rules
from ..rules.signals import Items, Signal
from ..tape.operations import Tape
from ..tape.record import record, record_fast
from .deconvnet import begin, carry, trace_loss
from .result import BESIDE

# Above this many bytes a result goes to a file by itself: it would not fit beside its own copy in 4 GB.
STREAM_BYTES = 3 << 29
# Windows in flight at once: large enough for the convolutions, small enough to stay near the caches.
WINDOW_BYTES = 16 << 20
# On a GPU few launches count, and each piece ends with a wait.
CUDA_BYTES = 1 << 30
# Windows are sorted by what they have beyond the border, in fifths of a side, once they cover a fifth of the image.
STEPS, LARGE = 5, 0.2

# A batch of images: their ids, and for each item on them its image's place in the batch and its number.
Block = tuple[list[int], Tensor, Tensor]


class Frames:
    """Where each of U × K projections comes from and goes to; flat arrays of B = U · K items."""

    def __init__(
        self, layer: Layer, units: Tensor, values: Tensor, ids: Tensor, positions: Tensor, channels: int
    ) -> None:
        """Work out the boxes of units (U,) at values, image ids (U, K) and positions (U, K, 2)."""
        self.layer, self.units, self.values, self.ids, self.positions = layer, units, values, ids, positions
        places = positions.numpy()
        # A place that no image excites has no box, and its pictures stay zero.
        empty = (ids < 0)[..., None]
        self.boxes = torch.from_numpy(np.ascontiguousarray(layer.reach.boxes(places))).masked_fill(empty, 0)
        self.shift = torch.from_numpy(layer.reach.frame_shift(places)).flatten(0, 1)
        self.shape = (*ids.shape, channels, *layer.reach.window())
        self.item_units = units[:, None].expand(ids.shape).flatten()
        self.inputs: Tensor | None = None  # (U, K) what went into a saturating activation

    def beyond(self) -> Tensor:
        """How much of each item's window is outside the image: shares (B, 4) of its height and width, per side."""
        boxes, (height, width) = self.boxes.flatten(0, 1), self.shape[-2:]
        down, right = self.shift.unbind(1)
        below, after = height - down - (boxes[:, 2] - boxes[:, 0]), width - right - (boxes[:, 3] - boxes[:, 1])
        return torch.stack([down / height, right / width, below / height, after / width], 1)

    def put(
        self, target: Tensor, rows: Tensor, part: Tensor, source: Tensor, which: Tensor, top: Tensor, left: Tensor
    ) -> None:
        """Copy each item's box out of `source[which]` into its row of `target`, which has its frame's shape.

        The corner of the source is at input pixel (top, left).
        """
        boxes, shift = self.boxes.flatten(0, 1)[part], self.shift[part]
        # Thousands of small copies: NumPy's cost a fraction of torch's each.
        frames, maps = target.numpy(), source.float().numpy()
        for row, i, (t, le, b, r), (down, right), y, x in zip(
            rows.tolist(), which.tolist(), boxes.tolist(), shift.tolist(), top.tolist(), left.tolist(), strict=True
        ):
            frames[row, :, down : down + b - t, right : right + r - le] = maps[i, :, t - y : b - y, le - x : r - x]

    def fields(self, others: int = 0) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return type and shape of each array of the result, which has the projections of so many other rules, too."""
        plain = {name: (x.dtype, tuple(x.shape)) for name, x in self.arrays().items()}
        own, patches = self.carried(), {"patches": (torch.float32, self.shape)}
        plain |= {name: own[name] for name in ("likeness", "lost")} | patches | {"projections": own["projections"]}
        for first in map(BESIDE.format, range(others)):
            plain |= {f"{first}{name}": field for name, field in own.items()}
        return plain

    def carried(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return type and shape of each array that belongs to one rule."""
        units, k = self.shape[:2]
        small = {"likeness": (torch.float32, (units,)), "lost": (torch.int64, (units, k))}
        return small | {"projections": (torch.float32, self.shape)}

    def arrays(self) -> dict[str, Tensor]:
        """Return the fields of the result that are known before any projection."""
        return {
            "units": self.units,
            "activations": self.values.float(),
            "image_ids": self.ids,
            "positions": self.positions,
            "boxes": self.boxes,
            **({} if self.inputs is None else {"preactivations": self.inputs.float()}),
        }


@torch.inference_mode(False)  # a result that is filled here must be writable here
def allocate(frames: Frames, facts: Mapping[str, object], others: int = 0) -> dict[str, Tensor]:
    """Return the result's arrays, those known before filled in: in memory, or in a file that has no name."""
    fields = frames.fields(others)
    pictures = {name: field for name, field in fields.items() if field[1] == frames.shape}
    known = {name: torch.zeros(shape, dtype=kind) for name, (kind, shape) in fields.items() if name not in pictures}
    known |= frames.arrays()
    if len(pictures) * 4 * int(np.prod(frames.shape)) >= STREAM_BYTES:
        return {**known, **_map_unnamed(pictures, facts)}
    # NumPy's zeros are pages that the system clears when they are first touched; torch would write them twice.
    return {**known, **{name: torch.from_numpy(np.zeros(frames.shape, np.float32)) for name in pictures}}


def _map_unnamed(
    fields: dict[str, tuple[torch.dtype, tuple[int, ...]]], facts: Mapping[str, object]
) -> dict[str, Tensor]:
    """Map arrays to a temporary file that vanishes with them."""
    handle, name = tempfile.mkstemp(prefix="deconvviz-", suffix=".safetensors")
    os.close(handle)
    path = Path(name)
    try:
        arrays = _store.create(path, fields, facts)
    except StoreError as error:
        path.unlink(missing_ok=True)
        raise StoreError(
            f"{error} This result is large: give out=, a path on a disk with room, or fewer units."
        ) from error
    try:
        path.unlink()  # the mapping keeps the contents until the last array is gone
    except OSError:  # Windows removes no file that is mapped
        weakref.finalize(arrays["projections"], path.unlink, missing_ok=True)
    return arrays


def fill(
    network: nn.Module,
    source: ImageSet,
    frames: Frames,
    arrays: Mapping[str, Tensor],
    kept: Kept,
    saving: rules.Saving,
    batch_size: int,
    progress: bool,
    steps: Sequence[str],
) -> int:
    """Project every item into the arrays' projections and, if they are there, patches (U, K, C, h, w).

    A block is a batch of images; returns how many there are. Where nothing arrives at the pixels, `lost` (U, K) says
    after which of the modules `steps`, counted from 1, nothing was left.
    """
    device, dtype = placement(network)
    targets = {name: arrays[name].flatten(0, 1) for name in ("patches", "projections", "lost") if name in arrays}
    layer, beyond = frames.layer, frames.beyond()
    # Where memory does not suffice, first for fewer windows at once, then for fewer images.
    some_images, some_windows = Portions(batch_size), Portions(len(beyond))

    def compute(block: Block, place: Place) -> Iterator[Step]:
        images, local, part = block
        pixels = source.take(images)
        shown, left = pixels.cpu(), torch.ones(len(part), dtype=torch.bool)

        def on(chosen_images: Tensor) -> Iterator[Step]:
            first, count = int(chosen_images[0]), len(chosen_images)
            tape = _record(network, pixels[first : first + count].to(device, dtype), layer, saving)
            here = (left & (local >= first) & (local < first + count)).nonzero().flatten()

            def carried(chosen: Tensor) -> Step:
                now, which, rows = part[chosen], local[chosen], place.rows[chosen]
                items = Items(which - first, frames.positions.flatten(0, 1)[now])
                start = begin(tape, layer, frames.values.flatten()[now], frames.item_units[now], items.positions)
                signal = carry(tape, layer, start, items, saving.rectifier)
                arrived = signal.data.cpu()  # the one wait
                lost = _lost(tape, layer, start, items, arrived, saving.rectifier, steps)
                zero = torch.zeros_like(which)
                corners = (zero, zero) if signal.grid is None else items.corners(signal.grid)
                found = arrived, torch.arange(len(now)), *corners
                left[chosen] = False
                writes = [
                    partial(frames.put, place.arrays["projections"], rows, now, *found),
                    partial(_note, place.arrays["lost"], rows, lost),
                ]
                if "patches" in place.arrays:
                    writes.append(partial(frames.put, place.arrays["patches"], rows, now, shown, which, zero, zero))
                return len(now), writes

            for chosen in _pieces(beyond[part[here]], tape, layer, device):
                yield from some_windows.run(carried, here[chosen])

        yield from some_images.steps(on, torch.arange(len(images)))

    blocks = list(_blocks(frames.ids.flatten(), batch_size))
    sizes = [len(part) for _, _, part in blocks]
    how: dict[str, Any] = {"name": f"project {layer.name}", "unit": "projections", "progress": progress}
    run(blocks, compute, kept, arrays=targets, rows=lambda block: block[2], sizes=sizes, **how)
    return len(blocks)


def _note(target: Tensor, rows: Tensor, numbers: Tensor) -> None:
    target[rows] = numbers


def _lost(
    tape: Tape, layer: Layer, start: Signal, items: Items, arrived: Tensor, rectifier: str, steps: Sequence[str]
) -> Tensor:
    """Return for each item 0 where its signal arrived, else where it was lost, as a place among `steps` from 1 on."""
    found = torch.zeros(len(items.images), dtype=torch.long)
    gone = (~arrived.flatten(1).any(1)).nonzero().flatten()
    if len(gone):
        some = Items(items.images[gone], items.positions[gone])
        unit = None if start.unit is None else start.unit[sent(gone, start.unit.device)]
        again = Signal(start.data[sent(gone, start.data.device)], start.grid, unit)
        names = trace_loss(tape, layer, again, some, rectifier)
        place = {name: n for n, name in enumerate(steps, 1)}
        found[gone] = torch.tensor([place.get(name, place[""]) for name in names])
    return found


def _record(network: nn.Module, batch: Tensor, layer: Layer, saving: rules.Saving) -> Tape:
    look = record_fast if batch.device.type == "cpu" else record
    return look(network, batch, until=layer.value, keep=[layer.value], saver=saving, gradient=saving.gradient)


def _blocks(ids: Tensor, batch_size: int) -> Iterator[Block]:
    distinct, place = ids.unique(return_inverse=True)
    empty = int((distinct < 0).sum())  # a place that no image excites has the number -1: it comes first
    for first in range(empty, len(distinct), batch_size):
        part = ((place >= first) & (place < first + batch_size)).nonzero().flatten()
        yield distinct[first : first + batch_size].tolist(), place[part] - first, part


def _pieces(beyond: Tensor, tape: Tape, layer: Layer, device: torch.device) -> Iterator[Tensor]:
    """Cut B items into pieces whose largest signal stays within WINDOW_BYTES, or CUDA_BYTES on a GPU.

    Large windows reach far beyond the image, `beyond` (B, 4), where a position is near the border. Those that do so
    alike travel together, for what is outside for all of a piece is not computed.
    """
    largest = max(shape[1:].numel() for shape in tape.shapes)
    share = min(1.0, max(0.02, np.prod(layer.reach.window()) / np.prod(tape.shapes[0][-2:])))
    room = CUDA_BYTES if device.type == "cuda" else WINDOW_BYTES
    size = max(1, int(room / (4 * largest * share)))
    kinds = (beyond * STEPS).long() if LARGE < share < 1 else torch.zeros_like(beyond)
    _, kind = kinds.unique(dim=0, return_inverse=True)
    for number in range(int(kind.max()) + 1):
        yield from (kind == number).nonzero().flatten().split(size)
