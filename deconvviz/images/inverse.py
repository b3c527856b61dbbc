"""From a network's input back to pixels, also where only the user's own function knows the way there."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_SIDE = 512  # of the pictures that a transform is shown: larger than what most crop
_BLACK, _WHITE, _MIXED = (0, 0, 0), (255, 255, 255), (210, 120, 40)
_PRIMARIES = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_TOLERANCE = 0.02  # of the range from black to white: bytes are rounded on the way


@dataclasses.dataclass(frozen=True)
class Inverse:
    """Takes values of a network's input space back to pixels: values · `std` + `mean`, channels put in order.

    `order` says which of red, green and blue (0, 1, 2) each channel is; None: as they come. `mean` None: it can't be
    told, and pictures are stretched from their own minimum to their maximum.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: tuple[int, ...] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Return (…, C, H, W) as pixels (…, 3, H, W) from 0 to 1, float32."""
        values = values.detach().float().cpu()
        if self.mean is not None and self.std is not None:
            values = values * torch.tensor(self.std)[:, None, None] + torch.tensor(self.mean)[:, None, None]
        else:
            low, high = values.amin((-3, -2, -1), keepdim=True), values.amax((-3, -2, -1), keepdim=True)
            values = (values - low) / (high - low).clamp(min=1e-12)
        if self.order is not None:
            values = values[..., [self.order.index(c) for c in range(len(self.order))], :, :]
        if values.shape[-3] != 3:  # neither gray nor colours: the mean of the channels
            values = values.mean(-3, keepdim=True).expand(*values.shape[:-3], 3, *values.shape[-2:])
        return values.clamp(0, 1)


def measured(
    transform: Callable[[Image.Image], Tensor], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Inverse:
    """Return the inverse of a transform, found by showing it pictures of one colour each.

    Where it is no affine map of the colours, the `mean` and `std` of its normalization, if any, are believed as long
    as red stays the channel where red is.
    """
    with _random_state():
        try:
            black, white, mixed = (_seen(transform, colour) for colour in (_BLACK, _WHITE, _MIXED))
            columns = torch.stack([_seen(transform, colour) for colour in _PRIMARIES], 1) - black[:, None]
        except Exception:  # whatever a function of the user's own raises: then nothing is known of it
            return Inverse()
    found = _affine(black, white, mixed, columns)
    if found is None and mean is not None and std is not None and len(mean) == len(columns):
        shown = columns * torch.tensor(std)[:, None]
        return Inverse(mean, std) if len(mean) == 3 and shown.argmax(0).tolist() == [0, 1, 2] else Inverse()
    return found or Inverse()


def _affine(black: Tensor, white: Tensor, mixed: Tensor, columns: Tensor) -> Inverse | None:
    """Solve value = black + gain · pixel for each channel, of which `columns` (C, 3) says which colour it is."""
    gain = white - black
    if len(black) not in (1, 3) or (gain == 0).any() or not torch.isfinite(gain).all():
        return None
    share = columns / gain[:, None]  # of each colour in each channel
    linear = (black + columns @ (torch.tensor(_MIXED).double() / 255) - mixed).abs() <= _TOLERANCE * gain.abs()
    if not linear.all():
        return None
    strongest = share.argmax(1).tolist()
    pure = (share.amax(1) > 1 - _TOLERANCE).all() and sorted(strongest) == [0, 1, 2]
    gray = (share - share[0]).abs().max() <= _TOLERANCE  # one brightness, perhaps three times
    if not pure and not gray:
        return None
    order = tuple(strongest) if pure and strongest != [0, 1, 2] else None
    return Inverse(tuple((-black / gain).tolist()), tuple((1 / gain).tolist()), order)


def _seen(transform: Callable[[Image.Image], Tensor], colour: tuple[int, int, int]) -> Tensor:
    made = transform(Image.new("RGB", (_SIDE, _SIDE), colour))
    return made[:, made.shape[1] // 2, made.shape[2] // 2].double().cpu()


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Leave all random numbers that a transform may draw as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
