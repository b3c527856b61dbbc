"""A recording's pictures and numbers, sent to TensorBoard or Weights & Biases as they come."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import nn

from .. import ranks
from ..errors import OptionError
from ..results.base import png
from ..training.recorder import Recorder, Recording, Track

UNITS = 6  # of each layer, in a picture


class Tracker(Protocol):
    """What takes pictures and numbers."""

    def send(self, pictures: dict[str, np.ndarray[Any, Any]], numbers: dict[str, float], epoch: int) -> None:
        """Take pictures (height, width, 3) uint8 and numbers by name, of one epoch."""


class TensorBoard:
    """Sends to a `torch.utils.tensorboard.SummaryWriter`, or to what has its `add_image` and `add_scalar`.

    Args:
        writer: The writer; it stays the caller's to close.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def send(self, pictures: dict[str, np.ndarray[Any, Any]], numbers: dict[str, float], epoch: int) -> None:
        """Write everything with the epoch as its step."""
        for name, pixels in pictures.items():
            self.writer.add_image(name, pixels, epoch, dataformats="HWC")
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)


class WeightsAndBiases:
    """Sends to a run of Weights & Biases, all of an epoch in one `log`.

    Args:
        run: What `wandb.init` returned; it stays the caller's to finish.
    """

    def __init__(self, run: Any) -> None:
        self.run = run

    def send(self, pictures: dict[str, np.ndarray[Any, Any]], numbers: dict[str, float], epoch: int) -> None:
        """Log everything; the run counts its steps itself, the epoch is one of the numbers."""
        import wandb

        images = {name: wandb.Image(pixels) for name, pixels in pictures.items()}
        self.run.log({**numbers, **images, "deconvviz/epoch": epoch})


class Tracked:
    """A recorder that hands what it keeps to trackers: call it with the model after each epoch.

    Example:
        >>> from torch.utils.tensorboard import SummaryWriter  # doctest: +SKIP
        >>> recorder = Tracked(Recorder("record.safetensors"), TensorBoard(SummaryWriter("runs")))  # doctest: +SKIP
        >>> for epoch in range(1, 11):  # doctest: +SKIP
        ...     train_one_epoch(model)
        ...     recorder(model, epoch)

    Of each layer a picture goes out (some units in rows, the epochs so far in columns) and three numbers: the mean of
    the units' strongest activations, the share of units whose strongest image is another one than at the recorded epoch
    before, and the share of silent units.

    Args:
        recorder: Keeps the file.
        trackers: `TensorBoard`, `WeightsAndBiases`, or anything with their `send`.
        units: How many units of each layer are in its picture, the first ones of those that are recorded.
    """

    def __init__(self, recorder: Recorder, *trackers: Tracker, units: int = UNITS) -> None:
        if units < 1:
            raise OptionError(f"units={units}: expected at least 1.")
        self.recorder, self.trackers, self.units = recorder, trackers, units

    def __call__(self, model: nn.Module, epoch: int) -> bool:
        """Record the model as `Recorder` does, and send what is new; return whether this epoch was one to keep."""
        kept = self.recorder(model, epoch)
        if kept and self.trackers and ranks.is_first():
            recording = self.recorder.recording
            pictures, numbers = self._pictures(recording), numbers_of(recording, epoch)
            for tracker in self.trackers:
                tracker.send(pictures, numbers, epoch)
        return kept

    def _pictures(self, recording: Recording) -> dict[str, np.ndarray[Any, Any]]:
        found = {}
        for track in recording.layers:
            figure = recording.plot(layer=track.name, units=track.units[: self.units].tolist())
            with Image.open(io.BytesIO(png(figure))) as picture:
                found[f"deconvviz/{track.name}"] = np.asarray(picture.convert("RGB"))
        return found


def numbers_of(recording: Recording, epoch: int) -> dict[str, float]:
    """Return what a recorded epoch says of each layer, by name: "deconvviz/LAYER/activation", "…/changed", "…/silent"."""
    row = recording.epochs.index(epoch)
    found: dict[str, float] = {}
    for track in recording.layers:
        found |= {f"deconvviz/{track.name}/{name}": value for name, value in _numbers(track, row).items()}
    return found


def _numbers(track: Track, row: int) -> dict[str, float]:
    strongest = track.activations[row]
    return {
        "activation": float(strongest.double().mean()),
        "changed": float(track.changed()[row].double().mean()),
        "silent": float((strongest == 0).double().mean()),
    }


def trackers_of(loggers: Sequence[Any]) -> list[Tracker]:
    """Return a tracker for each of Lightning's loggers that takes pictures: TensorBoard's and W&B's; others get none."""
    known: dict[str, Any] = {"TensorBoardLogger": TensorBoard, "WandbLogger": WeightsAndBiases}
    kinds = ((one, {kind.__name__ for kind in type(one).__mro__} & set(known)) for one in loggers)
    return [known[kind.pop()](one.experiment) for one, kind in kinds if kind]
