"""One image's scan: which positions run, by which path, and into which maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import OptionError
from ..model.table import Layer
from ..tape.operations import Tape
from . import brute_force, incremental
from . import refine as _refine
from .meter import Meter
from .occluder import Occluder

CPU_BYTES = 1_000_000_000
GPU_SHARE = 0.5  # of what is free
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
        if self.memory is not None and self.memory < 1:
            raise OptionError(f"memory={self.memory}: give a number of bytes, at least 1.")
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise OptionError(f"dtype={self.dtype}: give torch.bfloat16, torch.float16, or None for the model's own.")
        if self.refine is not None and (not isinstance(self.refine, int) or self.refine < 2):
            raise OptionError(f"refine={self.refine!r}: give how many strides apart the coarse grid is, 2 or more.")

    def budget(self, device: torch.device) -> int:
        """Return the bytes that batches may take."""
        if self.memory is not None:
            return self.memory
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else CPU_BYTES

    def path(self, occluder: Occluder) -> str:
        """Choose the way: the fast one wherever every position is a box."""
        if occluder.boxes is None and self.method == "incremental":
            raise OptionError("method='incremental' needs boxes, and some mask is none. Give method='full' or None.")
        if occluder.masks is not None and self.refine is not None:
            raise OptionError("refine= needs a grid; masks have no neighbours. Leave it out.")
        return "full" if occluder.boxes is None else self.method or "incremental"


@dataclass(frozen=True)
class Scan:
    """Everything that is fixed while one image is scanned; runs inside `untouched`."""

    network: nn.Module
    tape: Tape  # of the unoccluded image's pass, with all tensors
    fill: Tensor
    occluder: Occluder
    layer: Layer | None
    settings: Settings

    def run(self, meter: Meter, title: str) -> tuple[dict[str, Tensor], Tensor]:
        """Return the maps (…, R, C) and which positions were measured (R, C)."""
        rows, cols = self.occluder.shape
        meter.open(rows * cols, self.fill.device)
        with tqdm(total=rows * cols, desc=title, unit=" positions", disable=not self.settings.progress) as bar:
            if self.settings.refine is None:
                self._measure(meter, None, bar)
                maps = {name: value.unflatten(-1, (rows, cols)) for name, value in meter.measured().items()}
                return maps, torch.ones(rows, cols, dtype=torch.bool)
            return self._refined(meter, self.settings.refine, bar)

    def _measure(self, meter: Meter, which: Tensor | None, bar: Any) -> None:
        """Measure the positions `which` (n,), None for all, into their places."""
        device = self.fill.device

        def receive(where: slice | Tensor, output: Tensor, response: Tensor | None) -> None:
            places = where if which is None else which[where]
            meter.receive(places if isinstance(places, slice) else places.to(device), output, response)
            bar.update(len(output))

        self._go(self.settings.path(self.occluder), which, receive, self.settings.dtype)

    def _go(self, path: str, which: Tensor | None, receive: brute_force.Receive, dtype: torch.dtype | None) -> None:
        occluder, every = self.occluder, slice(None) if which is None else which
        places: Tensor | None = occluder.boxes
        run: Callable[..., None] = brute_force.run_boxes
        if places is None:
            assert occluder.masks is not None
            places, run = occluder.masks, brute_force.run_masks
        elif path == "incremental":
            run = incremental.run_boxes
        memory = self.settings.budget(self.fill.device)
        run(self.network, self.tape, self.fill, places[every], self.layer, receive, memory=memory, dtype=dtype)

    def _refined(self, meter: Meter, step: int, bar: Any) -> tuple[dict[str, Tensor], Tensor]:
        shape = self.occluder.shape
        rows, cols = _refine.coarse(shape[0], step), _refine.coarse(shape[1], step)
        measured = torch.zeros(shape, dtype=torch.bool)
        measured[rows[:, None], cols] = True
        self._measure(meter, measured.flatten().nonzero().flatten(), bar)
        coarse = {n: value.unflatten(-1, shape)[..., rows[:, None], cols] for n, value in meter.measured().items()}
        finer = _refine.changing(coarse, meter.unoccluded, rows, cols) & ~measured
        if finer.any():
            self._measure(meter, finer.flatten().nonzero().flatten(), bar)
        measured |= finer
        places = self.occluder.rows, self.occluder.cols
        maps = {}
        for name, value in meter.measured().items():
            between = _refine.spread(coarse[name], name, rows, cols, places)
            maps[name] = torch.where(measured, value.unflatten(-1, shape), between)
        return maps, measured

    def deviation(self, maps: dict[str, Tensor], measured: Tensor, meter: Meter) -> dict[str, float] | None:
        """Return each map's largest difference from the model's own precision, on a sample of the positions.

        `meter` has the targets of the scan and the unoccluded values in the model's own precision.
        """
        if self.settings.dtype is None:
            return None
        known = measured.flatten().nonzero().flatten()
        sample = known[torch.linspace(0, len(known) - 1, min(SAMPLE, len(known))).long()]
        meter.open(len(sample), self.fill.device)
        self._go("full", sample, meter.receive, None)
        exact = meter.measured()
        return {
            name: float((exact[name] - maps[name].flatten(-2)[..., sample]).abs().nan_to_num().max())
            for name in exact
            if name != "label"
        }
