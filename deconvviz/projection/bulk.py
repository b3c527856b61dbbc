"""Projections in bulk: many units' strongest images, in batches, into memory or into a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import StoreError
from ..guard import placement
from ..images.opening import ImageSet
from ..model.survey import Layer
from ..results import store as _store
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.record import Tape, record, record_fast
from .deconvnet import begin, carry
from .result import Projections

# Above this many bytes a result goes to a file by itself: it would not fit beside its own copy in 4 GB.
STREAM_BYTES = 3 << 29
# Windows in flight at once: large enough for the convolutions, small enough to stay near the caches.
WINDOW_BYTES = 16 << 20
# Windows are sorted by what they have beyond the border, in fifths of a side, once they cover a fifth of the image.
STEPS, LARGE = 5, 0.2


class Frames:
    """Where each of U × K projections comes from and goes to; flat arrays of B = U · K items."""

    def __init__(
        self, layer: Layer, units: Tensor, values: Tensor, ids: Tensor, positions: Tensor, channels: int
    ) -> None:
        """Work out the boxes of units (U,) at values, image ids (U, K) and positions (U, K, 2)."""
        self.layer, self.units, self.values, self.ids, self.positions = layer, units, values, ids, positions
        places = positions.numpy()
        self.boxes = torch.from_numpy(np.ascontiguousarray(layer.reach.boxes(places)))
        self.shift = torch.from_numpy(layer.reach.frame_shift(places)).flatten(0, 1)
        self.shape = (*ids.shape, channels, *layer.reach.window())
        self.item_units = units[:, None].expand(ids.shape).flatten()

    def beyond(self) -> Tensor:
        """How much of each item's window is outside the image: shares (B, 4) of its height and width, per side."""
        boxes, (height, width) = self.boxes.flatten(0, 1), self.shape[-2:]
        down, right = self.shift.unbind(1)
        below, after = height - down - (boxes[:, 2] - boxes[:, 0]), width - right - (boxes[:, 3] - boxes[:, 1])
        return torch.stack([down / height, right / width, below / height, after / width], 1)

    def put(self, target: Tensor, part: Tensor, source: Tensor, which: Tensor, top: Tensor, left: Tensor) -> None:
        """Copy each item's box out of `source[which]`, whose corner is at input pixel (top, left), into its frame."""
        boxes, shift = self.boxes.flatten(0, 1)[part], self.shift[part]
        # Thousands of small copies: NumPy's cost a fraction of torch's each.
        frames, maps = target.numpy(), source.float().numpy()
        for item, i, (t, le, b, r), (down, right), y, x in zip(
            part.tolist(), which.tolist(), boxes.tolist(), shift.tolist(), top.tolist(), left.tolist(), strict=True
        ):
            frames[item, :, down : down + b - t, right : right + r - le] = maps[i, :, t - y : b - y, le - x : r - x]

    def arrays(self) -> dict[str, Tensor]:
        """Return the fields of the result that are known before any projection."""
        return {
            "units": self.units,
            "activations": self.values.float(),
            "image_ids": self.ids,
            "positions": self.positions,
            "boxes": self.boxes,
        }


@torch.inference_mode(False)  # a result that is filled here must be writable here
def painted(
    frames: Frames, details: dict[str, Any], out: str | os.PathLike[str] | None, fill: Callable[[Tensor, Tensor], None]
) -> Projections:
    """Let `fill(patches, projections)` fill a result: in memory, in the file `out`, or in a file that has no name."""
    plain = frames.arrays()
    fields = {name: (x.dtype, tuple(x.shape)) for name, x in plain.items()}
    fields |= {name: (torch.float32, frames.shape) for name in _PICTURES}
    meta = {"kind": "projections", **details}
    if out is not None:
        with _store.replacing(out) as temporary:
            arrays = _store.create(temporary, fields, meta)
            for name, array in plain.items():
                arrays[name].copy_(array)
            fill(*(arrays[name] for name in _PICTURES))
        return Projections.load(out)
    if 2 * 4 * int(np.prod(frames.shape)) < STREAM_BYTES:
        # NumPy's zeros are pages that the system clears when they are first touched; torch would write them twice.
        pictures = {name: torch.from_numpy(np.zeros(frames.shape, np.float32)) for name in _PICTURES}
    else:
        pictures = _unnamed({name: fields[name] for name in _PICTURES}, meta)
    fill(*pictures.values())
    everything: dict[str, Any] = {**plain, **pictures, **details}
    return Projections(**everything)


_PICTURES = ("patches", "projections")


def _unnamed(fields: dict[str, tuple[torch.dtype, tuple[int, ...]]], meta: dict[str, Any]) -> dict[str, Tensor]:
    """Map arrays to a temporary file that vanishes with them."""
    handle, name = tempfile.mkstemp(prefix="deconvviz-", suffix=".safetensors")
    os.close(handle)
    path = Path(name)
    try:
        arrays = _store.create(path, fields, meta)
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
    patches: Tensor,
    projections: Tensor,
    saving: rules.Saving,
    batch_size: int,
    progress: bool,
) -> None:
    """Project every item, a batch of images at a time, into patches and projections (U, K, C, h, w)."""
    device, dtype = placement(network)
    patches, projections = patches.flatten(0, 1), projections.flatten(0, 1)
    ids, layer, beyond = frames.ids.flatten(), frames.layer, frames.beyond()
    bar = tqdm(total=len(ids), desc=f"project {layer.name}", unit="projection", disable=not progress)
    # The pictures are written beside the next piece's arithmetic; at most one piece waits.
    with bar, ThreadPoolExecutor(2) as writers:
        waiting: list[Future[None]] = []
        for images, local, part in _groups(ids, batch_size):
            pixels = source.take(images)
            tape = _recorded(network, pixels.to(device, dtype), layer, saving)
            for chosen in _pieces(beyond[part], tape, layer):
                now, which = part[chosen], local[chosen]
                items = Items(which, frames.positions.flatten(0, 1)[now])
                start = begin(tape, layer, frames.values.flatten()[now], frames.item_units[now], items.positions)
                signal = carry(tape, layer, start, items, saving.rule)
                zero = torch.zeros_like(which)
                corners = (zero, zero) if signal.grid is None else items.corners(signal.grid)
                carried = signal.data.cpu(), torch.arange(len(now)), *corners
                for written in waiting:
                    written.result()
                waiting = [
                    writers.submit(frames.put, projections, now, *carried),
                    writers.submit(frames.put, patches, now, pixels, which, zero, zero),
                ]
                bar.update(len(now))
        for written in waiting:
            written.result()


def _recorded(network: nn.Module, batch: Tensor, layer: Layer, saving: rules.Saving) -> Tape:
    run = record_fast if batch.device.type == "cpu" else record
    return run(network, batch, until=layer.value, keep=[layer.value], saver=saving)


def _groups(ids: Tensor, batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield batches of images: their ids, and for each item on them its image's place in the batch and its number."""
    distinct, place = ids.unique(return_inverse=True)
    for first in range(0, len(distinct), batch_size):
        part = ((place >= first) & (place < first + batch_size)).nonzero().flatten()
        yield distinct[first : first + batch_size].tolist(), place[part] - first, part


def _pieces(beyond: Tensor, tape: Tape, layer: Layer) -> Iterator[Tensor]:
    """Cut B items into pieces whose largest signal stays within WINDOW_BYTES.

    Large windows reach far beyond the image, `beyond` (B, 4), where a position is near the border. Those that do so
    alike travel together, for what is outside for all of a piece is not computed.
    """
    largest = max(shape[1:].numel() for shape in tape.shapes)
    share = min(1.0, max(0.02, np.prod(layer.reach.window()) / np.prod(tape.shapes[0][-2:])))
    size = max(1, int(WINDOW_BYTES / (4 * largest * share)))
    kinds = (beyond * STEPS).long() if LARGE < share < 1 else torch.zeros_like(beyond)
    _, kind = kinds.unique(dim=0, return_inverse=True)
    for number in range(int(kind.max()) + 1):
        yield from (kind == number).nonzero().flatten().split(size)
