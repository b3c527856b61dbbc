"""The result of `evidence`, and the effective field: the part of a patch that a unit responds to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..projection.result import Projections, UnitPatches
from ..results.base import Result, by_id, tuples
from ..results.text import amount, layer_name
from .cells import cell_edges

SHARE = 0.9  # of the positive evidence, which the effective field holds


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evidence(UnitPatches, Result):
    """Where the nine patches of U units hold what excites the unit: what covering each place takes away.

    Fields, all tensors on the CPU: `units` (U,), `activations` (U, K), `image_ids` (U, K) index into the images given,
    -1 for an empty place, where nothing excites the unit; `positions` (U, K, 2) as (row, column) in the layer's map,
    `boxes` (U, K, 4) as (top, left, bottom, right) in input pixels, `patches` (U, K, C, h, w) in the model's input
    space, as `project` has them; `maps` (U, K, rows, cols): the activation minus the one with the occluder at
    (row, col), 0 where that covers nothing of the image; `rows` (R,) and `cols` (C,) are the occluder's upper left
    corners in the patch, `size` its pixels, `stride` those between its places; `field` (U, 4): the smallest box in the
    patch with 90 % of the positive evidence, summed over the unit's K patches, all 0 for a unit without any; `in_full`
    (U, K): the whole network ran on each covered image; `measured` (U, K, rows, cols): false where `refine` made that
    the number is interpolated, None: nowhere. `names` and `labels` are what the images are called, by their ids,
    `skipped` (image id, reason) those that could not be read. Where `rule` was given, `projections` (U, K, C, h, w) are
    those of `project`, with `likeness` (U,), `lost` (U, K) and `note` as there. `plot` draws it, see
    `deconvviz.plotting.evidence.draw`.
    """

    layer: str
    units: Tensor
    activations: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    patches: Tensor
    maps: Tensor
    rows: Tensor
    cols: Tensor
    field: Tensor
    in_full: Tensor
    size: tuple[int, int]
    stride: tuple[int, int]
    fill_name: str
    number: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: tuple[int, ...] | None = None
    measured: Tensor | None = None
    preactivations: Tensor | None = None
    projections: Tensor | None = None
    likeness: Tensor | None = None
    lost: Tensor | None = None
    steps: tuple[str, ...] = ()
    rule: str | None = None
    switches: int | None = None
    count: int | None = None
    skipped: tuple[tuple[int, str], ...] = ()
    names: dict[int, str] = dataclasses.field(default_factory=dict)
    labels: dict[int, str] = dataclasses.field(default_factory=dict)

    file_kind = "evidence"
    drawn_by = "evidence"
    by_unit = (
        *("units", "activations", "image_ids", "positions", "boxes", "patches", "maps", "field", "in_full"),
        *("measured", "preactivations", "projections", "likeness", "lost"),
    )

    def plot(
        self,
        figure: Any = None,
        *,
        units: Sequence[int] | None = None,
        projections: Projections | None = None,
        columns: int | None = None,
        crop: str = "field",
        scale: str = "unit",
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
        """Draw patches and evidence, and the projections of the same units if they are given or came along.

        See `deconvviz.plotting.evidence.draw` and `Result.plot`.
        """
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        look |= {"crop": crop, "scale": scale, "smooth": smooth, "gray": gray, "percentile": percentile}
        return self.draw("draw", figure, units=units, projections=projections, columns=columns, **look)

    def describe(self) -> str:
        """Say of which layer, how many and how large."""
        units, images = self.image_ids.shape
        height, width = self.patches.shape[-2:]
        places = f"{len(self.rows)}×{len(self.cols)} places"
        named = layer_name(self.layer, self.number)
        return f"{named}: {amount(units, 'unit')} × {amount(images, 'image')}, {height}×{width} px, {places}"

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: those of all patches, and the most that covering one place takes away."""
        return super().columns() | {"largest_drop": self.maps.flatten(2).amax(2)[self.mask]}

    def over_pixels(self, which: Sequence[int] | None = None) -> Tensor:
        """Return (U, K, h, w): at each pixel the mean evidence of the occluders that cover it, of units by their place."""
        maps = self.maps if which is None else self.maps[list(which)]
        total = maps.new_zeros(*maps.shape[:2], *self.patches.shape[-2:])
        count = maps.new_zeros(self.patches.shape[-2:])
        for i, row in enumerate(self.rows.tolist()):
            for j, col in enumerate(self.cols.tolist()):
                where = slice(row, row + self.size[0]), slice(col, col + self.size[1])
                total[(..., *where)] += maps[..., i, j, None, None]
                count[where] += 1
        return total / count.clamp_min(1)

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        arrays = {name: getattr(self, name) for name in (*self.by_unit, "rows", "cols")}
        facts = {name: getattr(self, name) for name in FACTS}
        return facts, {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Evidence:
        """Take back what `header` returned."""
        fields: dict[str, Any] = {**arrays, **{name: tuples(value) for name, value in facts.items()}}
        return cls(**fields | {name: by_id(facts.get(name, {})) for name in ("names", "labels")})


FACTS = (
    *("layer", "size", "stride", "fill_name", "number", "mean", "std", "order", "rule", "switches", "count"),
    *("skipped", "names", "labels", "steps"),
)


def centres(first: Tensor, window: int, length: int) -> tuple[int, int]:
    """Return the pixels at the centres of the first and the last occluder along one dimension."""
    low, high = int(first[0]), int(first[-1])
    return (low + min(low + window, length)) // 2, max((high + min(high + window, length)) // 2, (low + window) // 2)


def effective_field(
    maps: Tensor, rows: Tensor, cols: Tensor, size: tuple[int, int], patch: tuple[int, int], least: float = 0.0
) -> Tensor:
    """Return the box (4,) in the patch that holds `SHARE` of the positive evidence of maps (K, rows, cols).

    What is not above `least` is rounding: a unit that nothing covers would have a field of that.
    """
    total = maps.where(maps > least, 0).double().sum(0)
    found = smallest_box(total, SHARE)
    if found is None:
        return torch.zeros(4, dtype=torch.long)
    # The outer cells reach the patch's edges: no other occluder covers the pixels there.
    down, across = (cell_edges(at, n, length) for at, n, length in zip((rows, cols), size, patch, strict=True))
    down[[0, -1]], across[[0, -1]] = (0, patch[0]), (0, patch[1])
    top, left, bottom, right = found
    edges = [down[top], across[left], down[bottom], across[right]]
    low, high = torch.tensor(edges[:2]).floor(), torch.tensor(edges[2:]).ceil()
    return torch.cat([low, high]).long()


def smallest_box(mass: Tensor, share: float) -> tuple[int, int, int, int] | None:
    """Return the box (top, left, bottom, right) of fewest cells that holds a share of the mass (R, C); None of 0.

    Of several such boxes the one that holds more, then the first in reading order.
    """
    whole = float(mass.sum())
    if whole <= 0:
        return None
    rows, cols = mass.shape
    wanted = share * whole * (1 - 1e-12)  # sums in another order may miss it by a hair
    down = torch.cat([mass.new_zeros(1, cols), mass.cumsum(0)])
    best: tuple[int, float, int, int, int, int] | None = None
    for top in range(rows):
        sums = torch.nn.functional.pad((down[top + 1 :] - down[top]).cumsum(1), (1, 0))  # (rows - top, cols + 1)
        if float(sums[-1, -1]) < wanted:
            break
        ends = torch.searchsorted(sums, sums[:, :-1] + wanted)  # of each (bottom, left), cols + 1 where none suffices
        width = ends - torch.arange(cols)
        height = torch.arange(1, rows - top + 1)[:, None]
        area = torch.where(ends <= cols, width * height, rows * cols + 1)
        least = int(area.min())
        if best is not None and least > best[0]:
            continue
        held = torch.where(area == least, sums.gather(1, ends.clamp(max=cols)) - sums[:, :-1], -1.0)
        place = int(held.argmax())
        bottom, left = top + place // cols + 1, place % cols
        found = (least, -float(held.flatten()[place]), top, left, bottom, int(ends.flatten()[place]))
        best = found if best is None else min(best, found)
    assert best is not None
    return best[2:]
