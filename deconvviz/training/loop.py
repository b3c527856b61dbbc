"""The loop of a training run over images that were decoded once, exactly resumable."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..errors import ModelError
from ..guard import seeded
from ..model.output import classification_losses
from ..modes import sound_gradients
from . import checkpoint as _checkpoint
from . import pixels as _pixels
from .augment import changed, seeds
from .recipe import clamp_filters, epoch_seed, rate
from .result import Epoch
from .run import Run
from .sharing import whole_batches


class After(Protocol):
    """What is done with the model after each epoch, before its checkpoint."""

    def begin(self, epochs: int) -> None:
        """Refuse what cannot follow this many epochs."""

    def __call__(self, network: nn.Module, number: int) -> None:
        """Take the network after an epoch."""


def loop(run: Run, path: Path, signature: Mapping[str, Any], resume: bool, after: After) -> list[Epoch]:
    """Train the epochs that the checkpoint at `path` does not hold; return the history of all."""
    history = _checkpoint.read(path, signature, run.parts) if resume else []
    after.begin(len(history))
    with whole_batches(run.network, run.part, run.device) as run.called:
        for number in range(len(history) + 1, run.recipe.epochs + 1):
            history.append(_epoch(run, number, history))
            # The checkpoint comes last: a run that is killed here repeats the epoch, so no file or call is lost.
            after(run.network, number)
            run.part.team.share(lambda: _checkpoint.write(path, signature, history, run.parts))
            if run.bar:
                tqdm.write(str(history[-1]), sys.stderr)
                sys.stderr.flush()
    return history


def _epoch(run: Run, number: int, history: list[Epoch]) -> Epoch:
    """Train and validate once; of several processes all return what rank 0 measured."""
    start, team = time.perf_counter(), run.part.team
    with team.unheard():
        with seeded(epoch_seed(run.seed, number), run.device):
            loss, accuracy, lr = _pass(run, number, history)
        val_loss, top1, top5 = _validate(run)
    seconds = time.perf_counter() - start
    return team.share(lambda: Epoch(number, loss, accuracy, val_loss, top1, top5, lr, seconds))


def _pass(run: Run, number: int, history: list[Epoch]) -> tuple[float, float, float]:
    """Train one epoch: mean loss, accuracy, last learning rate."""
    run.begin_epoch()
    generator = torch.Generator().manual_seed(epoch_seed(run.seed, number))
    rows = run.train.good[torch.randperm(len(run.train.good), generator=generator)]
    counts = [len(batch) for batch in rows.split(run.recipe.batch_size)]
    images, size = run.train.images, run.card.input_size[0]
    shift = int(size * run.recipe.shift) if images.shape[1] == size else 0
    fill = (255 * run.mean).round().to(images) if run.recipe.border == "mean" else None
    windows = _pixels.Windows.draw_epoch(
        counts, images.shape[1], size, shift, generator, images.device, run.recipe.mirrored
    )
    at = (index.split(run.recipe.batch_size) for index in run.train.rows(rows))
    errors = [1 - epoch.top1 for epoch in history]
    bar = tqdm(counts, f"epoch {number}", unit="batch", leave=False, disable=None if run.bar else True)
    tally = _Tally(bar, number, late=run.device.type != "cpu")
    for i, (count, here, there, window) in enumerate(zip(bar, *at, windows, strict=True)):
        step = (number - 1) * len(counts) + i
        lr = rate(run.recipe, step, len(counts), errors)
        own = run.part.take(count)
        here, there, window = here[own], there[own], window.take(own)
        draws = seeds(run.seed, number, range(i * run.recipe.batch_size, len(rows))[own])
        crops, labels = (
            changed(images[here], run.recipe, window, size, fill, run.colours, draws),
            run.train.labels[there],
        )
        tally.look()
        tally.add(step, lr, count, _step(run, crops, labels, lr))
    return tally.mean(lr)


class _Tally:
    """The losses and right answers of an epoch.

    A GPU computes a step while the next one is prepared: its numbers are looked at, one wait, when that is done.
    """

    def __init__(self, bar: tqdm, number: int, late: bool) -> None:
        self.bar, self.number, self.late = bar, number, late
        self.total, self.right, self.count = 0.0, 0, 0
        self.unseen: tuple[int, float, int, torch.Tensor] | None = None

    def add(self, step: int, lr: float, count: int, numbers: torch.Tensor) -> None:
        """Take a step's numbers, its loss and how many of its `count` answers were right."""
        self.unseen = step, lr, count, numbers
        if not self.late:
            self.look()

    def look(self) -> None:
        """Count the last step; refuse a loss that is not finite."""
        if self.unseen is None:
            return
        (step, lr, count, numbers), self.unseen = self.unseen, None
        loss, hits = numbers.tolist()
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss became {loss} at step {step} (epoch {self.number}, lr {lr:.3g}). "
                "The checkpoint before it is untouched; train with a lower lr."
            )
        self.total, self.right, self.count = self.total + loss * count, self.right + int(hits), self.count + count
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def mean(self, lr: float) -> tuple[float, float, float]:
        """Return the mean loss, the accuracy and the last learning rate."""
        self.look()
        return self.total / self.count, self.right / self.count, lr


def _step(run: Run, crops: torch.Tensor, labels: torch.Tensor, lr: float) -> torch.Tensor:
    """Change the weights once: (loss, number of right answers), on the device."""
    scores, part = run.scores(crops), run.part
    each = classification_losses(scores, labels, run.recipe.auxiliary, smoothing=run.recipe.label_smoothing)
    loss = part.counted(each).sum() / part.count
    hits = part.counted((scores[0].argmax(1) == labels).to(loss)).sum()
    numbers = part.team.add(torch.stack([loss.detach(), hits]))
    loss = loss * part.team.size  # gradients are averaged over the processes, the loss is summed
    # Where looking costs no wait, a loss that is not finite leaves the weights alone.
    if run.device.type == "cpu" and not math.isfinite(numbers[0]):
        return numbers
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad()
    with sound_gradients():
        run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.recipe.clamp_rms is not None:
        clamp_filters(run.model, run.recipe.clamp_rms)
    return numbers


@torch.no_grad()
def _validate(run: Run) -> tuple[float, float, float]:
    """Return the mean loss, the top-1 and the top-5 accuracy on the centre crops, or on ten crops of each image."""
    run.model.eval()
    team = run.part.team
    sums = []
    at = (index.split(4 * run.recipe.batch_size) for index in run.val.rows(run.val.good))
    for number, (here, there) in enumerate(zip(*at, strict=True)):
        if number % team.size != team.rank:
            sums.append(torch.zeros(3, device=run.device))
            continue
        labels = run.val.labels[there]
        logits = _seen(run, run.val.images[here])
        loss = cross_entropy(logits, labels, reduction="sum")
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        sums.append(torch.stack([loss, hits[:, 0].sum().to(loss), hits.sum().to(loss)]))
    n = len(run.val.good)
    total, first, five = (sum(column) / n for column in zip(*team.add(torch.stack(sums)).tolist(), strict=True))
    return total, first, five


def _seen(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Return the scores (N, classes) of bytes (N, S, S, C); of ten crops the logarithm of their mean probability."""
    size, resize = run.card.input_size[0], run.card.resize
    if run.crops == 1:
        return run.scores(_pixels.centre_crops(images, size, resize))[0]
    each = [run.scores(crops)[0].double().log_softmax(1) for crops in _pixels.ten_crops(images, size, resize)]
    return torch.stack(each).logsumexp(0).sub(math.log(len(each))).float()
