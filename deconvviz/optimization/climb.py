"""Gradient ascent on images: the loop that `maximize`, `accentuate` and `invert` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import whole
from ..errors import ModelError, OptionError
from ..modes import sound_gradients
from .parameters import Parameters
from .reading import Network, Readings, Source
from .robustness import Robustness


@dataclass(frozen=True)
class Settings:
    """How images are climbed: steps, step length of Adam, moves, the seed of the moves, autocast's type.

    `settle` shortens the steps towards the last, for losses that have a bottom.
    """

    steps: int
    rate: float
    robust: Robustness
    seed: int
    dtype: torch.dtype | None
    settle: bool = False


def settings_of(
    steps: int, rate: float, robust: Robustness, seed: int, dtype: torch.dtype | None, *, settle: bool = False
) -> Settings:
    """Check what users give, and return it as settings."""
    check_number("rate", rate)
    if not rate:
        raise OptionError("rate=0: expected a number above 0.")
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise OptionError(f"dtype={dtype}: expected torch.bfloat16, torch.float16 or None.")
    return Settings(whole(steps, "steps", 1), float(rate), robust, whole(seed, "seed"), dtype, settle)


def check_number(name: str, value: float) -> None:
    """Refuse what is no finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise OptionError(f"{name}={value!r}: expected a finite number of at least 0.")


def climb(
    network: Network,
    parameters: Parameters,
    sources: Sequence[Source],
    output: bool,
    loss: Callable[[Readings, Tensor], Tensor],
    look: Callable[[int, Readings], None],
    settings: Settings,
    names: Sequence[str],
) -> Iterator[Tensor]:
    """Lower `loss` (B,) of the readings and images by Adam; yield each step's |gradient| per pixel (B, H, W).

    `look` sees the readings of each step, and after the last those of the finished images, which were not moved.
    `names` say whose image each is, for errors. Each image goes its own way: the losses are added, and Adam's
    arithmetic is element by element.
    """
    values = parameters.values = parameters.values.to(network.device).requires_grad_()
    adam = torch.optim.Adam([values], settings.rate)
    # All images of a step move alike, so that an image does not depend on those it is computed with.
    random = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        with torch.enable_grad(), _cast(network, settings.dtype):
            pixels = parameters.images()
            pixels.retain_grad()
            readings = network.read(settings.robust.move(pixels, random), sources, output)
            total = loss(readings, pixels).sum()
        adam.zero_grad(set_to_none=True)
        with sound_gradients():
            total.backward()
        _check(values.grad, names)
        if settings.settle:
            adam.param_groups[0]["lr"] = settings.rate * (1 - step / settings.steps)
        adam.step()
        look(step, readings)
        assert pixels.grad is not None
        yield pixels.grad.abs().sum(1)
    with torch.no_grad(), _cast(network, settings.dtype):
        look(settings.steps, network.read(parameters.images(), sources, output))
    values.requires_grad_(False)


def _cast(network: Network, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(network.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _check(gradient: Tensor | None, names: Sequence[str]) -> None:
    if gradient is None:
        raise ModelError(
            "the layer does not depend on the image, as far as can be seen: there is no gradient to follow."
        )
    if not torch.isfinite(gradient).all():
        finite = torch.isfinite(gradient).flatten(1).all(1).tolist()
        lost = list(dict.fromkeys(name for name, good in zip(names, finite, strict=True) if not good))
        some = ", ".join(lost[:5]) + ", …" * (len(lost) > 5)
        raise ModelError(
            f"the gradient is not finite, for {some}: the network overflows on the way. Give another dtype=, or leave these "
            "out."
        )
