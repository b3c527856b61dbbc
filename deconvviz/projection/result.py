"""The result of `project`: fields, file, picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import UnitError
from ..results.base import Result, by_id, named_columns, tuples
from ..results.text import amount

BESIDE = "beside.{}."  # before the names of the arrays of another rule, by its number

# From this mean cosine on the nine are nearly one: on networks without max-pools it is 0.8 to 1.0, on SqueezeNet 0.1.
ALIKE = 0.5
SMALL = 11  # pixels: up to this size a projection is a filter, or little more, and alike on every network


class UnitPatches:
    """What results that hold K patches of each of U units share: `result[unit]`, iteration, a table."""

    by_unit: ClassVar[tuple[str, ...]]  # the fields whose first dimension is the units

    layer: str
    units: Tensor
    activations: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    patches: Tensor
    likeness: Tensor | None
    lost: Tensor | None
    steps: tuple[str, ...]
    switches: int | None
    count: int | None
    names: dict[int, str]
    labels: dict[int, str]

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.units)

    def __iter__(self: _Own) -> Iterator[_Own]:
        """Go through the units, each as a result of its own."""
        return (self[unit] for unit in self.units.tolist())

    def __getitem__(self: _Own, unit: int) -> _Own:
        """Return the result of one unit, by its number."""
        row = self._row(unit)
        return self._at(slice(row, row + 1))

    def select(self: _Own, units: Sequence[int]) -> _Own:
        """Return the result of some units, by their numbers and in that order."""
        return self._at([self._row(unit) for unit in units])

    def _row(self, unit: int) -> int:
        where = (self.units == unit).nonzero().flatten()
        if not len(where):
            have = ", ".join(map(str, self.units[:20].tolist())) + (", …" if len(self) > 20 else "")
            raise UnitError(f"unit {unit!r} is not in this result, it holds {amount(len(self), 'unit')} ({have}).")
        return int(where[0])

    def _at(self: _Own, rows: slice | list[int]) -> _Own:
        held = {name: getattr(self, name) for name in self.by_unit}
        chosen = {name: x[rows] for name, x in held.items() if x is not None}
        shown = chosen["image_ids"].unique().tolist()
        texts = {
            name: {i: text for i, text in getattr(self, name).items() if i in shown} for name in ("names", "labels")
        }
        return replace(self, **chosen, **texts)  # type: ignore[type-var]

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each image of each unit, strongest first; empty places are left out."""
        unit, rank = self.mask.nonzero().unbind(1)
        row, col = self.positions[unit, rank].unbind(1)
        top, left, bottom, right = self.boxes[unit, rank].unbind(1)
        plain = {"layer": [self.layer] * len(unit), "unit": self.units[unit], "rank": rank}
        values = {"activation": self.activations[unit, rank], "image_id": self.image_ids[unit, rank]}
        box = {"top": top, "left": left, "bottom": bottom, "right": right}
        named = named_columns(values["image_id"].tolist(), self.names, self.labels)
        if self.lost is not None and self.lost.any():
            named["lost_at"] = [self.lost_at(*place) for place in self.mask.nonzero().tolist()]
        return {**plain, **values, "row": row, "col": col, **box, **named}

    @property
    def mask(self) -> Tensor:
        """(U, K) bool: whether the place holds an image that excites the unit."""
        return self.image_ids >= 0

    def lost_at(self, row: int, k: int) -> str:
        """Return the module at which nothing was left of a projection's signal; "" where it arrived at the pixels."""
        number = 0 if self.lost is None else int(self.lost[row, k])
        return (self.steps[number - 1] or "the network itself") if number else ""

    @property
    def note(self) -> str:
        """What this picture cannot show, in a sentence or two; "" where there is nothing to say."""
        if self.likeness is None or self.switches is None:
            return ""
        alike = warn_of_likeness(self.likeness, self.switches, max(self.patches.shape[-2:]))
        return " ".join(filter(None, [alike, self.loss]))

    @property
    def loss(self) -> str:
        """Of how many projections nothing arrived at the pixels, and where that was lost; "" where all arrived."""
        places = [] if self.lost is None else [self.lost_at(*place) for place in self.lost.nonzero().tolist()]
        return warn_of_loss(places, int(self.mask.sum()))


_Own = TypeVar("_Own", bound=UnitPatches)


@dataclass(frozen=True, eq=False, repr=False)
class Projections(UnitPatches, Result):
    """The top activations of U units of a layer: K images each, their patches and their projections.

    Fields, all tensors on the CPU: `units` (U,), `activations` (U, K), `image_ids` (U, K) index into the images
    given, `positions` (U, K, 2) as (row, column) in the layer's map, `boxes` (U, K, 4) as (top, left, bottom, right)
    in input pixels, `patches` and `projections` (U, K, C, h, w), where h × w is the layer's largest receptive field
    clipped to the image; what a box lacks at the image's edge is zero. Patches are in the model's input space;
    `mean` and `std` take them back to pixels in 0–1. Large results are mapped from a file and read when looked at.
    `rule` says what the rectifiers did; `beside` are the projections by other rules, where several were asked for, each
    a `Projections` of its own with the same patches. `lost` (U, K) is 0 where a signal arrived at the pixels; else nothing
    was left of it at the module `lost_at(row, k)`, such as a rectifier that was off, and its projection is zero.
    `likeness` (U,) is the mean cosine between the K projections of a unit, laid over each other at their positions, where
    both images have pixels (NaN where there are not two),
    `likeness_of_units` that between the units' mean projections; `switches` counts the max-pools below the layer. Where
    the nine of a unit are nearly one, they hardly depend on the images: `note` says so.
    `preactivations` (U, K) is what went into the layer's activation where that has an upper end, such as ReLU6: equal
    activations are ranked by it. A place that no image excites is empty: image id −1, `mask` false, its pictures zero.
    `count` is how many images were looked at, `skipped` (image id, reason) those of them that could not be read, `order`
    which of red, green and blue each channel is where that is not their order, `names` and `labels` what the images
    are called, by their ids (a dict each; no labels: empty).
    `plot` draws the paper's Fig. 2, see `deconvviz.plotting.projections.draw`.
    """

    layer: str
    units: Tensor
    activations: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    patches: Tensor
    projections: Tensor
    number: int | None = None
    rule: str = "deconvnet"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    likeness: Tensor | None = None
    lost: Tensor | None = None
    steps: tuple[str, ...] = ()
    switches: int | None = None
    beside: tuple[Projections, ...] = ()
    preactivations: Tensor | None = None
    order: tuple[int, ...] | None = None
    count: int | None = None
    skipped: tuple[tuple[int, str], ...] = ()
    names: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)

    file_kind = "projections"
    drawn_by = "projections"
    by_unit = (
        *("units", "activations", "preactivations", "image_ids", "positions", "boxes", "likeness"),
        *("lost", "patches", "projections"),
    )

    def _at(self, rows: slice | list[int]) -> Projections:
        return replace(super()._at(rows), beside=tuple(other._at(rows) for other in self.beside))

    def plot(
        self,
        figure: Any = None,
        *,
        units: Sequence[int] | None = None,
        scale: str = "unit",
        columns: int | None = None,
        crop: str = "field",
        smooth: float = 0.0,
        gray: bool = False,
        percentile: float = 99.5,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the paper's Fig. 2; see `deconvviz.plotting.projections.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        look |= {"crop": crop, "smooth": smooth, "gray": gray, "percentile": percentile}
        return self.draw("draw", figure, units=units, scale=scale, columns=columns, **look)

    def describe(self) -> str:
        """Say of which layer, how many and how large."""
        units, images = self.image_ids.shape
        height, width = self.patches.shape[-2:]
        silent = int((~self.mask.any(1)).sum())
        seen = "these images" if self.count is None else amount(self.count, "image")
        note = f", {amount(silent, 'unit')} with no response in {seen}" if silent else ""
        for one in (self, *self.beside):
            gone = 0 if one.lost is None else int(one.lost.count_nonzero())
            note += "" if one is self else f", beside {one.rule}"
            note += f", {amount(gone, 'signal')} lost on the way" if gone else ""
        return f"{self.layer}: {amount(units, 'unit')} × {amount(images, 'image')}, {height}×{width} px{note}"

    @property
    def likeness_of_units(self) -> float:
        """The mean cosine between the units' mean projections; NaN where there are not two."""
        return mean_cosine(torch.stack([_directions(tiles).mean(0) for tiles in self.projections]))

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        arrays = {name: getattr(self, name) for name in self.by_unit if getattr(self, name) is not None}
        for number, other in enumerate(self.beside):
            own = {name: getattr(other, name) for name in _OWN}
            arrays |= {f"{BESIDE.format(number)}{name}": x for name, x in own.items() if x is not None}
        facts = {name: getattr(self, name) for name in _FACTS}
        return facts | {"others": [other.rule for other in self.beside]}, arrays

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Projections:
        """Take back what `header` returned."""
        others = facts.get("others", ())
        if not isinstance(others, (list, tuple)) or not all(isinstance(rule, str) for rule in others):
            raise ValueError(f"others are {others!r}, no names of rules")
        parts: list[dict[str, Any]] = [
            {name: arrays[key] for name in _OWN if (key := f"{BESIDE.format(number)}{name}") in arrays}
            for number in range(len(others))
        ]
        mine = {name: x for name, x in arrays.items() if name in cls.by_unit}
        known = {name: tuples(value) for name, value in facts.items() if name != "others"}
        fields: dict[str, Any] = {**mine, **known}
        one = cls(**fields | {name: by_id(facts.get(name, {})) for name in ("names", "labels")})
        beside = [replace(one, rule=rule, **part) for rule, part in zip(others, parts, strict=True)]
        return replace(one, beside=tuple(beside))


def mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine between different rows (n, D) that are not zero; NaN where there are not two."""
    one = _directions(rows)
    count = len(one)
    return float((one.sum(0).square().sum() - count) / (count * (count - 1))) if count > 1 else float("nan")


def _directions(rows: Tensor) -> Tensor:
    """Return the rows (n, D) that are not zero, each divided by its length."""
    flat = rows.flatten(1).double()
    size = flat.norm(dim=1, keepdim=True)
    return (flat / size)[size[:, 0] > 0]


def warn_of_likeness(likeness: Tensor, switches: int, side: int) -> str:
    """Say in one sentence that a layer's projections, of `side` pixels, are nearly one; "" where they are not."""
    middle = float(likeness.nanmedian())
    if side <= SMALL or not middle >= ALIKE:
        return ""
    pools = amount(switches, "max-pool") if switches else "no max-pool"
    return (
        f"The projections of a unit are nearly one (mean cosine {middle:.2f}; {pools} below this layer): they hardly "
        "depend on the images. See what excites the unit with evidence."
    )


def warn_of_loss(places: Sequence[str], count: int) -> str:
    """Say in one sentence at which modules signals were lost, of `count` in all; "" where there are none."""
    if not places:
        return ""
    most = [f"{name} ({n})" for name, n in Counter(places).most_common(3)]
    more = f" and {amount(len({*places}) - 3, 'other place')}" if len({*places}) > 3 else ""
    return f"Of {len(places)} of {amount(count, 'signal')} nothing reached the pixels, lost at {', '.join(most)}{more}."


_FACTS = (
    *("layer", "number", "rule", "steps", "switches", "mean", "std", "order", "count", "skipped", "names", "labels"),
)
_OWN = ("likeness", "lost", "projections")  # what each rule has for itself
