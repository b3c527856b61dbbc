"""What a `Recorder` kept: filters and projections epoch by epoch, when they settled, and their file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import LayerError, OptionError, StoreError
from ..results import store
from ..results.base import Result, Stored, as_columns, refuse_picture, tuples
from ..results.locks import locked
from ..results.text import amount, listed

THRESHOLD = 0.8
_ARRAYS = ("activations", "image_ids", "positions", "boxes", "patches", "projections")


@dataclass(frozen=True, eq=False, repr=False)
class Track(Stored):
    """How U units of one layer developed over E recorded epochs.

    Attributes:
        name: the layer's module path.
        number: its number as the papers count, or None.
        epochs: the E epochs, ascending.
        units: (U,) int64.
        activations: (E, U) of each unit's strongest image.
        image_ids: (E, U) which image that was.
        positions: (E, U, 2) as (row, column) in the layer's map.
        boxes: (E, U, 4) as (top, left, bottom, right) in input pixels.
        patches: (E, U, C, h, w) in the model's input space.
        projections: (E, U, C, h, w).
    """

    name: str
    number: int | None
    epochs: tuple[int, ...]
    units: Tensor
    activations: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    patches: Tensor
    projections: Tensor

    def describe(self) -> str:
        """Say of which layer, how many epochs and units, and how large."""
        height, width = self.patches.shape[-2:]
        return (
            f"{self.name}: {amount(len(self.epochs), 'epoch')} × {amount(len(self.units), 'unit')}, {height}×{width} px"
        )

    def changed(self) -> Tensor:
        """Return (E, U) bool: another image than at the recorded epoch before was the strongest."""
        moved = self.image_ids[1:] != self.image_ids[:-1]
        return torch.cat([torch.zeros_like(self.image_ids[:1], dtype=torch.bool), moved])

    def similarity(self) -> Tensor:
        """Return (E, U): the cosine between each epoch's projection and the last epoch's, in their frames.

        0 where a projection is all zero; NaN for a unit that is silent at the last epoch. As in the paper's figure,
        another image in front is a change, even if the unit finds the same thing in it.
        """
        last = self.projections[-1].flatten(1).double()
        rows = []
        for epoch in self.projections:  # one at a time: the file may be large
            now = epoch.flatten(1).double()
            size = now.norm(dim=1) * last.norm(dim=1)
            rows.append(torch.where(size > 0, (now * last).sum(1) / size, 0.0))
        return torch.stack(rows).where(last.norm(dim=1) > 0, torch.nan).clamp(-1, 1)

    def settled(self, threshold: float = THRESHOLD) -> Tensor:
        """Return (U,) int64: the recorded epoch from which on `similarity` stays at or above `threshold`.

        0 for a unit that is silent at the last epoch. The last epoch itself says: not before the recording ends.
        """
        if not 0 < threshold <= 1:
            raise OptionError(f"threshold={threshold!r}: expected a cosine above 0, at most 1.")
        similar = self.similarity()
        # Rounding keeps the last epoch's similarity with itself a hair off 1.
        below = (
            (similar < threshold - 1e-9).long().flip(0).cummax(0).values.sum(0)
        )  # epochs up to the last that is too far
        first = torch.tensor([*self.epochs, 0])[below]
        return torch.where(similar[-1].isnan(), 0, first)


@dataclass(frozen=True, eq=False, repr=False)
class Recording(Result):
    """Filters and projections over the epochs of a training run (Fig. 4 of the ZFNet paper).

    Example:
        >>> recording = deconvviz.Recording.load("run/recording.safetensors")  # doctest: +SKIP
        >>> recording.epochs, recording[5].projections.shape  # doctest: +SKIP
        ((1, 2, 5, 10), torch.Size([4, 16, 3, 64, 64]))

    Attributes:
        epochs: the E recorded epochs, ascending.
        layers: one `Track` per layer; `recording[5]` and `recording["features.13"]` pick one.
        filters: (E, F, C, h, w), the weights of the convolution that runs first; F = 0 where there is none.
        count: how many images the strongest were chosen from.
        images: what these images are, as a hash.
        rule: of the way back, see `project`.
        mean, std: take patches back to pixels of 0–1; None where that is not known.
    """

    epochs: tuple[int, ...]
    layers: tuple[Track, ...]
    filters: Tensor
    count: int
    images: str = ""
    rule: str = "deconvnet"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    file_kind = "recording"
    holds = (Track,)
    drawn_by = "recording"

    def __getitem__(self, layer: int | str) -> Track:
        """Return the track of the layer with this number or module path."""
        for track in self.layers:
            if layer in (track.name, track.number):
                return track
        have = listed([t.name for t in self.layers], [t.number for t in self.layers])
        raise LayerError(f"no layer {layer!r} in this recording, it has {have}.")

    def convergence(self) -> Tensor:
        """Return (L, E): per layer and epoch the mean of `Track.similarity` over the units that are not silent."""
        self.check()
        return torch.stack([track.similarity().nanmean(1) for track in self.layers])

    def half_settled(self, threshold: float = THRESHOLD) -> dict[str, int | None]:
        """Return per layer the epoch by which half of its units have settled, see `Track.settled`.

        None: not before the recording's last epoch, with which all is compared.
        """
        self.check()
        found: dict[str, int | None] = {}
        for track in self.layers:
            epochs = track.settled(threshold)
            epochs = epochs[epochs > 0].sort().values
            half = int(epochs[(len(epochs) - 1) // 2]) if len(epochs) else self.epochs[-1]
            found[track.name] = half if half < self.epochs[-1] else None
        return found

    def check(self) -> None:
        """Refuse a recording without epochs."""
        if not self.epochs:
            raise OptionError("nothing is recorded yet: call the recorder after an epoch that it keeps.")

    def plot(
        self,
        figure: Any = None,
        *,
        layer: int | str | None = None,
        units: Sequence[int] | None = None,
        scale: str = "projection",
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw units in rows and epochs in columns; see `deconvviz.plotting.recording.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, layer=layer, units=units, scale=scale, **look)

    def plot_filters(
        self,
        figure: Any = None,
        *,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the first layer's filters at each epoch; see `deconvviz.plotting.recording.draw_filters`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw_filters", figure, **look)

    def plot_convergence(
        self,
        figure: Any = None,
        *,
        threshold: float = THRESHOLD,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw one curve of `convergence` per layer, and say when half of its units have settled."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw_convergence", figure, threshold=threshold, **look)

    def animate(self, path: str | os.PathLike[str], *, layer: int | str | None = None, seconds: float = 0.8) -> None:
        """Write a GIF, one picture per epoch; see `deconvviz.plotting.recording.animate`."""
        self.drawing("animate")(self, path, layer=layer, seconds=seconds)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer, epoch and unit; its strongest image, and how alike the last."""
        rows = []
        for track in self.layers:
            similar = track.similarity()
            for place, epoch in enumerate(track.epochs):
                for i, unit in enumerate(track.units.tolist()):
                    row = {"layer": track.name, "epoch": epoch, "unit": unit, "similarity": float(similar[place, i])}
                    row |= {
                        "activation": float(track.activations[place, i]),
                        "image_id": int(track.image_ids[place, i]),
                    }
                    rows.append(row)
        return as_columns(rows)

    def describe(self) -> str:
        """Say of which layers, how many epochs and images."""
        epochs = ", ".join(map(str, self.epochs)) or "none yet"
        return f"{', '.join(t.name for t in self.layers)}: epochs {epochs}; {amount(self.count, 'image')}"

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        layers = [[t.name, t.number, t.units.tolist()] for t in self.layers]
        plain = {name: getattr(self, name) for name in ("count", "images", "rule", "mean", "std")}
        tracks = {f"{i}/{f}": getattr(t, f) for i, t in enumerate(self.layers) for f in _ARRAYS}
        return {"epochs": list(self.epochs), "layers": layers, **plain}, {"filters": self.filters, **tracks}

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Recording:
        """Take back what `header` returned."""
        epochs = tuple(facts["epochs"])
        layers = tuple(
            Track(name, number, epochs, torch.tensor(units), *(arrays[f"{i}/{field}"] for field in _ARRAYS))
            for i, (name, number, units) in enumerate(facts["layers"])
        )
        plain = {name: tuples(facts[name]) for name in ("count", "images", "rule", "mean", "std")}
        return cls(epochs, layers, arrays["filters"], **plain)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, epoch by epoch, all or nothing."""
        refuse_picture(path)
        write(path, [self])


def add(path: str | os.PathLike[str], new: Recording) -> None:
    """Put the epochs of a recording into a file, which is made if there is none; writers of one file take turns."""
    with locked(path, wait=True):
        stored = [Recording.load(path)] if os.path.exists(path) else []
        if stored:
            check_same(path, stored[0], new)
        if new.epochs or not stored:
            write(path, [*stored, new])


def write(path: str | os.PathLike[str], recordings: Sequence[Recording]) -> None:
    """Write the epochs of all recordings to one file, the later one's where two have the same, all or nothing.

    Epoch by epoch from file to file: a recording may be larger than the memory.
    """
    rows = {epoch: (r, row) for r in recordings for row, epoch in enumerate(r.epochs)}
    epochs = sorted(rows)
    facts, first = recordings[0].header()
    fields = {name: (a.dtype, (len(epochs), *a.shape[1:])) for name, a in first.items()}
    with store.filling(path, fields, {"kind": Recording.file_kind, **facts, "epochs": epochs}) as target:
        for place, epoch in enumerate(epochs):
            source, row = rows[epoch]
            for name, array in source.header()[1].items():
                target[name][place] = array[row]


def check_same(path: str | os.PathLike[str], stored: Recording, new: Recording) -> None:
    """Refuse to put epochs of two kinds into one file."""
    for what, before, now in zip(("layers and units", "images", "rule"), _facts(stored), _facts(new), strict=True):
        if before != now:
            raise StoreError(
                f"{path} is a recording with other {what}: {before} there, {now} now. Give another path, or remove it."
            )


def _facts(recording: Recording) -> tuple[object, ...]:
    layers = {t.name: (t.units.tolist(), "windows", *t.patches.shape[2:]) for t in recording.layers}
    filters = f"{layers}, filters {tuple(recording.filters.shape[1:])}"
    return filters, f"{recording.count} ({recording.images[:12]})", recording.rule
