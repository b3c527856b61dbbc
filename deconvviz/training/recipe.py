"""How to train, as data: the paper's recipe and a modern one, their learning rates and their clamp."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import torch
from torch import nn

from ..errors import OptionError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train; `RECIPES` holds a modern one and those of the papers.

    Attributes:
        name: what the card calls it.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: the learning rate, the highest of a cycle.
        schedule: "cycle": up in a straight line over the first tenth of the steps, down along a cosine;
            "plateau": a tenth of it after each `patience` epochs without a better validation error;
            "steps": a tenth of it after each of the epochs `steps`;
            "decay": times the first number of `decay` after every so many epochs as the second says.
        patience: for "plateau" only.
        momentum: of stochastic gradient descent.
        nesterov: look ahead along the momentum.
        weight_decay: on all weights and biases.
        dropout: in the fully connected layers of a network of the zoo.
        label_smoothing: share of the target spread over all classes.
        clamp_rms: convolution filters with a larger root mean square are scaled back to it; None: never.
        init: first weights of a network of the zoo, see `zoo.create`.
        shift: where images are stored no larger than the input, the random windows stick out by up to this
            share of it; 0: store them larger (8/7, the paper's 256 for 224) and cut windows inside.
        byte_scale: feed pixels of 0–255 less their mean, as the papers do, rather than standardized ones.
        border: what a window shows beyond the image: its "reflect"-ion, or the "mean", which is zero to the network.
        steps: for "steps" only.
        warm_up: this many first steps run at a tenth of the rate.
        decay: for "decay" only.
        auxiliary: the weight of each auxiliary head's loss, where the network has heads.
        mirrored: show half of the images mirrored.
        scales: an image's side is drawn between these two multiples of the input's before a window is cut; (): as above.
        area: a window's share of the image is drawn between these two, its sides' ratio in `aspect`; (): as above.
        aspect: for `area` only.
        colour: each image's colours are moved along the training images' principal components, by draws of this
            standard deviation times the eigenvalues.
        jitter: brightness, contrast and saturation are each changed by up to this share.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    patience: int
    momentum: float
    nesterov: bool
    weight_decay: float
    dropout: float
    label_smoothing: float
    clamp_rms: float | None
    init: str
    shift: float
    byte_scale: bool
    border: str = "reflect"
    steps: tuple[int, ...] = ()
    warm_up: int = 0
    decay: tuple[float, int] = (1.0, 1)
    auxiliary: float = 0.3
    mirrored: bool = True
    scales: tuple[float, ...] = ()
    area: tuple[float, ...] = ()
    aspect: tuple[float, ...] = (3 / 4, 4 / 3)
    colour: float = 0.0
    jitter: float = 0.0


MODERN = Recipe(
    name="modern",
    epochs=40,
    batch_size=128,
    lr=0.03,
    schedule="cycle",
    patience=0,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    dropout=0.4,
    label_smoothing=0.1,
    clamp_rms=None,
    init="kaiming",
    shift=1 / 8,
    byte_scale=False,
)
PAPER = Recipe(  # ZFNet, section 3; "annealed manually" is a plateau rule here, the mean is one per channel
    name="paper",
    epochs=70,
    batch_size=128,
    lr=1e-2,
    schedule="plateau",
    patience=3,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    dropout=0.5,
    label_smoothing=0.0,
    clamp_rms=0.1,
    init="paper",
    shift=0.0,
    byte_scale=True,
)
# ResNet, section 4.2: 32k, 48k and 64k iterations of the 391 that an epoch of 50,000 images has. The paper warms
# the 110 layers up "until the training error is below 80% (about 400 iterations)", the sequel always for 400.
CIFAR = Recipe(
    name="cifar",
    epochs=164,
    batch_size=128,
    lr=0.1,
    schedule="steps",
    patience=0,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    dropout=0.0,
    label_smoothing=0.0,
    clamp_rms=None,
    init="paper",
    shift=1 / 8,
    byte_scale=False,
    border="mean",
    steps=(82, 123),
)
CIFAR_WARM = dataclasses.replace(CIFAR, name="cifar-warm", warm_up=400)
# Not the paper's: what a few hours without a GPU allow.
CIFAR_SHORT = dataclasses.replace(
    CIFAR, name="cifar-short", epochs=30, schedule="cycle", steps=(), nesterov=True, weight_decay=5e-4
)
# "Identity Mappings", appendix: as before, the first 400 steps at 0.01.
PRERESNET = dataclasses.replace(CIFAR_WARM, name="preresnet")
# AlexNet, sections 4 and 5: about 90 cycles, the rate divided by 10 when the validation error stops improving; random
# windows of 224 in 256 and their mirror images, colours along the principal components with a deviation of 0.1.
ALEXNET = dataclasses.replace(PAPER, name="alexnet", epochs=90, weight_decay=5e-4, clamp_rms=None, colour=0.1)
# VGG, section 3.1: 74 epochs, the rate divided by 10 three times when the validation error stops improving; the image's
# short side in [256, 512] for windows of 224. The first weights are Kaiming's in place of network A's: the paper found
# later that a random draw (Glorot & Bengio's) does.
VGG = dataclasses.replace(ALEXNET, name="vgg", epochs=74, batch_size=256, init="kaiming", scales=(256 / 224, 512 / 224))
# GoogLeNet, section 6: the rate falls by 4 % every 8 epochs; windows of 8 to 100 % of the image's area, sides from 3/4 to
# 4/3, photometric distortions; heads weigh 0.3. The paper states no rate, batch size, decay of weights or epochs.
GOOGLENET = dataclasses.replace(
    VGG,
    name="googlenet",
    epochs=120,
    schedule="decay",
    decay=(0.96, 8),
    dropout=0.4,
    weight_decay=1e-4,
    scales=(),
    area=(0.08, 1.0),
    colour=0.0,
    jitter=0.4,
    byte_scale=False,
)
# ResNet, section 3.4: 60·10⁴ steps of 256 images, 120 epochs; the rate of 0.1 divided by 10 when the error plateaus; the
# short side in [256, 480], "the standard color augmentation"; no dropout. The plateaus are put at 30, 60 and 90.
RESNET = dataclasses.replace(
    VGG,
    name="resnet",
    epochs=120,
    lr=0.1,
    schedule="steps",
    steps=(30, 60, 90),
    dropout=0.0,
    weight_decay=1e-4,
    scales=(256 / 224, 480 / 224),
    byte_scale=False,
)
# LeNet-5's paper has 20 passes over MNIST in another kind of descent, one image at a time; not mirrored, moved by up to
# two pixels (its distorted set). Momentum and one cycle are ours.
DIGITS = dataclasses.replace(
    MODERN,
    name="digits",
    epochs=20,
    batch_size=64,
    lr=0.02,
    weight_decay=1e-4,
    dropout=0.0,
    label_smoothing=0.0,
    shift=1 / 16,
    mirrored=False,
)
_ALL = (MODERN, PAPER, CIFAR, CIFAR_WARM, CIFAR_SHORT, ALEXNET, VGG, GOOGLENET, RESNET, PRERESNET, DIGITS)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def choose(recipe: str | Recipe, **changes: object) -> Recipe:
    """Return the recipe of that name with the `changes` that are not None, checked."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise OptionError(f"no recipe named {recipe!r}. There are: {', '.join(RECIPES)}.")
        recipe = RECIPES[recipe]
    chosen = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    for name in ("epochs", "batch_size", "lr"):
        if not getattr(chosen, name) > 0:
            raise OptionError(f"{name}={getattr(chosen, name)!r}: expected a number above 0.")
    if chosen.schedule not in ("cycle", "plateau", "steps", "decay"):
        raise OptionError(f"schedule={chosen.schedule!r}: expected 'cycle', 'plateau', 'steps' or 'decay'.")
    for name in ("auxiliary", "colour", "jitter"):
        if not 0 <= getattr(chosen, name) < math.inf:
            raise OptionError(f"{name}={getattr(chosen, name)!r}: expected a number of at least 0.")
    for name, least, most in (("scales", 1.0, math.inf), ("area", 0.0, 1.0), ("aspect", 0.0, math.inf)):
        pair = getattr(chosen, name)
        if pair and not (len(pair) == 2 and least <= pair[0] <= pair[1] <= most and pair[1] > 0):
            raise OptionError(f"{name}={pair!r}: expected two numbers that do not fall, from {least:g} to {most:g}.")
    if chosen.scales and chosen.area:
        raise OptionError("scales and area are two ways to cut a window: give one of them.")
    if chosen.border not in ("reflect", "mean"):
        raise OptionError(f"border={chosen.border!r}: expected 'reflect' or 'mean'.")
    return chosen


def epoch_seed(seed: int, epoch: int | str) -> int:
    """Return a number for each seed and epoch, or part of one; neighbouring seeds share no epoch's randomness."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")


def cycle(lr: float, progress: float) -> float:
    """Return the one-cycle learning rate at `progress` (0–1) through the run, at most `lr`."""
    if progress < 0.1:
        return lr * (0.1 + 0.9 * progress / 0.1)
    return lr * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def plateau(lr: float, patience: int, errors: list[float]) -> float:
    """Return the rate after these validation errors: a tenth per `patience` epochs without a better one."""
    best, waited = math.inf, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience:
            lr, waited = lr / 10, 0
    return lr


def rate(recipe: Recipe, step: int, per_epoch: int, errors: list[float]) -> float:
    """Return the learning rate of a step, counted from 0 over all epochs, after these epochs' validation errors."""
    lr = recipe.lr
    if recipe.schedule == "cycle":
        lr = cycle(lr, step / (recipe.epochs * per_epoch))
    elif recipe.schedule == "plateau":
        lr = plateau(lr, recipe.patience, errors)
    elif recipe.schedule == "decay":
        factor, every = recipe.decay
        lr *= factor ** (step // (every * per_epoch))
    else:
        lr /= 10 ** sum(step >= epoch * per_epoch for epoch in recipe.steps)
    return lr / 10 if step < recipe.warm_up else lr


@torch.no_grad()
def clamp_filters(model: nn.Module, limit: float) -> None:
    """Scale each convolution filter whose root mean square exceeds `limit` back to it, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            rms = module.weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            module.weight.mul_((limit / rms.clamp_min(1e-12)).clamp_max(1.0))
