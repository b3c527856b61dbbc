"""What a training run leaves: its history epoch by epoch, and where its files are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..results.base import Result
from ..results.text import amount


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over the training images and the validation after it.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the images as they were fed: augmented, with dropout and label smoothing.
        train_accuracy: share of these images whose most probable class was right.
        val_loss: mean cross entropy over the validation images' centre crops, or their ten crops' mean probability,
            without smoothing.
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Training(Result):
    """A finished training run.

    Attributes:
        history: one `Epoch` per epoch.
        weights: path of the trained weights, safetensors in float16.
        card: path of the card beside them, JSON.
        skipped: the images that could not be read.
        page: path of the page with pictures of what the network sees, or None where none were asked for.
    """

    history: tuple[Epoch, ...]
    weights: Path
    card: Path
    skipped: tuple[Path, ...]
    page: Path | None = None

    file_kind = "training"
    drawn_by = "training"

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each epoch."""
        names = [field.name for field in dataclasses.fields(Epoch)]
        return {name: [getattr(epoch, name) for epoch in self.history] for name in names}

    def describe(self) -> str:
        """Say how many epochs, and what the last one reached."""
        last = f", top-1 {self.history[-1].top1:.1%}" if self.history else ""
        return f"{self.weights}: {amount(len(self.history), 'epoch')}{last}"

    def table(self) -> str:
        """Return one line per epoch."""
        return "\n".join(map(str, self.history))

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        rows = [dataclasses.astuple(e) for e in self.history]
        facts: dict[str, Any] = {"weights": str(self.weights), "card": str(self.card)}
        facts |= {"skipped": [str(p) for p in self.skipped], "page": self.page and str(self.page)}
        return facts, {"history": torch.tensor(rows, dtype=torch.float64)}

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Training:
        """Take back what `header` returned."""
        if not isinstance(facts["skipped"], list):
            raise ValueError("skipped is no list")
        history = tuple(Epoch(int(row[0]), *row[1:]) for row in arrays["history"].tolist())
        page = facts.get("page")
        skipped = tuple(map(Path, facts["skipped"]))
        return cls(history, Path(facts["weights"]), Path(facts["card"]), skipped, page and Path(page))
