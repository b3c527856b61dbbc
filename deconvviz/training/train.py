"""Training on a folder of images: what is made ready before the loop, and what is kept after it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import ranks, zoo
from ..calls import Call, called
from ..checks import find_device
from ..errors import OptionError
from ..guard import seeded
from ..jobs.journal import Journal
from ..zoo import Card
from . import checkpoint as _checkpoint
from . import pixels as _pixels
from .loop import loop
from .recipe import RECIPES, Recipe, choose, epoch_seed
from .render import Decoded, Rendering
from .result import Epoch, Training
from .run import Run, autocast_dtype
from .sharing import Part
from .start import frozen_parts, load_start

if TYPE_CHECKING:
    from .recorder import Recorder

__all__ = ["RECIPES", "Epoch", "Recipe", "Training", "train"]


@ranks.together
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
    crops: int = 1,
    keep_epochs: Collection[int] = (),
    on_epoch: Callable[[nn.Module, int], None] | None = None,
    recorder: Recorder | str | os.PathLike[str] | None = None,
    render: str | os.PathLike[str] | None = None,
    freeze: Collection[str] = (),
    start_from: str | os.PathLike[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    call: Call | None = None,
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

    In a process group (torchrun, or `torch.distributed` that was initialized before) every process makes the same call
    and computes its part of each batch, by `DistributedDataParallel`: the history is one process's with the whole batch
    up to rounding, batch normalization and dropout included; other random operations draw in each process for itself.
    Rank 0 writes, and a run goes on with any number of processes. `on_epoch` is called on all.

    Args:
        model: a name of the zoo, or a module (N, C, S, S) to (N, classes), which is trained in place, all of
            it in training mode; it comes back on its device with its modes. In training mode it may return several
            such scores, first its own, then those of auxiliary heads, whose losses the recipe weighs. Where it takes
            one channel, images are read gray.
        data: a folder with one subfolder of images per class, which may hold subfolders; or a folder with
            two such folders, train and val (or validation, or test).
        out: folder for checkpoint.pt, weights.safetensors (float16) and card.json. To bundle a network, copy
            the latter two to deconvviz/zoo/weights/<name>.safetensors and <name>.json.
        recipe: "modern", "paper" (ZFNet), "cifar" (ResNet), "cifar-warm" (for 110 layers and more), "cifar-short"
            (30 epochs, one cycle: not the paper's), "preresnet", those for ImageNet of "alexnet", "vgg", "googlenet" and
            "resnet", "digits", or a `Recipe`; each says in its file where it departs from its paper.
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
        crops: 1: the validation sees the middle of each image; 10: its corners and its middle, also mirrored, and takes
            the mean of their probabilities, as the AlexNet paper's test does; at ten times the work.
        keep_epochs: after these epochs the weights are also written to epoch-NNN.safetensors; Fig. 4 of the
            paper shows (1, 2, 5, 10, 20, 30, 40, 64).
        on_epoch: called after each epoch with the model, in eval mode and on `device`, and the epoch; again
            for an epoch in which the run was killed during the call.
        recorder: keeps what units see at chosen epochs; a path: `Recorder(path)`, over the sample photos.
        render: a folder for what the trained network sees: grids of the layers 1 to 5, 16 units each, with the nine
            validation images that excite them most, its first filters, its curves, how strong the layers respond,
            what `recorder` kept, and index.html, which links them. A run killed here goes on with the next picture.
        freeze: module paths whose parameters and statistics stay as they are.
        start_from: a safetensors file whose tensors the training begins with; those of the last layer may have another
            number of classes, and are then drawn anew.
        class_names: from a folder's name to the class name for the card.
        call: how the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        licence: of the weights, for the card.
        cache: folder for the decoded images, which are then mapped, not held in memory, and used again.
        workers: threads that decode; None: one per processor, at most 8.
        progress: show a bar on a terminal, and a line per epoch.

    Returns:
        A `Training`: the history, the paths of the weights and the card, the files that were skipped, and the page.

    Raises:
        ImageError: no folder, no images, one class only, or no image that can be read.
        ModelError: no network of that name, outputs that do not fit the classes, a loss that is not finite.
        OptionError: an option that has no meaning, or no module of a name in `freeze`.
        StoreError: `out` or `render` cannot be written, another process writes there, or `out` holds the checkpoint
            of another run: other images (by their names, sizes and times), another network or other options.
        LayerError, UnsupportedOp: with `render`, before the training: no numbered layers, or an operation without a
            rule.

    Source: Zeiler & Fergus 2014, section 3 (recipe "paper"); He et al. 2016, section 4.2 ("cifar"); Krizhevsky et al.
        2012, section 4.1 (ten crops).
    """
    chosen = choose(recipe, epochs=epochs, batch_size=batch_size, lr=lr, clamp_rms=clamp_rms)
    if crops not in (1, 10) or isinstance(crops, bool):
        raise OptionError(f"crops={crops!r}: expected 1 or 10.")
    team = ranks.team()
    place = find_device(device or (f"cuda:{team.local}" if torch.cuda.is_available() else "cpu"))
    amp = autocast_dtype(dtype, place)
    files, val_files = _pixels.find_both(Path(data), validation)
    network, card = _network(model, chosen, files.classes, image_size, seed)
    _check_room(card, chosen, crops)
    seen = called(network, call)
    started = "" if start_from is None else load_start(network, Path(start_from))
    keeper = None if recorder is None else _prepare_recorder(recorder, seen, card)
    out, folder = Path(out), None if cache is None else Path(cache)
    with contextlib.ExitStack() as stack:
        pictures = None
        if team.rank == 0:
            stack.enter_context(_claim(out))
            with ranks.alone():
                pictures = stack.enter_context(_prepare_pictures(render, seen, card, progress)) if render else None
        bar = progress and team.rank == 0
        side = round(card.input_size[0] * chosen.scales[1]) if chosen.scales else card.resize
        hands = workers or min(8, os.cpu_count() or 1)
        decoder = _pixels.Decoder(side, card.interpolation, folder, hands, bar, len(card.mean))
        pixels, val, skipped = decoder.decode_both(files, val_files, validation, seed)
        names = tuple((class_names or {}).get(name, name) for name in files.classes)
        card = dataclasses.replace(card, classes=names, licence=licence)
        stack.enter_context(_lend(network, place))
        frozen = stack.enter_context(frozen_parts(network, freeze))
        near = pixels.near(place), val.near(place)
        run = Run(network, chosen, card, *near, place, amp, seed, bar, Part(team), frozen, started, call, crops)
        signature = run.signature(files, val_files)
        team.agree(signature, "images or options")
        history = loop(
            run, out / "checkpoint.pt", signature, resume, _After(network, out, keep_epochs, keeper, on_epoch)
        )
        entry = run.card_entry(Path(data), files, history[-1])
        card = dataclasses.replace(card, weights_file="weights.safetensors", training=entry)

        def finish() -> Training:
            _checkpoint.save_weights(network, out / "weights.safetensors")
            card.write(out / "card.json")
            result = Training(tuple(history), out / "weights.safetensors", out / "card.json", skipped)
            if pictures is None:
                return result
            images = Decoded.open(run.val, val_files or files, card)
            kept = None if keeper is None else keeper.recording
            return dataclasses.replace(result, page=pictures.draw(seen, card, images, result, kept))

        result = team.share(finish)
    if hasattr(model, "card"):
        model.card = card
    return result


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

    model: nn.Module
    out: Path
    keep: Collection[int]
    recorder: Recorder | None
    call: Callable[[nn.Module, int], None] | None

    def begin(self, epochs: int) -> None:
        """Refuse a recording that is another run's."""
        if self.recorder is not None:
            self.recorder.follow(epochs)

    def __call__(self, network: nn.Module, number: int) -> None:
        if number in self.keep:
            path = self.out / f"epoch-{number:03d}.safetensors"
            ranks.team().share(lambda: _checkpoint.save_weights(self.model, path))
        if self.recorder is not None:
            self.recorder(network, number)
        if self.call is not None:
            self.call(self.model, number)


def _network(
    model: nn.Module | str, recipe: Recipe, classes: tuple[str, ...], image_size: int | None, seed: int
) -> tuple[nn.Module, Card]:
    """Create the named network, or take the given one, and say what its input is."""
    if isinstance(model, str):
        with seeded(epoch_seed(seed, 0), torch.device("cpu")):
            model = zoo.create(model, num_classes=len(classes), dropout=recipe.dropout, init=recipe.init)
    card = getattr(model, "card", None)
    if not isinstance(card, Card):
        if image_size is None:
            raise OptionError("the model has no card that says its input size: give image_size, in pixels.")
        card = Card(type(model).__name__, "unknown", input_size=(image_size, image_size), resize=image_size)
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and first.in_channels == 1:
            card = dataclasses.replace(card, mean=(0.5,), std=(0.5,))
    if image_size is not None:
        resize = round(card.resize * image_size / card.input_size[0])
        card = dataclasses.replace(card, input_size=(image_size, image_size), resize=resize)
    if recipe.byte_scale:
        card = dataclasses.replace(card, std=(1 / 255,) * len(card.mean))
    if len(card.mean) not in (1, 3):
        raise OptionError(f"the network takes {len(card.mean)} channels: images have 3 or, gray, 1.")
    if len(card.mean) == 1 and (recipe.colour or recipe.jitter):
        raise OptionError(f"recipe {recipe.name!r} changes colours, and the images are gray. Give another recipe.")
    return model, _add_margin(card, recipe)


def _prepare_recorder(recorder: Recorder | str | os.PathLike[str], model: nn.Module, card: Card) -> Recorder:
    from .recorder import Recorder

    recorder = recorder if isinstance(recorder, Recorder) else Recorder(recorder)
    recorder.prepare(model, card=card)
    return recorder


@contextlib.contextmanager
def _prepare_pictures(
    folder: str | os.PathLike[str], model: nn.Module, card: Card, progress: bool
) -> Iterator[Rendering]:
    with Rendering(folder, progress) as pictures:
        pictures.rehearse(model, card)
        yield pictures


def _add_margin(card: Card, recipe: Recipe) -> Card:
    """Let the images be larger than the input where the recipe cuts its windows inside them."""
    height, width = card.input_size
    if height != width:
        raise OptionError(f"the card's input is {height}×{width}: only square inputs can be trained.")
    if card.resize > height or recipe.shift:
        return card
    return dataclasses.replace(card, resize=height * 8 // 7)


def _check_room(card: Card, recipe: Recipe, crops: int) -> None:
    """Refuse ten crops of images that are no larger than one."""
    if crops > 1 and card.resize <= card.input_size[0]:
        raise OptionError(
            f"crops={crops} are cut from images larger than the input, and recipe {recipe.name!r} stores them at "
            f"{card.resize} pixels for an input of {card.input_size[0]}: its windows stick out instead. Give a recipe "
            "with shift=0, such as 'paper', or crops=1."
        )


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
