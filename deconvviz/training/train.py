"""Training: one loop over images that were decoded once, exactly resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from .. import zoo
from ..checks import find_device
from ..errors import ModelError, OptionError
from ..jobs.journal import Journal
from ..zoo import Card
from . import checkpoint as _checkpoint
from . import pixels as _pixels
from .recipe import RECIPES, Recipe, choose, clamp_filters, rate
from .result import Epoch, Training
from .run import Run, autocast_dtype, epoch_seed

if TYPE_CHECKING:
    from .recorder import Recorder

__all__ = ["RECIPES", "Epoch", "Recipe", "Training", "train"]


def train(
    model: nn.Module | str,
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    recipe: str | Recipe = "modern",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    clamp_rms: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    image_size: int | None = None,
    resume: bool = True,
    validation: str | os.PathLike[str] | float | None = None,
    keep_epochs: Collection[int] = (),
    on_epoch: Callable[[nn.Module, int], None] | None = None,
    recorder: Recorder | str | os.PathLike[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    licence: str = "not stated",
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Training:
    """Train a network on a folder of images.

    Example:
        >>> result = deconvviz.train("zfnet64", "tiny-imagenet", out="runs/zfnet64", dtype=torch.bfloat16)
        >>> result.history[-1].top1 > 0.4
        True
        >>> model = deconvviz.zoo.create("zfnet64", weights=result.weights)

    Every image is decoded once, to bytes that stay in memory (a 64-pixel image takes 12 kB) or in `cache`;
    crops and flips are cut from them batch by batch. An epoch's order, crops and dropout depend on `seed` and
    the epoch's number alone, and a checkpoint follows each epoch: on a CPU, with the same number of threads,
    a run that was killed and started again ends with the same bits as one that was not.

    Args:
        model: a name of the zoo, or a module (N, 3, S, S) to (N, classes), which is trained in place, all of
            it in training mode; it comes back on its device with its modes.
        data: a folder with one subfolder of images per class, which may hold subfolders; or a folder with
            two such folders, train and val (or validation, or test).
        out: folder for checkpoint.pt, weights.safetensors (float16) and card.json. To bundle a network, copy
            the latter two to deconvviz/zoo/weights/<name>.safetensors and <name>.json.
        recipe: "modern", "paper" (ZFNet), "cifar" (ResNet), "cifar-warm" (for 110 layers and more), "cifar-short"
            (30 epochs, one cycle: not the paper's), or a `Recipe`.
        epochs: this and the next three replace the recipe's own value, unless None.
        batch_size: images per step.
        lr: the highest learning rate.
        clamp_rms: convolution filters with a larger root mean square are scaled back to it after each step.
        seed: of the first weights, the held-out images and every epoch.
        device: "cuda" where there is one, unless given; "auto": whatever accelerator there is.
        dtype: of the mixed precision: torch.bfloat16, or torch.float16 on CUDA; None: all float32.
        image_size: the input's height and width, unless the model's card says it.
        resume: continue from the checkpoint in `out`.
        validation: a folder, or the share of the training images to hold out; None: the val folder beside
            train, else 0.05.
        keep_epochs: after these epochs the weights are also written to epoch-NNN.safetensors; Fig. 4 of the
            paper shows (1, 2, 5, 10, 20, 30, 40, 64).
        on_epoch: called after each epoch with the model, in eval mode and on `device`, and the epoch; again
            for an epoch in which the run was killed during the call.
        recorder: keeps what units see at chosen epochs; a path: `Recorder(path)`, over the sample photos.
        class_names: from a folder's name to the class name for the card.
        licence: of the weights, for the card.
        cache: folder for the decoded images, which are then mapped, not held in memory, and used again.
        workers: threads that decode; None: one per processor, at most 8.
        progress: show a bar on a terminal, and a line per epoch.

    Returns:
        A `Training`: the history, the paths of the weights and the card, the files that were skipped.

    Raises:
        ImageError: no folder, no images, one class only, or no image that can be read.
        ModelError: no network of that name, outputs that do not fit the classes, a loss that is not finite.
        OptionError: an option that has no meaning.
        StoreError: `out` cannot be written, another process trains into it, or it holds the checkpoint of another
            run: other images (by their names, sizes and times), another network or other options.

    Source: Zeiler & Fergus 2014, section 3 (recipe "paper"); He et al. 2016, section 4.2 ("cifar").
    """
    chosen = choose(recipe, epochs=epochs, batch_size=batch_size, lr=lr, clamp_rms=clamp_rms)
    place = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    amp = autocast_dtype(dtype, place)
    files, val_files = _pixels.find_both(Path(data), validation)
    network, card = _network(model, chosen, files.classes, image_size, seed)
    keeper = None if recorder is None else _prepare_recorder(recorder, network, card)
    out, folder = Path(out), None if cache is None else Path(cache)
    with _claim(out):
        decoder = _pixels.Decoder(
            card.resize, card.interpolation, folder, workers or min(8, os.cpu_count() or 1), progress
        )
        pixels, val, skipped = decoder.decode_both(files, val_files, validation, seed)
        names = tuple((class_names or {}).get(name, name) for name in files.classes)
        card = dataclasses.replace(card, classes=names, licence=licence)
        with _lend(network, place):
            run = Run(network, chosen, card, pixels.near(place), val.near(place), place, amp, seed, progress)
            signature = run.signature(files, val_files)
            history = _loop(run, out / "checkpoint.pt", signature, resume, _After(out, keep_epochs, keeper, on_epoch))
        _checkpoint.save_weights(network, out / "weights.safetensors")
        entry = run.card_entry(Path(data), files, history[-1])
        card = dataclasses.replace(card, weights_file="weights.safetensors", training=entry)
        card.write(out / "card.json")
    if hasattr(model, "card"):
        model.card = card
    return Training(tuple(history), out / "weights.safetensors", out / "card.json", skipped)


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[None]:
    """Refuse a folder that cannot be written, or that another process trains into, before the work."""
    with Journal(out / ".lock", out) as lock:
        try:
            yield
        finally:
            lock.remove()


@dataclasses.dataclass(frozen=True)
class _After:
    """What is done with the model after each epoch, before its checkpoint."""

    out: Path
    keep: Collection[int]
    recorder: Recorder | None
    call: Callable[[nn.Module, int], None] | None

    def __call__(self, model: nn.Module, number: int) -> None:
        if number in self.keep:
            _checkpoint.save_weights(model, self.out / f"epoch-{number:03d}.safetensors")
        if self.recorder is not None:
            self.recorder(model, number)
        if self.call is not None:
            self.call(model, number)


def _network(
    model: nn.Module | str, recipe: Recipe, classes: tuple[str, ...], image_size: int | None, seed: int
) -> tuple[nn.Module, Card]:
    """Create the named network, or take the given one, and say what its input is."""
    if isinstance(model, str):
        with _seeded(epoch_seed(seed, 0), torch.device("cpu")):
            model = zoo.create(model, num_classes=len(classes), dropout=recipe.dropout, init=recipe.init)
    card = getattr(model, "card", None)
    if not isinstance(card, Card):
        if image_size is None:
            raise OptionError("the model has no card that says its input size: give image_size, in pixels.")
        card = Card(type(model).__name__, "unknown", input_size=(image_size, image_size), resize=image_size)
    if image_size is not None:
        resize = round(card.resize * image_size / card.input_size[0])
        card = dataclasses.replace(card, input_size=(image_size, image_size), resize=resize)
    if recipe.byte_scale:
        card = dataclasses.replace(card, std=(1 / 255,) * 3)
    return model, _add_margin(card, recipe)


def _prepare_recorder(recorder: Recorder | str | os.PathLike[str], model: nn.Module, card: Card) -> Recorder:
    from .recorder import Recorder

    recorder = recorder if isinstance(recorder, Recorder) else Recorder(recorder)
    recorder.prepare(model, card=card)
    return recorder


def _add_margin(card: Card, recipe: Recipe) -> Card:
    """Let the images be larger than the input where the recipe cuts its windows inside them."""
    height, width = card.input_size
    if height != width:
        raise OptionError(f"the card's input is {height}×{width}: only square inputs can be trained.")
    if card.resize > height or recipe.shift:
        return card
    return dataclasses.replace(card, resize=height * 8 // 7)


@contextlib.contextmanager
def _lend(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Take the model to `device`, channels last; give it back where it was, each module in its old mode."""
    modes = {module: module.training for module in model.modules()}
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield
    finally:
        model.zero_grad()
        model.to(device=home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module, mode in modes.items():
            module.training = mode


def _loop(run: Run, path: Path, signature: Mapping[str, Any], resume: bool, after: _After) -> list[Epoch]:
    """Train the epochs that the checkpoint at `path` does not hold."""
    history = _checkpoint.read(path, signature, run.parts) if resume else []
    if after.recorder is not None:
        after.recorder.follow(len(history))
    for number in range(len(history) + 1, run.recipe.epochs + 1):
        start = time.perf_counter()
        with _seeded(epoch_seed(run.seed, number), run.device):
            loss, accuracy, lr = _pass(run, number, history)
        val_loss, top1, top5 = _validate(run)
        seconds = time.perf_counter() - start
        history.append(Epoch(number, loss, accuracy, val_loss, top1, top5, lr, seconds))
        # The checkpoint comes last: a run that is killed here repeats the epoch, so no file or call is lost.
        after(run.model, number)
        _checkpoint.write(path, signature, history, run.parts)
        if run.bar:
            tqdm.write(str(history[-1]), sys.stderr)
            sys.stderr.flush()
    return history


def _pass(run: Run, number: int, history: list[Epoch]) -> tuple[float, float, float]:
    """Train one epoch: mean loss, accuracy, last learning rate."""
    run.model.train()
    generator = torch.Generator().manual_seed(epoch_seed(run.seed, number))
    rows = run.train.good[torch.randperm(len(run.train.good), generator=generator)]
    counts = [len(batch) for batch in rows.split(run.recipe.batch_size)]
    images, size = run.train.images, run.card.input_size[0]
    shift = int(size * run.recipe.shift) if images.shape[1] == size else 0
    fill = (255 * run.mean).round().to(images) if run.recipe.border == "mean" else None
    windows = _pixels.Windows.draw_epoch(counts, images.shape[1], size, shift, generator, images.device)
    at = (index.split(run.recipe.batch_size) for index in run.train.rows(rows))
    errors = [1 - epoch.top1 for epoch in history]
    bar = tqdm(counts, f"epoch {number}", unit="batch", leave=False, disable=None if run.bar else True)
    tally = _Tally(bar, number, late=run.device.type != "cpu")
    for i, (count, here, there, window) in enumerate(zip(bar, *at, windows, strict=True)):
        step = (number - 1) * len(counts) + i
        lr = rate(run.recipe, step, len(counts), errors)
        crops, labels = _pixels.random_crops(images[here], window, size, fill), run.train.labels[there]
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
    logits = run.logits(crops)
    loss = cross_entropy(logits, labels, label_smoothing=run.recipe.label_smoothing)
    numbers = torch.stack([loss.detach(), (logits.argmax(1) == labels).sum().to(loss)])
    # Where looking costs no wait, a loss that is not finite leaves the weights alone.
    if run.device.type == "cpu" and not math.isfinite(numbers[0]):
        return numbers
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.recipe.clamp_rms is not None:
        clamp_filters(run.model, run.recipe.clamp_rms)
    return numbers


@torch.no_grad()
def _validate(run: Run) -> tuple[float, float, float]:
    """Return the mean loss, the top-1 and the top-5 accuracy on the centre crops."""
    run.model.eval()
    sums = []
    at = (index.split(4 * run.recipe.batch_size) for index in run.val.rows(run.val.good))
    for here, there in zip(*at, strict=True):
        labels = run.val.labels[there]
        logits = run.logits(_pixels.centre_crops(run.val.images[here], run.card.input_size[0]))
        loss = cross_entropy(logits, labels, reduction="sum")
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        sums.append(torch.stack([loss, hits[:, 0].sum().to(loss), hits.sum().to(loss)]))
    n = len(run.val.good)
    total, first, five = (sum(column) / n for column in zip(*torch.stack(sums).tolist(), strict=True))
    return total, first, five


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and `device`; give the caller's random states back afterwards, also after an error."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every other device's, too
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
