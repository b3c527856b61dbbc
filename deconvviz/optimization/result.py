"""What optimization found: images that excite, an image changed, images rebuilt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..results.base import Result


@dataclass(frozen=True, eq=False, repr=False)
class Maximized(Result):
    """Images that excite units, classes or directions most.

    Attributes:
        layer: the layer's name; "" for classes and for objectives over several layers.
        number: its number, where it has one.
        names: one text per objective: "unit 5", a class's name, …
        units: (U,) int64, unit or class numbers; −1 for directions and sums.
        images: (U, D, C, H, W) pixels from 0 to 1; D different images each.
        activations: (U, D, S): the strongest activation of the unit on the image at each of `steps`, in the layer's
            own response (after its activation); for classes the output, else the objective's value.
        steps: (S,) int64; the last is the finished image, which was not moved.
        transparency: (U, D, H, W) from 0 to 1: how much each pixel mattered on the way.
        seed: the images depend on it alone.
        settings: how they were made: parametrization, rate, moves, …
        best_photo: (U,) the strongest activation among the images of a scan, where `top=` was given; else None.
    """

    drawn_by = "maximized"

    def plot(self, figure: Any = None, **options: Any) -> Any:
        """Draw the images; see `Result.plot`."""
        return self.draw("draw", figure, **options)

    layer: str
    number: int | None
    names: tuple[str, ...]
    units: Tensor
    images: Tensor
    activations: Tensor
    steps: Tensor
    transparency: Tensor
    seed: int
    settings: tuple[tuple[str, bool | int | float | str], ...]
    best_photo: Tensor | None = None

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each objective's images; `best_photo` only where it is known."""
        count, many = self.images.shape[:2]
        found: dict[str, Any] = {"objective": [name for name in self.names for _ in range(many)]}
        found |= {"unit": self.units.repeat_interleave(many), "image": torch.arange(many).repeat(count)}
        found |= {"activation": self.activations[..., -1].flatten()}
        return found if self.best_photo is None else found | {"best_photo": self.best_photo.repeat_interleave(many)}

    def describe(self) -> str:
        """Say of what it is and how much."""
        count, many, _, height, width = self.images.shape
        what = f"{self.layer}: " if self.layer else ""
        return f"{what}{count} objectives × {many} images, {height}×{width} px"

    def stronger(self) -> Tensor:
        """Return (U,) bool: whether the best of a unit's images excites it more than the strongest photo does."""
        if self.best_photo is None:
            raise ValueError("there are no photos to compare with: give top= to maximize.")
        return self.activations[..., -1].amax(1) > self.best_photo


@dataclass(frozen=True, eq=False, repr=False)
class Accentuated(Result):
    """An image changed as little as needed to excite a unit more, and less.

    Attributes:
        layer, unit: whose activation.
        image: (C, H, W) pixels from 0 to 1: the image as the network sees it.
        more, less: (C, H, W): the changed images.
        activations: (3,): the unit's strongest activation on `image`, `more` and `less`.
        distances: (2,): the root of the mean squared change of a pixel, for `more` and `less`.
        seed, settings: as of `Maximized`.
    """

    drawn_by = "accentuated"

    def plot(self, figure: Any = None, **options: Any) -> Any:
        """Draw the images; see `Result.plot`."""
        return self.draw("draw", figure, **options)

    layer: str
    unit: int
    image: Tensor
    more: Tensor
    less: Tensor
    activations: Tensor
    distances: Tensor
    seed: int
    settings: tuple[tuple[str, bool | int | float | str], ...]

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for the image, one that excites the unit more, one that excites it less."""
        change = torch.cat([torch.zeros_like(self.distances[:1]), self.distances])
        return {"image": ["image", "more", "less"], "activation": self.activations, "change": change}

    def describe(self) -> str:
        """Say of what it is and how much."""
        seen, more, less = self.activations.tolist()
        return f"unit {self.unit} of {self.layer}: activation {seen:.3g}, more {more:.3g}, less {less:.3g}"


@dataclass(frozen=True, eq=False, repr=False)
class Inversion(Result):
    """An image rebuilt from the responses of layers alone.

    Attributes:
        layers: the layers' names.
        numbers: the layers' numbers, −1 for those without.
        image: (C, H, W) pixels from 0 to 1: what the responses came from.
        images: (L, N, C, H, W) pixels from 0 to 1, from N different starts.
        distances: (L, N): ‖Φ(x) − Φ₀‖² / ‖Φ₀‖² of each.
        seed, settings: as of `Maximized`.
    """

    drawn_by = "inversion"

    def plot(self, figure: Any = None, **options: Any) -> Any:
        """Draw the images; see `Result.plot`."""
        return self.draw("draw", figure, **options)

    layers: tuple[str, ...]
    numbers: tuple[int, ...]
    image: Tensor
    images: Tensor
    distances: Tensor
    seed: int
    settings: tuple[tuple[str, bool | int | float | str], ...]

    def spread(self) -> Tensor:
        """Return (L, H, W): how much each pixel differs between the starts, what the layer does not know.

        It is the standard deviation over the starts, root mean square over the channels; 0.29 is that of pixels that are
        anything from 0 to 1.

        Raises:
            OptionError: There is only one start.
        """
        if self.images.shape[1] < 2:
            raise OptionError("one start differs from no other: give invert starts=9.")
        return self.images.var(1).mean(1).sqrt()

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer and start."""
        layers, starts = self.distances.shape
        found: dict[str, Any] = {"layer": [name for name in self.layers for _ in range(starts)]}
        found |= {"number": [number for number in self.numbers for _ in range(starts)]}
        return found | {"start": torch.arange(starts).repeat(layers), "distance": self.distances.flatten()}

    def describe(self) -> str:
        """Say of what it is and how much."""
        rows = ", ".join(
            f"{name} {100 * float(row.min()):.1f} %" for name, row in zip(self.layers, self.distances, strict=True)
        )
        return f"{len(self.layers)} layers × {self.images.shape[1]} starts: {rows}"
