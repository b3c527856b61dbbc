"""The result of `project`: fields, file, picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..results import store as _store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Projections:
    """The top activations of U units of a layer: K images each, their patches and their projections.

    Fields, all tensors on the CPU: `units` (U,), `activations` (U, K), `image_ids` (U, K) index into the images
    given, `positions` (U, K, 2) as (row, column) in the layer's map, `boxes` (U, K, 4) as (top, left, bottom, right)
    in input pixels, `patches` and `projections` (U, K, C, h, w), where h × w is the layer's largest receptive field
    clipped to the image; what a box lacks at the image's edge is zero. Patches are in the model's input space;
    `mean` and `std` take them back to pixels in 0–1. Large results are mapped from a file and read when looked at.
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

    def plot(self, figure: Figure | None = None, **options: Any) -> Figure:
        """Draw the paper's Fig. 2, see `deconvviz.plotting.projections.draw`."""
        from ..plotting import projections as plot

        return plot.draw(self, figure, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file."""
        _store.save(path, {name: getattr(self, name) for name in _ARRAYS}, self.meta())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Projections:
        """Read a file that `save` or `project(..., out=path)` wrote; pictures are read when looked at."""
        arrays, meta = _store.load(path, "projections")
        meta.pop("kind")
        for name in ("mean", "std"):
            given = meta[name]
            meta[name] = tuple(given) if isinstance(given, list) else None
        fields: dict[str, Any] = {**arrays, **meta}
        return cls(**fields)

    def meta(self) -> dict[str, object]:
        """Return what the file's header says beside the arrays."""
        plain = {name: getattr(self, name) for name in ("layer", "number", "rule", "mean", "std")}
        return {"kind": "projections", **plain}

    def _repr_png_(self) -> bytes:
        from ..plotting import projections as plot

        return plot.png(self.plot())


_ARRAYS = ("units", "activations", "image_ids", "positions", "boxes", "patches", "projections")
