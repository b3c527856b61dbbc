"""The strongest images per unit: keeping them, merging, the result and its file."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LayerError, OptionError, StoreError
from ..results.base import Result, Stored, by_id, named_columns, tuples
from ..results.text import amount, as_html, as_text, layer_name, listed, skipped_lines
from .merging import NOBODY, Places, strongest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerTop(Stored):
    """The strongest images of one layer's units, strongest first.

    A place that no image excites is empty: its value is 0, its image id −1, its position (0, 0).

    Attributes:
        name: the layer's module path.
        number: its number as the papers count, or None.
        values: (units, k) activations.
        image_ids: (units, k) int64, index into the images given; −1 for an empty place.
        positions: (units, k, 2) int64, (row, col) in the layer's map.
        preactivations: (units, k) what went into the activation that made the response, where that has an upper end
            (ReLU6, hardtanh, clamp, hardsigmoid, sigmoid, tanh): equal values are ranked by it; None elsewhere.
        aliases: other module paths of the same tensor.
    """

    name: str
    number: int | None
    values: Tensor
    image_ids: Tensor
    positions: Tensor
    preactivations: Tensor | None = None
    aliases: tuple[str, ...] = ()

    def called(self, layer: object) -> bool:
        """Say whether this is the layer with this number, module path or alias."""
        return layer in (self.name, self.number, *self.aliases)

    def strongest_first(self) -> list[int]:
        """Return the units, the strongest first; of equal ones that with the smaller number."""
        order: list[int] = self.values[:, 0].argsort(descending=True, stable=True).tolist()
        return order

    @property
    def mask(self) -> Tensor:
        """Which places hold an image that excites the unit, (units, k) bool."""
        return self.image_ids >= 0

    @property
    def silent(self) -> int:
        """How many units no image excites."""
        return int((~self.mask.any(1)).sum())

    def describe(self) -> str:
        """Say of which layer, how many units and images."""
        units, images = self.values.shape
        return f"{self.name}: {amount(units, 'unit')} × {amount(images, 'image')}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopK(Result, Mapping[str, LayerTop]):
    """The strongest images per unit of several layers: `result["features.10"]`, `result[5]`.

    Ties go to the smaller image index, then the smaller row, then the smaller column; equal values at the end of a
    saturating activation are ranked by what went into it. An image counts once per unit, with its strongest
    position. Places that no image excites are empty.

    Attributes:
        tops: one `LayerTop` per layer, in the order they were asked for.
        k: how many images per unit were asked for; there are fewer where there were fewer images.
        count: how many images were seen.
        scan: what was scanned, as a hash, for a scan with a file; else empty.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
        distinct: what counted once per unit, "" for each image.
        names: of each image in the result by its id: its file, or "image 7".
        labels: of each image in the result by its id; empty where none are known.
        interior: whether only positions counted whose field lies inside the image.
    """

    tops: tuple[LayerTop, ...]
    k: int
    count: int
    scan: str = ""
    skipped: tuple[tuple[int, str], ...] = ()
    distinct: str = ""
    names: dict[int, str] = dataclasses.field(default_factory=dict)
    labels: dict[int, str] = dataclasses.field(default_factory=dict)
    interior: bool = False
    file_kind = "topk"
    holds = (LayerTop,)
    drawn_by = "topk"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' module paths, in the order they were asked for."""
        return tuple(top.name for top in self.tops)

    def __getitem__(self, layer: str | int) -> LayerTop:
        """Return the layer with this module path or number."""
        for top in self.tops:
            if top.called(layer):
                return top
        have = listed(self.layers, [top.number for top in self.tops])
        raise LayerError(f"no layer {layer!r} in this result, it has {have}.")

    def __contains__(self, layer: object) -> bool:
        """Say whether the layer, by module path or number, is here."""
        return any(top.called(layer) for top in self.tops)

    def __iter__(self) -> Iterator[str]:
        """Go through the layers' module paths."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.tops)

    def merge(self, other: TopK) -> TopK:
        """Return the result for the images of both, in any order and grouping the same.

        Each rank or worker scans its own images; see `shifted` for numbers that fit together.

        Raises:
            OptionError: other layers, another k, the same image in both, or scans with `distinct`.
        """
        if self.layers != other.layers or self.k != other.k:
            raise OptionError(
                f"a merge takes results of the same layers and k: {self.layers}, k={self.k} and "
                f"{other.layers}, k={other.k}."
            )
        if self.distinct or other.distinct:
            raise OptionError("scans with distinct= cannot be merged: which images share an origin is not kept.")
        if self.interior != other.interior:
            raise OptionError("one of the scans counted positions inside the image only (interior=), the other all.")
        count = self.count + other.count
        tops = tuple(_merge(a, b, min(self.k, count)) for a, b in zip(self.tops, other.tops, strict=True))
        shown = {i for top in tops for i in top.image_ids.unique().tolist()}
        names, labels = (
            {i: text for i, text in sorted((a | b).items()) if i in shown}
            for a, b in ((self.names, other.names), (self.labels, other.labels))
        )
        skipped = tuple(sorted((*self.skipped, *other.skipped)))
        return TopK(tops, self.k, count, skipped=skipped, names=names, labels=labels, interior=self.interior)

    def shifted(self, first: int) -> TopK:
        """Return the same with `first` added to every image index: a scan of the images from `first` on."""
        tops = tuple(
            dataclasses.replace(top, image_ids=torch.where(top.mask, top.image_ids + first, top.image_ids))
            for top in self.tops
        )
        skipped = tuple((i + first, reason) for i, reason in self.skipped)
        names, labels = ({i + first: text for i, text in x.items()} for x in (self.names, self.labels))
        return dataclasses.replace(self, tops=tops, scan="", skipped=skipped, names=names, labels=labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, check: bool = True) -> TopK:
        """Read a result that `save` or a finished scan wrote.

        Raises:
            StoreError: the file cannot be read, is something else, or belongs to a scan that is not finished.
        """
        result, facts = cls.read(path, check=check)
        if result.count < facts["total"]:  # as versions before wrote them
            raise StoreError(
                f"{path} is a scan that saw {result.count} of {facts['total']} images. Call top(..., out=) again to "
                "finish it."
            )
        return result

    def describe(self) -> str:
        """Say of which layers, how many images per unit and of how many."""
        return f"{', '.join(self.layers)}: {self.k} of {self.count} images per unit"

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        arrays = {f"{top.name}/{field}": getattr(top, field) for top in self.tops for field in _ARRAYS}
        arrays |= {f"{t.name}/preactivations": t.preactivations for t in self.tops if t.preactivations is not None}
        layers = [[top.name, top.number] for top in self.tops]
        facts = {"layers": layers, "k": self.k, "count": self.count, "total": self.count, "scan": self.scan}
        aliases = {top.name: top.aliases for top in self.tops if top.aliases}
        extra: dict[str, Any] = {"skipped": self.skipped, "distinct": self.distinct, "aliases": aliases}
        extra |= {"names": self.names, "labels": self.labels, "interior": self.interior}
        return facts | {name: value for name, value in extra.items() if value}, arrays

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> TopK:
        """Take back what `header` returned."""
        tops = tuple(
            LayerTop(
                name,
                number,
                arrays[f"{name}/values"],
                arrays[f"{name}/image_ids"],
                arrays[f"{name}/positions"],
                arrays.get(f"{name}/preactivations"),
                tuples(facts.get("aliases", {}).get(name, [])),
            )
            for name, number in facts["layers"]
        )
        skipped, distinct = tuples(facts.get("skipped", [])), facts.get("distinct", "")
        known = {name: by_id(facts.get(name, {})) for name in ("names", "labels")}
        return cls(
            tops,
            facts["k"],
            facts["count"],
            facts["scan"],
            skipped,
            distinct,
            **known,
            interior=facts.get("interior", False),
        )

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each image of each unit, strongest first; empty places are left out."""
        numbers = ("unit", "rank", "value", "image_id", "row", "col")
        columns: dict[str, list[Any]] = {name: [] for name in ("layer", *numbers)}
        for top in self.tops:
            unit, rank = (top.image_ids >= 0).nonzero().unbind(1)
            found = (
                unit,
                rank,
                top.values[unit, rank],
                top.image_ids[unit, rank],
                *top.positions[unit, rank].unbind(1),
            )
            columns["layer"] += [top.name] * len(unit)
            for name, values in zip(numbers, found, strict=True):
                columns[name] += values.tolist()
        return columns | named_columns(columns["image_id"], self.names, self.labels)

    def check_loaded(self, facts: dict[str, Any]) -> None:
        """Refuse numbers that do not fit together: images that were not seen, arrays of other sizes."""
        super().check_loaded(facts)
        if not 0 <= self.count <= facts["total"] or self.k < 1:
            raise ValueError(f"{self.count} of {facts['total']} images were seen for the top {self.k}")
        for top in self.tops:
            shape = top.values.shape
            if (
                len(shape) != 2
                or shape[1] > self.k
                or top.image_ids.shape != shape
                or top.positions.shape != (*shape, 2)
            ):
                raise ValueError(f"the arrays of layer {top.name!r} do not fit together")
            end = self.count if self.scan else None  # what `shifted` returned counts from elsewhere
            if (top.image_ids < -1).any() or (end is not None and (top.image_ids >= end).any()):
                raise ValueError(f"layer {top.name!r} names images that were not seen")

    def table(self) -> str:
        """Return a row per layer: its units and their strongest activations; then the images that were skipped."""
        return "\n".join([as_text(self._headings(), self._rows()), *skipped_lines(self.skipped)])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in skipped_lines(self.skipped))
        return f"<p>top {self.k} of {self.count} images</p>{as_html(self._headings(), self._rows())}{lines}"

    def _headings(self) -> list[str]:
        return ["layer", "units", "median of the strongest", "strongest", f"no response in {self.count} images"]

    def _rows(self) -> list[list[str]]:
        return [
            [
                layer_name(t.name, t.number),
                str(len(t.values)),
                f"{t.values[:, 0].median():.4g}",
                f"{t.values.max():.4g}",
                str(t.silent),
            ]
            for t in self.tops
        ]


_ARRAYS = ("values", "image_ids", "positions")


def _merge(a: LayerTop, b: LayerTop, k: int) -> LayerTop:
    """Return the k strongest of two results, whose images differ."""
    if a.values.shape[0] != b.values.shape[0]:
        raise OptionError(f"{a.name!r} has {len(a.values)} units in one result and {len(b.values)} in the other.")
    ids = torch.cat([a.image_ids, b.image_ids], 1)
    ordered = ids.sort(dim=1).values
    twice = ordered[:, 1:][(ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOBODY)]
    if len(twice):
        raise OptionError(f"image {int(twice[0])} is in both results: an image may count once. Use shifted().")
    values, positions = torch.cat([a.values, b.values], 1), torch.cat([a.positions, b.positions], 1)
    keys = values
    if a.preactivations is not None and b.preactivations is not None:
        keys = torch.cat([a.preactivations, b.preactivations], 1)
    none = ids == NOBODY
    best = strongest(Places(keys.masked_fill(none, -torch.inf), values, ids, positions), k)
    inputs = None if a.preactivations is None else best.keys.masked_fill(best.ids == NOBODY, 0)
    return LayerTop(a.name, a.number, best.values, best.ids, best.positions, inputs, a.aliases)
