"""The engine: walks the images once, in batches, and lets several accumulators measure on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import ranks
from ..checks import at_once, check_on_error
from ..devices import lacks_memory, release
from ..errors import ImageError, ModelError
from ..guard import check_weights, hash_weights, placement, untouched, unwrapped
from ..images import ImageSet
from ..model.survey import check_seen, describe
from ..model.table import Key, Layer, Layers
from ..results.base import Stored
from ..results.locks import locked
from ..rules.table import Saving
from ..tape.operations import Tape
from ..tape.record import dislikes_order, record
from .accumulator import Accumulator, Flaw
from .clock import Clock
from .meetings import Meetings
from .state import Progress, StateFile, pack, unpack

SAVE_EVERY = 30.0  # seconds; more where writing takes long
_LOOK_EVERY = 16  # batches, where a look at the numbers waits for the device
_MOST_BATCH = 64
# On a CPU, buffers of more than 32 MiB are mapped anew, page by page, and each batch has its own fixed cost: at 224 px 16
# images at once take the least processor time (efficientnet-lite0, 192 images: 4.4 s in batches of 64, 4.1 in 16s, 5.2
# in 8s).
_BUFFER_BYTES, _FEW, _LARGEST = 32 << 20, 16, 1 << 30
_ROUNDING = 1000  # eps of the largest response: how far an image alone and in a batch may be apart

_Found = TypeVar("_Found", bound=Stored)


class Scan:
    """A pass over images that can stop after any batch and go on from a file, and that several processes can share.

    It owns batches, workers, device and memory format, the checks of what comes out, progress, the file that keeps
    its state, and images that cannot be read. What is measured is up to its accumulators, any number of them;
    `measured_for` says what else the result depends on.

    Processes that share it take the batches in turn: the same batches as one process, so that each image gives the
    same numbers. Every few seconds they meet, all of them equally far; then rank 0 can write down what they have.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        accumulators: Sequence[Accumulator],
        tape: Tape,
        *,
        name: str = "scan",
        measured_for: str = "",
        batch_size: int | None = None,
        workers: int = 0,
        on_error: str = "raise",
        progress: bool = True,
    ) -> None:
        self.network, self.images, self.accumulators = unwrapped(model), images, tuple(accumulators)
        self.name, self.measured_for = name, measured_for
        self.team = ranks.team()
        self.workers, self.on_error, self.progress = workers, on_error, progress and self.team.rank == 0
        self.device, self.dtype = placement(self.network)
        # oneDNN runs convolutions a fifth faster in this order (AlexNet, 224 px, 1 core: 124 and 154 ms for
        # 16 images).
        self.look = self._channels_last = self.device.type == "cpu"
        self._layers = {layer.key: layer for one in self.accumulators for layer in one.layers}
        fixed = (one.layers for one in self.accumulators if one.one_size)
        self._fixed = {layer.key for layers in fixed for layer in layers}
        self._output = tape.output if any(one.reads_output for one in self.accumulators) else None
        self._file: StateFile | None = None
        self.batch_size = at_once(batch_size, images.batch_size, usual=usual_batch_size(tape, self.device))
        self._size = self.batch_size  # of the batches that fit into memory
        self._alone: dict[Key, Tensor] = {}  # what the first image gives by itself
        self._last: tuple[int, Tensor] = (0, torch.empty(0))  # the batch that was read last

    def run(
        self, finish: Callable[[Progress], _Found], kind: type[_Found], out: str | os.PathLike[str] | None = None
    ) -> _Found:
        """Walk the images and return what `finish` makes of it, a `kind`.

        With `out` the state is written there every half minute and when the pass stops, also by Ctrl-C, and goes on
        from there; afterwards the result takes its place.
        """
        if self.team.size > 1:
            self.team.agree(self.key, "weights, images or options")
        if self.team.rank > 0:
            out = None
        file = None if out is None else StateFile(out, self.key, len(self.images))
        found = self.team.share(lambda: None if file is None else file.finished(kind))
        if found is not None:
            return found
        with contextlib.nullcontext() if out is None else locked(out):  # one writer at a time
            progress = self.walk(out)

            def whole() -> _Found:
                result = finish(progress)
                if file is not None:
                    file.finish(result)
                return result

            return self.team.share(whole)

    def walk(self, out: str | os.PathLike[str] | None = None) -> Progress:
        """Walk the images that are left, with the state in `out`, and return how far the accumulators are.

        Of several processes rank 0 returns what all have found.
        """
        self._file = None if out is None else StateFile(out, self.key, len(self.images))
        self._state = self._begin()
        self._saved, self._cost = time.monotonic(), 0.0
        together = self.team.size > 1  # then the state is what was found up to the last meeting
        try:
            with untouched(self.network), contextlib.closing(self._steps()) as steps:
                for index, state in enumerate(steps):
                    if self.look or index % _LOOK_EVERY == _LOOK_EVERY - 1:
                        self._check(state)
                    if not together:
                        self._state = state
                        if self._is_due():
                            self._save()
                self._check(self._state)
        finally:
            if self._state.count > 0:
                if not together:
                    self._save()
            elif self._file is not None:  # nothing was found: leave nothing
                self._file.remove()
        return self._state

    def _begin(self) -> Progress:
        """Return the progress that the file holds; of several processes only rank 0 has what was found so far."""
        found = Progress(0, self.accumulators)

        def read() -> tuple[int, bool]:
            nonlocal found
            if self._file is not None:
                found = self._file.read(found)
            return found.count, found.alone

        count, alone = self.team.share(read)
        return found if self.team.rank == 0 else Progress(count, self.accumulators, {}, alone)

    def _steps(self) -> Generator[Progress]:
        """Yield the progress after each batch, or part of one that fits into memory."""
        state, total = self._state, len(self.images)
        skipped = dict(state.skipped) if self.on_error == "skip" else None
        if state.count == total:
            return
        if state.alone:
            self._size = 1
        elif state.count == 0 and self.batch_size > 1:
            if self.team.size == 1:
                self._alone = self._observe_first()
            elif self.team.share(self._mixes):
                self._size = 1
        meetings = Meetings(self.team, state.count, total, self.batch_size)
        bar = tqdm(total=total, initial=state.count, unit=" images", disable=not self.progress, desc=self.name)
        # An error that somebody keeps would keep the workers, too, unless they are closed.
        turn = self.team.rank, self.team.size
        walk = self.images.batches(self.batch_size, state.count, self.workers, self.device, self.dtype, skipped, turn)
        clock, before = Clock(), self.images.spent
        with bar, contextlib.closing(walk) as batches:  # type: ignore[type-var]
            for first, batch in clock.watched(batches):
                while meetings.due(first):
                    self._meet(meetings, state)
                done = 0
                while done < len(batch):
                    part = batch[done : done + self._size]
                    measured = self._measured(state.accumulators, first + done, part)
                    if measured is None:
                        continue  # it did not fit: a smaller part does
                    done += len(part)
                    count = first + done
                    state = Progress(count, measured, dict(skipped or {}), self._size == 1 < self.batch_size)
                    yield state
                    bar.set_postfix_str(clock.note(self.images.spent, self.workers), refresh=False)
                    bar.update(meetings.reached(count) - bar.n)
            clock.report(self.name, self.images.spent.minus(before), bar.n, self.workers)
            if self.team.size > 1:
                state = dataclasses.replace(state, skipped=dict(skipped or {}))
                while not meetings.over:
                    self._meet(meetings, state)
                state, skipped = self._state, self._state.skipped
            if skipped and len(skipped) == total:
                raise ImageError(f"none of the {total} images can be read: {next(iter(skipped.values()))}")
            if state.count < total and self.team.size == 1:  # the last ones were skipped
                yield Progress(total, state.accumulators, dict(skipped or {}), state.alone)
            bar.update(total - bar.n)

    def _observe_first(self) -> dict[Key, Tensor]:
        """Return what the first image gives by itself."""
        return self._observe(self.images.example(self.on_error).to(self.device, self.dtype))[0]

    def _mixes(self) -> bool:
        """Say, before several processes begin, whether the images of the first batch see each other."""
        skipped: dict[int, str] | None = {} if self.on_error == "skip" else None
        walk = self.images.batches(self.batch_size, 0, 0, self.device, self.dtype, skipped)
        with contextlib.closing(walk) as batches:  # type: ignore[type-var]
            first, batch = next(batches)  # `example` has found one that can be read
        self._alone = self._observe_first()
        while self._alone:  # again with less where memory is short
            self._measured(self.accumulators, first, batch[: self._size])
        return self._size == 1

    def _meet(self, meetings: Meetings, state: Progress) -> None:
        """Learn that all ranks are as far as this one; rank 0 writes down what all have found if it is time to."""
        self._check(state)
        reached = meetings.meet(self._file is not None and self._is_due())
        if reached is None:
            return
        start = time.monotonic()
        facts, arrays = pack(state.accumulators)
        found, skipped = unpack(self.accumulators, facts, arrays), dict(state.skipped)

        def take(rank: int, facts: Any, arrays: dict[str, Tensor]) -> None:
            nonlocal found
            parts, more = facts
            other = unpack(self.accumulators, parts, arrays)
            found = tuple(a.merge(b) for a, b in zip(found, other, strict=True))
            skipped.update(more)

        self.team.gather((facts, skipped), arrays, take)
        if self.team.rank == 0:
            self._state = Progress(reached, found, skipped, self._size == 1 < self.batch_size)
            self._save(start)

    def _measured(
        self, accumulators: Sequence[Accumulator], first: int, batch: Tensor
    ) -> tuple[Accumulator, ...] | None:
        """Return the accumulators after these images, or None if memory ran out: then smaller parts come."""
        self._last = first, batch
        try:
            responses, output = self._observe(batch)
            if self._alone and not self._agrees(responses):
                self._size = 1
                return None
            return tuple(
                one.update(first, [responses[layer.key] for layer in one.layers], output) for one in accumulators
            )
        except Exception as error:
            if len(batch) == 1 or not lacks_memory(error):
                raise
        self._size = max(1, len(batch) // 2)
        release()
        return None

    def _observe(self, batch: Tensor) -> tuple[dict[Key, Tensor], Tensor | None]:
        values = {layer.value for layer in self._layers.values()}
        values |= set() if self._output is None else {self._output}
        wanted: dict[str, Any] = {"until": max(values), "keep": values}
        if self._channels_last:
            try:
                fast = batch.contiguous(memory_format=torch.channels_last)
                return self._responses(record(self.network, fast, **wanted), batch)
            except RuntimeError as error:
                if not dislikes_order(error):
                    raise
                self._channels_last = False  # a `view` in the model does not like this order
        return self._responses(record(self.network, batch.contiguous(), **wanted), batch)

    def _responses(self, tape: Tape, batch: Tensor) -> tuple[dict[Key, Tensor], Tensor | None]:
        """Return each layer's maps (n, units, height, width) by its key, and the output."""
        found = {key: self._response(layer, layer.response_in(tape), batch) for key, layer in self._layers.items()}
        output = None if self._output is None else tape.kept.get(self._output)
        return found, output

    def _response(self, layer: Layer, recorded: Tensor, batch: Tensor) -> Tensor:
        usual = (layer.units, layer.height, layer.width)
        flat = layer.reach.dims is None
        response = recorded if flat and recorded[0].numel() != math.prod(usual) else layer.as_maps(recorded)
        if (flat or layer.key in self._fixed) and response.shape[1:] != usual:
            raise ImageError(
                f"images of {tuple(batch.shape[2:])} pixels give layer {layer.name!r} maps of "
                f"{tuple(response.shape[1:])}, image 0 gives {usual}: positions would mean different things. Let "
                "preprocess bring all images to one size."
            )
        return response

    def _agrees(self, responses: dict[Key, Tensor]) -> bool:
        """Say whether the first image gives in the first batch what it gives alone, up to rounding."""
        everything, self._alone = self._alone, {}
        for key, alone in everything.items():
            one = responses[key][:1]
            most = _ROUNDING * torch.finfo(one.dtype).eps * alone.abs().amax()
            if one.shape == alone.shape and bool(((one - alone).abs() > most).any()):
                return False
        return True

    def _check(self, state: Progress) -> None:
        """Refuse NaN and infinity."""
        for one in state.accumulators:
            flaw = one.flaw()
            if flaw is not None:
                raise self._blamed(flaw)

    def _blamed(self, flaw: Flaw) -> Exception:
        """Say whose fault a response is that is not finite: the model's, or an image's."""
        first, batch = self._last
        images = {first + i: image for i, image in enumerate(batch)}
        if flaw.image is not None and flaw.image not in images:
            images = {flaw.image: self.images.take([flaw.image])[0]}
        for number, image in images.items():
            if not torch.isfinite(image).all():
                name = f"image {number} ({self.images.names[number]})"
                return ImageError(f"{name} holds NaN or infinity, expected finite values. Clean it or leave it out.")
        unit = "" if flaw.unit is None else f", unit {flaw.unit}"
        value = "NaN or infinity" if flaw.value is None else flaw.value
        whom = "finite images"
        if flaw.image is not None:
            whom = f"image {flaw.image} ({self.images.names[flaw.image]}), whose pixels are finite"
        return ModelError(
            f"layer {flaw.layer!r}{unit} gives {value} for {whom}. Look for a division by zero, or an overflow in half "
            "precision."
        )

    def _is_due(self) -> bool:
        """Say whether the state should be written."""
        return time.monotonic() - self._saved > SAVE_EVERY + 20 * self._cost

    def _save(self, start: float | None = None) -> None:
        """Write the state, and note how many seconds that took, or all since the `start`."""
        start = time.monotonic() if start is None else start
        if self._file is not None:
            self._file.write(self._state)
        self._saved = time.monotonic()
        self._cost = self._saved - start

    @functools.cached_property
    def key(self) -> str:
        """Hash everything that the file's bytes depend on."""
        parts = [one.describe() for one in self.accumulators]
        what = (
            repr(self.network),
            parts,
            self.measured_for,
            self.batch_size,
            self.device.type,
            self.dtype,
            self.on_error,
        )
        digest = hashlib.blake2b(re.sub(r" at 0x[0-9a-f]+", "", repr(what)).encode(), digest_size=16)
        digest.update(self.images.fingerprint().encode())
        hash_weights(self.network, digest)
        return digest.hexdigest()


def first_pass(
    model: nn.Module, images: ImageSet, on_error: str = "raise", wanted: Layers | None = None
) -> tuple[Tape, tuple[Layer, ...]]:
    """Record the first image's way through the model, and describe the layers there are; refuse unfit `wanted` ones."""
    check_on_error(on_error)
    with untouched(model) as network:
        check_weights(network)
        tape = record(network, images.example(on_error).to(*placement(network)), saver=Saving())
        rows = describe(tape, network)
    if wanted is not None:
        check_seen(tape, wanted)
    return tape, rows


def usual_batch_size(tape: Tape, device: torch.device) -> int:
    """Return how many images of a tape's size run at once where nobody says how many."""
    if device.type != "cpu":
        return _MOST_BATCH
    largest = max(shape.numel() // max(1, tape.shapes[0][0]) for shape in tape.shapes)
    few = min(_FEW, _LARGEST // (4 * largest))
    return max(1, few, min(_MOST_BATCH, _BUFFER_BYTES // (4 * largest)))
