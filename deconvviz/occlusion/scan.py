"""One image's scan: which positions run, by which path, and into which maps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import whole
from ..errors import OptionError
from ..model.table import Layer
from ..tape.operations import Tape
from . import brute_force, incremental, memory
from . import refine as _refine
from .meter import Meter
from .occluder import Occluder

_log = logging.getLogger("deconvviz")

SAMPLE = 16  # positions that a lower precision is checked at


@dataclass(frozen=True)
class Settings:
    """How a scan runs; all of `occlude`'s options that are not about what it measures."""

    method: str | None = None
    memory: int | None = None
    dtype: torch.dtype | None = None
    refine: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.method not in (None, "incremental", "full"):
            raise OptionError(f"method={self.method!r} has no meaning here. Give 'incremental', 'full' or None.")
        if self.memory is not None:
            whole(self.memory, "memory", 1)
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise OptionError(f"dtype={self.dtype}: give torch.bfloat16, torch.float16, or None for the model's own.")
        if self.refine is not None:
            whole(self.refine, "refine", 2)  # how many strides apart the coarse grid is

    def budget(self, device: torch.device) -> int:
        """Return the bytes that batches may take."""
        return memory.budget(device) if self.memory is None else int(self.memory)

    def check(self, occluder: Occluder) -> None:
        """Refuse what does not go with these positions."""
        if occluder.boxes is None and self.method == "incremental":
            raise OptionError("method='incremental' needs boxes, and some mask is none. Give method='full' or None.")
        if occluder.masks is not None and self.refine is not None:
            raise OptionError("refine= needs a grid; masks have no neighbours. Leave it out.")


@dataclass(frozen=True, eq=False)
class Scanned:
    """What was found: maps (…, R, C), which positions were measured (R, C), by which method, and why not a faster one."""

    maps: dict[str, Tensor]
    measured: Tensor
    method: str
    note: str


@dataclass(frozen=True)
class Scan:
    """Everything that is fixed while one image is scanned; runs inside `untouched`."""

    network: nn.Module
    tape: Tape  # of the unoccluded image's pass, with all tensors
    fill: Tensor
    occluder: Occluder
    layer: Layer | None
    settings: Settings

    def run(self, meter: Meter, title: str) -> Scanned:
        """Scan the image the fast way, and where that cannot be, the whole network on every occluded image."""
        why = ""
        if self.occluder.boxes is not None and self.settings.method != "full":
            try:
                maps, measured, _ = self._scan("incremental", meter, title)
                return Scanned(maps, measured, "incremental", "")
            except incremental.Unbatched as error:
                if self.settings.method is not None:  # asked for
                    raise
                why = str(error).removesuffix(incremental.FULL).strip()
        maps, measured, alone = self._scan("full", meter, title)
        if alone:
            why = f"{alone}; the images ran one by one"
            _log.warning("occlude: %s", why)
        return Scanned(maps, measured, "full", why)

    def _scan(self, path: str, meter: Meter, title: str) -> tuple[dict[str, Tensor], Tensor, str]:
        """Return the maps (…, R, C), which positions were measured (R, C), and why images ran one by one, or ""."""
        rows, cols = self.occluder.shape
        meter.open(rows * cols, self.fill.device)
        with tqdm(total=rows * cols, desc=title, unit=" positions", disable=not self.settings.progress) as bar:
            if self.settings.refine is None:
                why = self._measure(path, meter, None, bar)
                maps = {name: value.unflatten(-1, (rows, cols)) for name, value in meter.measured().items()}
                return maps, torch.ones(rows, cols, dtype=torch.bool), why
            return self._refined(path, meter, int(self.settings.refine), bar)

    def _measure(self, path: str, meter: Meter, which: Tensor | None, bar: Any) -> str:
        """Measure the positions `which` (n,), None for all, into their places; return why one by one, or ""."""
        device = self.fill.device

        def receive(where: slice | Tensor, output: Tensor, response: Tensor | None) -> None:
            places = where if which is None else which[where]
            meter.receive(places if isinstance(places, slice) else places.to(device), output, response)
            bar.update(len(output))

        return self._go(path, which, receive, self.settings.dtype)

    def _go(self, path: str, which: Tensor | None, receive: brute_force.Receive, dtype: torch.dtype | None) -> str:
        occluder, every = self.occluder, slice(None) if which is None else which
        places: Tensor | None = occluder.boxes
        run: Callable[..., str | None] = brute_force.run_boxes
        if places is None:
            assert occluder.masks is not None
            places, run = occluder.masks, brute_force.run_masks
        elif path == "incremental":
            run = incremental.run_boxes
        room = self.settings.budget(self.fill.device)
        tensors = self.tape, self.fill, places[every]
        return run(self.network, *tensors, self.layer, receive, memory=room, dtype=dtype) or ""

    def _refined(self, path: str, meter: Meter, step: int, bar: Any) -> tuple[dict[str, Tensor], Tensor, str]:
        shape = self.occluder.shape
        rows, cols = _refine.coarse(shape[0], step), _refine.coarse(shape[1], step)
        measured = torch.zeros(shape, dtype=torch.bool)
        measured[rows[:, None], cols] = True
        why = self._measure(path, meter, measured.flatten().nonzero().flatten(), bar)
        coarse = {n: value.unflatten(-1, shape)[..., rows[:, None], cols] for n, value in meter.measured().items()}
        finer = _refine.changing(coarse, meter.unoccluded, rows, cols) & ~measured
        if finer.any():
            why = self._measure(path, meter, finer.flatten().nonzero().flatten(), bar) or why
        measured |= finer
        places = self.occluder.rows, self.occluder.cols
        maps = {}
        for name, value in meter.measured().items():
            between = _refine.spread(coarse[name], name, rows, cols, places)
            maps[name] = torch.where(measured, value.unflatten(-1, shape), between)
        return maps, measured, why

    def deviation(self, found: Scanned, meter: Meter) -> dict[str, float] | None:
        """Return each map's largest difference from the model's own precision, on a sample of the positions.

        `meter` has the targets of the scan and the unoccluded values in the model's own precision.
        """
        if self.settings.dtype is None:
            return None
        known = found.measured.flatten().nonzero().flatten()
        sample = known[torch.linspace(0, len(known) - 1, min(SAMPLE, len(known))).long()]
        meter.open(len(sample), self.fill.device)
        self._go("full", sample, meter.receive, None)
        exact = meter.measured()
        return {
            name: float((exact[name] - found.maps[name].flatten(-2)[..., sample]).abs().nan_to_num().max())
            for name in exact
            if name != "label"
        }
