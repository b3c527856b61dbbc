"""The strongest images per unit: keeping them, merging, the result and its file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LayerError, OptionError, StoreError
from ..model.table import Layer
from ..results import store
from ..results.base import Result, Stored
from ..results.text import amount, as_html, as_text, layer_name, listed

_CHUNK = 1 << 22  # values of maps looked through at once: bounds the memory for large maps and a large k


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerTop(Stored):
    """The strongest images of one layer's units, strongest first.

    Attributes:
        name: the layer's module path.
        number: its number as the papers count, or None.
        values: (units, k) activations.
        image_ids: (units, k) int64, index into the images given.
        positions: (units, k, 2) int64, (row, col) in the layer's map.
    """

    name: str
    number: int | None
    values: Tensor
    image_ids: Tensor
    positions: Tensor

    def describe(self) -> str:
        """Say of which layer, how many units and images."""
        units, images = self.values.shape
        return f"{self.name}: {amount(units, 'unit')} × {amount(images, 'image')}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopK(Result, Mapping[str, LayerTop]):
    """The strongest images per unit of several layers: `result["features.10"]`, `result[5]`.

    Ties go to the smaller image index, then the smaller row, then the smaller column. An image counts once
    per unit, with its strongest position.

    Attributes:
        tops: one `LayerTop` per layer, in the order they were asked for.
        k: how many images per unit were asked for; there are fewer where there were fewer images.
        count: how many images were seen.
        scan: what was scanned, as a hash, for a scan with a file; else empty.
    """

    tops: tuple[LayerTop, ...]
    k: int
    count: int
    scan: str = ""
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
            if layer in (top.name, top.number):
                return top
        have = listed(self.layers, [top.number for top in self.tops])
        raise LayerError(f"no layer {layer!r} in this result, it has {have}.")

    def __contains__(self, layer: object) -> bool:
        """Say whether the layer, by module path or number, is here."""
        return any(layer in (top.name, top.number) for top in self.tops)

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
            OptionError: other layers, another k, or the same image in both.
        """
        if self.layers != other.layers or self.k != other.k:
            raise OptionError(
                f"a merge takes results of the same layers and k: {self.layers}, k={self.k} and "
                f"{other.layers}, k={other.k}."
            )
        count = self.count + other.count
        tops = tuple(_merge(a, b, min(self.k, count)) for a, b in zip(self.tops, other.tops, strict=True))
        return TopK(tops, self.k, count)

    def shifted(self, first: int) -> TopK:
        """Return the same with `first` added to every image index: a scan of the images from `first` on."""
        tops = tuple(dataclasses.replace(top, image_ids=top.image_ids + first) for top in self.tops)
        return TopK(tops, self.k, self.count)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, check: bool = True) -> TopK:
        """Read a result that `save` or a finished scan wrote.

        Raises:
            StoreError: the file cannot be read, is something else, or belongs to a scan that is not finished.
        """
        result, total = read(path)
        if result.count < total:
            raise StoreError(
                f"{path} is a scan that saw {result.count} of {total} images. Call top(..., out=) again to finish it."
            )
        return result

    def describe(self) -> str:
        """Say of which layers, how many images per unit and of how many."""
        return f"{', '.join(self.layers)}: {self.k} of {self.count} images per unit"

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        arrays = {f"{top.name}/{field}": getattr(top, field) for top in self.tops for field in _ARRAYS}
        layers = [[top.name, top.number] for top in self.tops]
        facts = {"layers": layers, "k": self.k, "count": self.count, "total": self.count, "scan": self.scan}
        return facts, arrays

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> TopK:
        """Take back what `header` returned."""
        tops = tuple(LayerTop(n, number, *(arrays[f"{n}/{f}"] for f in _ARRAYS)) for n, number in facts["layers"])
        return cls(tops, facts["k"], facts["count"], facts["scan"])

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
        """Return a row per layer: its units and their strongest activations."""
        return as_text(_HEADINGS, self._rows())

    def _repr_html_(self) -> str:
        return f"<p>top {self.k} of {self.count} images</p>{as_html(_HEADINGS, self._rows())}"

    def _rows(self) -> list[list[str]]:
        return [
            [
                layer_name(t.name, t.number),
                str(len(t.values)),
                f"{t.values[:, 0].median():.4g}",
                f"{t.values.max():.4g}",
            ]
            for t in self.tops
        ]


_ARRAYS = ("values", "image_ids", "positions")
_HEADINGS = ("layer", "units", "median of the strongest", "strongest")


# ---- keeping the strongest ---------------------------------------------------------------------------------


def _strongest(values: Tensor, ids: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k strongest of (units, n) by value, then by smaller id: two stable sorts, NaN first."""
    order = ids.argsort(dim=1, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    places = positions.gather(1, order[..., None].expand(-1, -1, 2))
    return values.gather(1, order), ids.gather(1, order), places


def _merge(a: LayerTop, b: LayerTop, k: int) -> LayerTop:
    if a.values.shape[0] != b.values.shape[0]:
        raise OptionError(f"{a.name!r} has {len(a.values)} units in one result and {len(b.values)} in the other.")
    ids = torch.cat([a.image_ids, b.image_ids], 1)
    ordered = ids.sort(dim=1).values
    twice = ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]]
    if len(twice):
        raise OptionError(f"image {int(twice[0])} is in both results: an image may count once. Use shifted().")
    values, positions = torch.cat([a.values, b.values], 1), torch.cat([a.positions, b.positions], 1)
    return LayerTop(a.name, a.number, *_strongest(values, ids, positions, k))


def absorb(state: LayerTop, response: Tensor, first: int, k: int, look: bool = True) -> LayerTop:
    """Merge a batch's responses (N, U, H, W), images `first`, `first` + 1, …, into the strongest so far.

    `look` spares work by what the values are; on a GPU any look at them would wait for the batch.
    """
    peaks = response.amax((2, 3)).t().to(state.values.dtype)
    peaks = peaks + 0.0  # turns -0 into 0: which of the two a maximum gives depends on the order of its work
    rows = torch.arange(len(peaks), device=peaks.device)
    if look and state.values.shape[1] == k:
        # Later images lose ties, so only units that a larger value reaches change; NaN counts as larger.
        rows = (~(peaks <= state.values[:, -1:])).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return state
    fields = _absorb_rows(state, response, peaks[rows], rows, first, k, look)
    if len(rows) < len(peaks):
        fields = tuple(a.index_copy(0, rows, b) for a, b in zip(arrays(state), fields, strict=True))
    return LayerTop(state.name, state.number, *fields)


def _absorb_rows(
    state: LayerTop, response: Tensor, peaks: Tensor, rows: Tensor, first: int, k: int, look: bool
) -> tuple[Tensor, ...]:
    """Return the strongest of the units `rows`, whose `peaks` are (len(rows), N), after this batch."""
    # The sort is stable: among equal peaks the earlier image stays in front.
    best, images = (x[:, :k] for x in peaks.sort(dim=1, descending=True, stable=True))
    old = [a[rows] for a in arrays(state)]
    unknown = torch.zeros_like(images)[..., None].expand(-1, -1, 2)
    values, ids, positions = _strongest(
        torch.cat([old[0], best], 1),
        torch.cat([old[1], images + first], 1),
        torch.cat([old[2], unknown], 1),
        k,
    )
    new = ids >= first
    # Without a look at how many there are: all are looked up, those that are new are kept.
    flat = new.flatten().nonzero()[:, 0] if look else torch.arange(new.numel(), device=new.device)
    unit, image = rows[flat // ids.shape[1]], (ids.flatten()[flat] - first).clamp(min=0)
    found = _first_positions(response, image, unit, values.flatten()[flat])
    kept = positions.flatten(0, 1)
    kept[flat] = torch.where(new.flatten()[flat][:, None], found, kept[flat])
    return values, ids, kept.view_as(positions)


def _first_positions(response: Tensor, image: Tensor, unit: Tensor, peak: Tensor) -> Tensor:
    """Return (P, 2): the first (row, col), row by row, where maps (`image`, `unit`) reach their `peak`."""
    height, width = response.shape[2:]
    # Which of several maxima argmax gives is not the same on every device; the smallest index is.
    places = torch.arange(height * width, device=response.device, dtype=torch.int32).view(height, width)
    step = max(1, _CHUNK // places.numel())
    parts = zip(image.split(step), unit.split(step), peak.split(step), strict=True)
    found = torch.cat(
        [torch.where(response[i, u] == p[:, None, None], places, places.numel()).amin((1, 2)) for i, u, p in parts]
    ).long()
    return torch.stack([found // width, found % width], 1)


def arrays(top: LayerTop) -> tuple[Tensor, Tensor, Tensor]:
    """Return values (units, k), image ids (units, k) and positions (units, k, 2)."""
    return top.values, top.image_ids, top.positions


def empty(layer: Layer, device: torch.device, dtype: torch.dtype) -> LayerTop:
    """Return a layer's result before the first image: k = 0."""
    values = torch.empty(layer.units, 0, device=device, dtype=torch.promote_types(dtype, torch.float32))
    ids = torch.empty(layer.units, 0, device=device, dtype=torch.int64)
    return LayerTop(layer.name, layer.number, values, ids, ids[..., None].expand(-1, -1, 2))


def write(path: str | os.PathLike[str], result: TopK, total: int) -> None:
    """Write a result, or the state of a scan of `total` images."""
    facts, found = result.header()
    store.save(path, found, {"kind": TopK.file_kind, **facts, "total": total})


def read(path: str | os.PathLike[str]) -> tuple[TopK, int]:
    """Read what `write` wrote: the result and the number of images that the scan goes over."""
    result, facts = TopK.read(path, check=True)
    return result, facts["total"]
