"""What a training run leaves: its history epoch by epoch, and where its files are."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..results import store as _store

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over the training images and the validation after it.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the images as they were fed: augmented, with dropout and label smoothing.
        train_accuracy: share of these images whose most probable class was right.
        val_loss: mean cross entropy over the validation images' centre crops, without smoothing.
        top1: share of the validation images whose most probable class is right.
        top5: share of the validation images with the right class among the five most probable.
        lr: the learning rate of the epoch's last step.
        seconds: wall-clock time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    top1: float
    top5: float
    lr: float
    seconds: float

    def __str__(self) -> str:
        """Say it all in one line."""
        return (
            f"epoch {self.epoch}: loss {self.train_loss:.3f}, accuracy {self.train_accuracy:.1%}; "
            f"validation loss {self.val_loss:.3f}, top-1 {self.top1:.1%}, top-5 {self.top5:.1%}; "
            f"lr {self.lr:.2g}, {self.seconds:.0f} s"
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """A finished training run.

    Attributes:
        history: one `Epoch` per epoch.
        weights: path of the trained weights, safetensors in float16.
        card: path of the card beside them, JSON.
        skipped: the images that could not be read.
    """

    history: tuple[Epoch, ...]
    weights: Path
    card: Path
    skipped: tuple[Path, ...]

    def plot(self, figure: FigureBase | None = None) -> FigureBase:
        """Draw loss and accuracy over the epochs into `figure`, or into a new one, and return it."""
        from matplotlib.figure import Figure

        figure = figure or Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        epochs = [e.epoch for e in self.history]
        left.plot(epochs, [e.train_loss for e in self.history], label="training")
        left.plot(epochs, [e.val_loss for e in self.history], label="validation")
        right.plot(epochs, [e.train_accuracy for e in self.history], label="training, top-1")
        right.plot(epochs, [e.top1 for e in self.history], label="validation, top-1")
        right.plot(epochs, [e.top5 for e in self.history], label="validation, top-5")
        for axes, name in ((left, "loss"), (right, "accuracy")):
            axes.set(xlabel="epoch", ylabel=name)
            axes.legend(frameon=False)
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history and the paths to one file, all or nothing."""
        rows = [dataclasses.astuple(e) for e in self.history]
        meta = {
            "kind": "training",
            "weights": str(self.weights),
            "card": str(self.card),
            "skipped": [str(p) for p in self.skipped],
        }
        _store.save(path, {"history": torch.tensor(rows, dtype=torch.float64)}, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Training:
        """Read what `save` wrote.

        Raises:
            StoreError: the file cannot be read or holds something else.
        """
        arrays, meta = _store.load(path, "training")
        history = tuple(Epoch(int(row[0]), *row[1:]) for row in arrays["history"].tolist())
        skipped = tuple(map(Path, meta["skipped"]))  # type: ignore[call-overload]
        return cls(history, Path(str(meta["weights"])), Path(str(meta["card"])), skipped)

    def _repr_png_(self) -> bytes:
        from ..plotting.projections import png

        return png(self.plot())
