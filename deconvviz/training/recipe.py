"""How to train, as data: the paper's recipe and a modern one, their learning rates and their clamp."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from ..errors import OptionError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train; `RECIPES` holds "modern", "paper" and three for CIFAR.

    Attributes:
        name: what the card calls it.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: the learning rate, the highest of a cycle.
        schedule: "cycle": up in a straight line over the first tenth of the steps, down along a cosine;
            "plateau": a tenth of it after each `patience` epochs without a better validation error;
            "steps": a tenth of it after each of the epochs `steps`.
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
RECIPES = {recipe.name: recipe for recipe in (MODERN, PAPER, CIFAR, CIFAR_WARM, CIFAR_SHORT)}


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
    if chosen.schedule not in ("cycle", "plateau", "steps"):
        raise OptionError(f"schedule={chosen.schedule!r}: expected 'cycle', 'plateau' or 'steps'.")
    if chosen.border not in ("reflect", "mean"):
        raise OptionError(f"border={chosen.border!r}: expected 'reflect' or 'mean'.")
    return chosen


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
