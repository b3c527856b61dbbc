"""The result of `project`: fields, file, picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..results.base import Result, tuples
from ..results.text import amount


@dataclass(frozen=True, eq=False, repr=False)
class Projections(Result):
    """The top activations of U units of a layer: K images each, their patches and their projections.

    Fields, all tensors on the CPU: `units` (U,), `activations` (U, K), `image_ids` (U, K) index into the images
    given, `positions` (U, K, 2) as (row, column) in the layer's map, `boxes` (U, K, 4) as (top, left, bottom, right)
    in input pixels, `patches` and `projections` (U, K, C, h, w), where h × w is the layer's largest receptive field
    clipped to the image; what a box lacks at the image's edge is zero. Patches are in the model's input space;
    `mean` and `std` take them back to pixels in 0–1. Large results are mapped from a file and read when looked at.
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

    file_kind = "projections"
    drawn_by = "projections"

    def describe(self) -> str:
        """Say of which layer, how many and how large."""
        units, images = self.image_ids.shape
        height, width = self.patches.shape[-2:]
        return f"{self.layer}: {amount(units, 'unit')} × {amount(images, 'image')}, {height}×{width} px"

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        return {name: getattr(self, name) for name in _FACTS}, {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Projections:
        """Take back what `header` returned."""
        fields: dict[str, Any] = {**arrays, **{name: tuples(value) for name, value in facts.items()}}
        return cls(**fields)


_ARRAYS = ("units", "activations", "image_ids", "positions", "boxes", "patches", "projections")
_FACTS = ("layer", "number", "rule", "mean", "std")
