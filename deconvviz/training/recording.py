"""What a `Recorder` kept: filters and projections epoch by epoch, when they settled, and their file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import LayerError, OptionError, StoreError
from ..results import store as _store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLD = 0.8
_ARRAYS = ("activations", "image_ids", "positions", "boxes", "patches", "projections")


@dataclass(frozen=True, eq=False)
class Track:
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


@dataclass(frozen=True, eq=False)
class Recording:
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

    def __getitem__(self, layer: int | str) -> Track:
        """Return the track of the layer with this number or module path."""
        for track in self.layers:
            if layer in (track.name, track.number):
                return track
        have = ", ".join(f"{t.name!r}" if t.number is None else f"{t.name!r} ({t.number})" for t in self.layers)
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

    def plot(self, figure: Figure | None = None, **options: Any) -> Figure:
        """Draw Fig. 4: units in rows, epochs in columns; see `deconvviz.plotting.recording.draw`."""
        from ..plotting import recording as _recording_plot

        return _recording_plot.draw(self, figure, **options)

    def plot_filters(self, figure: Figure | None = None) -> Figure:
        """Draw the first layer's filters at each epoch, one scale per epoch."""
        from ..plotting import recording as _recording_plot

        return _recording_plot.draw_filters(self, figure)

    def plot_convergence(self, figure: Figure | None = None, *, threshold: float = THRESHOLD) -> Figure:
        """Draw one curve of `convergence` per layer, and say when half of its units have settled."""
        from ..plotting import recording as _recording_plot

        return _recording_plot.draw_convergence(self, figure, threshold)

    def animate(self, path: str | os.PathLike[str], *, layer: int | str | None = None, seconds: float = 0.8) -> None:
        """Write a GIF, one picture per epoch; see `deconvviz.plotting.recording.animate`."""
        from ..plotting import recording as _recording_plot

        _recording_plot.animate(self, path, layer, seconds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, all or nothing."""
        write(path, [self])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read a file that `save` or a `Recorder` wrote; pictures are read when looked at.

        Raises:
            StoreError: the file cannot be read or holds something else.
        """
        arrays, meta = _store.load(path, "recording")
        facts: dict[str, Any] = dict(meta)
        epochs = tuple(facts["epochs"])
        layers = tuple(
            Track(name, number, epochs, torch.tensor(units), *(arrays[f"{i}/{field}"] for field in _ARRAYS))
            for i, (name, number, units) in enumerate(facts["layers"])
        )
        mean, std = (None if facts[k] is None else tuple(facts[k]) for k in ("mean", "std"))
        return cls(epochs, layers, arrays["filters"], facts["count"], facts["images"], facts["rule"], mean, std)

    def _repr_png_(self) -> bytes:
        from ..plotting import projections as plot

        return plot.png(self.plot())


def write(path: str | os.PathLike[str], recordings: Sequence[Recording]) -> None:
    """Write the epochs of all recordings to one file, the later one's where two have the same, all or nothing.

    Epoch by epoch from file to file: a recording may be larger than the memory.
    """
    rows = {epoch: (r, row) for r in recordings for row, epoch in enumerate(r.epochs)}
    first, epochs = recordings[0], sorted(rows)
    fields = {name: (a.dtype, (len(epochs), *a.shape[1:])) for name, a in _arrays(first).items()}
    layers = [[t.name, t.number, t.units.tolist()] for t in first.layers]
    plain = {name: getattr(first, name) for name in ("count", "images", "rule", "mean", "std")}
    with _store.replacing(path) as temporary:
        meta = {"kind": "recording", "epochs": epochs, "layers": layers, **plain}
        target = _store.create(temporary, fields, meta)
        for place, epoch in enumerate(epochs):
            source, row = rows[epoch]
            for name, array in _arrays(source).items():
                target[name][place] = array[row]


def _arrays(recording: Recording) -> dict[str, Tensor]:
    tracks = {f"{i}/{f}": getattr(t, f) for i, t in enumerate(recording.layers) for f in _ARRAYS}
    return {"filters": recording.filters, **tracks}


def check_same(path: os.PathLike[str], stored: Recording, new: Recording) -> None:
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
