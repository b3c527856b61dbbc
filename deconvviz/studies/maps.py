"""The plainest view of all: every response map of one image, and how it changes when the image does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import Call, called
from ..checks import is_whole
from ..devices import doubled
from ..errors import ImageError, LayerError, OptionError
from ..guard import check_weights, untouched
from ..images import open_one
from ..model.features import Reader
from ..model.survey import check_seen, describe
from ..model.table import Layers, LayerTable, find_all
from ..results.base import Result, Stored
from ..results.text import amount, as_text, layer_name
from ..rules.table import Saving
from ..tape.record import record
from .transforms import KINDS, moved, mover

CHANGES = (*KINDS, "noise")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerMaps(Stored):
    """One layer's responses to the image.

    Attributes:
        name: module path.
        number: the papers' number, or None.
        maps: (units, h, w), as the network made them.
        ranking: (units,) int64, the units, strongest first: by the largest response of each, then by its mean.
    """

    name: str
    number: int | None
    maps: Tensor
    ranking: Tensor

    @property
    def strength(self) -> Tensor:
        """Each map's largest response, (units,)."""
        return self.maps.flatten(1).amax(1)

    @property
    def strongest(self) -> Tensor:
        """The maps in the order of `ranking`, (units, h, w)."""
        return self.maps[self.ranking]

    def describe(self) -> str:
        """Say which layer, how many maps and how large."""
        units, height, width = self.maps.shape
        return f"{layer_name(self.name, self.number)}: {amount(units, 'map')} of {height}×{width}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ChangedMaps(Stored):
    """The same image, changed, and what became of the maps.

    Attributes:
        kind: "vertical", "horizontal" (pixels, down and right), "scale" (factor), "rotation" (degrees,
            counterclockwise) or "noise" (standard deviations of the image's own values).
        amount: how much.
        picture: (3, H, W) pixels from 0 to 1.
        maps: (units, h, w) of each of the L layers.
        distance: (L,) float64, Euclidean distance of the maps from those of the original, relative to their norm.
        apart: (L,) float64, the same from the original's maps moved as the image was, where both are inside: 0 where
            a layer's maps move with the image.
    """

    kind: str
    amount: float
    picture: Tensor
    maps: tuple[Tensor, ...]
    distance: Tensor
    apart: Tensor

    def describe(self) -> str:
        """Say what was done."""
        unit = {"scale": "×", "rotation": "°", "noise": " std"}.get(self.kind, " px")
        return f"{self.kind} {self.amount:g}{unit}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Maps(Result):
    """Response maps of one image; `result[3]` and `result["features.10"]` pick a layer.

    Attributes:
        picture: (3, H, W) pixels from 0 to 1, as the network sees the image.
        layers: a `LayerMaps` for each of the L layers, in the order of execution.
        changes: a `ChangedMaps` for each change of the image.
    """

    picture: Tensor
    layers: tuple[LayerMaps, ...]
    changes: tuple[ChangedMaps, ...] = ()
    drawn_by = "maps"
    holds = (LayerMaps, ChangedMaps)

    def __getitem__(self, layer: int | str) -> LayerMaps:
        """Pick a layer by number or name."""
        for one in self.layers:
            if layer == one.name or (is_whole(layer) and int(layer) == one.number):
                return one
        have = ", ".join(layer_name(one.name, one.number) for one in self.layers)
        raise LayerError(f"no layer {layer!r} in this result, it has {have}.")

    def plot(
        self,
        figure: Any = None,
        *,
        shown: int = 12,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the strongest maps of each layer; see `deconvviz.plotting.maps.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, shown=shown, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each unit of each layer, and its strongest response."""
        found: dict[str, Any] = {"layer": [one.name for one in self.layers for _ in one.maps]}
        found["unit"] = torch.cat([torch.arange(len(one.maps)) for one in self.layers])
        return found | {"strength": torch.cat([one.strength for one in self.layers])}

    def describe(self) -> str:
        """Say how many layers, maps and changes."""
        maps = sum(len(layer.maps) for layer in self.layers)
        changes = f"; {', '.join(change.describe() for change in self.changes)}" if self.changes else ""
        return f"{amount(len(self.layers), 'layer')}, {amount(maps, 'map')}{changes}"

    def table(self) -> str:
        """Return a line per layer: its maps, its strongest unit, and how far each change takes the maps."""
        headings = ["layer", "maps", "strongest unit", "response", *(change.describe() for change in self.changes)]
        lines = []
        for number, layer in enumerate(self.layers):
            units, height, width = layer.maps.shape
            first = int(layer.ranking[0])
            line = [layer_name(layer.name, layer.number), f"{units} of {height}×{width}", str(first)]
            line.append(f"{float(layer.strength[first]):.3g}")
            line += [f"{float(c.distance[number]):.3g}, {float(c.apart[number]):.3g}" for c in self.changes]
            lines.append(line)
        said = ["each change: relative distance of the maps, and from maps moved as the image was"] * bool(self.changes)
        return "\n".join([as_text(headings, lines), *said])


def maps(
    model: nn.Module,
    image: Any,
    *,
    layers: Layers | None = None,
    changes: Sequence[str] | Mapping[str, float | Sequence[float]] | None = None,
    fill: float | str | None = None,
    seed: int = 0,
    preprocess: object = None,
    call: Call | None = None,
) -> Maps:
    """Show what each layer makes of one image: its response maps, and how they change when the image does.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> result = deconvviz.maps(model, torch.randn(3, 64, 64), layers=[1, 5], changes={"vertical": 4})
        >>> result[1].maps.shape, result[1].strongest.shape, result.changes[0].distance.shape
        (torch.Size([64, 32, 32]), torch.Size([64, 32, 32]), torch.Size([2]))

    The maps are what a forward hook would see, bit for bit. Images are changed as `invariance` changes them. Maps are
    moved as the image was about their own centre, a shift divided by the layer's stride.

    Args:
        model: The network; left as it was found.
        image: A PIL image, a file, or a tensor (C, H, W) or (1, C, H, W) in the model's input space.
        layers: Numbers or module paths; None: all that have a number.
        changes: Some of "vertical", "horizontal", "scale", "rotation" and "noise", each by a usual amount: an eighth of
            the side in whole pixels, 1.25, 15°, 0.25; or kind to one amount or several; None: none.
        fill: What comes in from outside, see `invariance`.
        seed: Of the noise.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        A `Maps`: `picture` (3, H, W), `layers` (each `maps` (units, h, w), `ranking`), `changes`.

    Raises:
        OptionError: A change that is not known, or an amount that has no meaning.
        ImageError, LayerError, ModelError: As their names say.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, section III.C, shows LeNet-5
    in this way.
    """
    model = called(model, call)
    opened = open_one(model, image, preprocess)
    if len(opened) != 1:
        raise ImageError(f"maps shows one image, got {len(opened)}. Give one of them.")
    taken = opened.take([0])
    wanted = _amounts(changes, tuple(taken.shape[2:]))
    move = mover(fill, image, opened)
    with untouched(model) as network:
        check_weights(network)
        reader = Reader(network, opened, ())
        seen = taken.to(reader.device, reader.dtype)
        tape = record(network, seen, saver=Saving())
        rows = describe(tape, network)
        if layers is not None:
            check_seen(tape, layers)
        chosen = list(LayerTable(rows, (0, 0, 0)).numbered) if layers is None else find_all(rows, layers)
        if not chosen:
            raise LayerError("no layer of this model has a number. Name some; deconvviz.layers lists them.")
        reader.layers = sorted({row.value: row for row in chosen}.values(), key=lambda row: row.value)
        base = reader.read(seen)
        changed = []
        for kind, size in wanted:
            other = _noisy(seen, size, seed) if kind == "noise" else move(seen, kind, torch.tensor([size]))
            found = [(kind, size, other, reader.read(other))]
            changed += found
    results = [
        LayerMaps(row.name, row.number, maps[0].cpu(), _ranking(maps[0]).cpu())
        for row, maps in zip(reader.layers, base, strict=True)
    ]
    strides = [row.stride or (1, 1) for row in reader.layers]
    became = [
        ChangedMaps(kind, size, opened.invert(other.cpu())[0], tuple(x[0].cpu() for x in found), *_measured(*pairs))
        for kind, size, other, found in changed
        for pairs in [(kind, size, base, found, strides)]
    ]
    return Maps(opened.invert(taken)[0], tuple(results), tuple(became))


def _ranking(maps: Tensor) -> Tensor:
    """Order units by their largest response, equal ones by their mean, then by number."""
    flat = maps.flatten(1)
    by_mean = flat.mean(1).argsort(descending=True, stable=True)
    return by_mean[flat.amax(1)[by_mean].argsort(descending=True, stable=True)]


def _noisy(image: Tensor, size: float, seed: int) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return image + size * image.std() * noise.to(image)


def _measured(
    kind: str, size: float, base: Sequence[Tensor], found: Sequence[Tensor], strides: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return for each layer the distance from the original's maps, and from these moved as the image was."""
    distances, apart = [], []
    for before, after, stride in zip(base, found, strides, strict=True):
        a, b = doubled(before), doubled(after)
        distances.append(_relative(b - a, a))
        if kind == "noise":
            apart.append(distances[-1])
            continue
        step = {"vertical": stride[0], "horizontal": stride[1]}.get(kind, 1)
        by = torch.tensor([size / step])
        there = moved(torch.ones_like(a[:, :1]), kind, by, "zeros") > 1 - 1e-9
        same = moved(a, kind, by, "zeros") * there
        apart.append(_relative(b * there - same, same) if there.any() else math.nan)
    return torch.tensor(distances, dtype=torch.float64), torch.tensor(apart, dtype=torch.float64)


def _relative(difference: Tensor, whole: Tensor) -> float:
    size = float(difference.norm())
    return size / float(whole.norm()) if size and float(whole.norm()) else (math.inf if size else 0.0)


def _amounts(changes: Any, size: tuple[int, ...]) -> list[tuple[str, float]]:
    usual: dict[str, float] = {"vertical": max(1, size[0] // 8), "horizontal": max(1, size[1] // 8)}
    usual |= {"scale": 1.25, "rotation": 15, "noise": 0.25}
    names = [changes] if isinstance(changes, str) else list(changes or ())
    if unknown := [name for name in names if name not in CHANGES]:
        raise OptionError(f"changes={unknown[0]!r}: expected some of {', '.join(map(repr, CHANGES))}.")
    found = []
    for name in names:
        given = changes[name] if isinstance(changes, Mapping) else usual[name]
        for number in given if isinstance(given, (Sequence, Tensor)) and not isinstance(given, str) else [given]:
            try:
                value = float(number)
            except (TypeError, ValueError):
                value = math.nan
            if not math.isfinite(value) or (name == "scale" and value <= 0) or (name == "noise" and value < 0):
                raise OptionError(f"the amount of {name!r} is {number!r}: expected a finite number that makes sense.")
            found.append((name, value))
    return found
