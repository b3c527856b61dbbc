"""Images moved, scaled and turned about their centre."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import doubled
from ..errors import OptionError
from ..images import ImageSet
from ..model.features import fill_of

KINDS = ("vertical", "horizontal", "scale", "rotation")
IDENTITY = {"vertical": 0.0, "horizontal": 0.0, "scale": 1.0, "rotation": 0.0}
UNITS = {"vertical": "pixels down", "horizontal": "pixels right", "scale": "factor", "rotation": "degrees"}
_BORDERS = {"edge": "border", "reflect": "reflection"}


def mover(fill: float | str | None, images: object, opened: ImageSet) -> Callable[[Tensor, str, Tensor], Tensor]:
    """Return the function that transforms an image (1, C, H, W) by amounts (A,) into (A, C, H, W)."""
    if isinstance(fill, str):
        if fill not in _BORDERS:
            raise OptionError(f"fill={fill!r}: expected a number, 'edge', 'reflect' or None.")
        return lambda image, kind, amounts: moved(image, kind, amounts, _BORDERS[fill])
    colour = fill_of(images, opened, fill)

    def move(image: Tensor, kind: str, amounts: Tensor) -> Tensor:
        ground = colour.to(image)
        return moved(image - ground, kind, amounts, "zeros") + ground

    return move


def moved(image: Tensor, kind: str, amounts: Tensor, border: str) -> Tensor:
    """Resample (1, C, H, W) by each amount: (A, C, H, W)."""
    height, width = image.shape[2:]
    a, rows, cols = (x.double() for x in (amounts, torch.arange(height), torch.arange(width)))
    y, x = rows[:, None] - (height - 1) / 2, cols - (width - 1) / 2  # pixels from the centre
    a = a[:, None, None]
    if kind == "vertical":
        y, x = y - a, x + 0 * a
    elif kind == "horizontal":
        y, x = y + 0 * a, x - a
    elif kind == "scale":
        y, x = y / a, x / a
    else:
        turn = torch.deg2rad(a)
        y, x = y * turn.cos() + x * turn.sin(), x * turn.cos() - y * turn.sin()
    shape = (len(amounts), height, width)
    grid = torch.stack([(x * 2 / width).expand(shape), (y * 2 / height).expand(shape)], -1)
    # In float64, so that a shift by whole pixels copies them.
    many = doubled(image).expand(len(amounts), -1, -1, -1)
    return F.grid_sample(many, grid.to(many.device), "bilinear", border, align_corners=False).to(image)


def amounts_of(
    transforms: Sequence[str] | Mapping[str, Sequence[float]], size: tuple[int, ...]
) -> dict[str, Sequence[float]]:
    """Return kind to amounts for images of `size` (height, width), as given or as in the paper."""
    usual: dict[str, Sequence[float]] = {
        "vertical": _shifts(size[0]),
        "horizontal": _shifts(size[1]),
        "scale": torch.linspace(1, 1.8, 17).tolist(),
        "rotation": [float(x) for x in range(0, 360, 10)],
    }
    names = [transforms] if isinstance(transforms, str) else list(transforms)
    if not names or any(name not in KINDS for name in names):
        raise OptionError(f"transforms={transforms!r}: expected some of {', '.join(map(repr, KINDS))}.")
    wanted = {n: list(transforms[n]) if isinstance(transforms, Mapping) else usual[n] for n in names}
    for name, amounts in wanted.items():
        if not len(amounts) or not all(math.isfinite(x) and (name != "scale" or x > 0) for x in amounts):
            raise OptionError(
                f"the amounts of {name!r} are {amounts!r}: expected finite numbers, positive for a scale."
            )
    return wanted


def _shifts(length: int) -> list[float]:
    """Return at most 25 shifts, ±60 of 224 in proportion. Whole pixels: others blur, and the blur would be measured."""
    steps = torch.linspace(-60, 60, 25).mul(length / 224).round().unique().tolist()
    return [float(step) for step in steps]
