"""What an occlusion scan measured: one number per occluder position, and what follows from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..results.base import Result, tuples
from ..results.text import amount


@dataclass(frozen=True, eq=False, repr=False)
class Occlusion(Result):
    """What one image's scan measured: position maps, one number per occluder position, and the unoccluded values.

    All tensors are on the CPU. With a list of targets `probability` and `logit` are (T, R, C). `plot` draws the five
    panels of the paper's Fig. 7, see `deconvviz.plotting.occlusion.draw`.

    Attributes:
        image, fill: (C, H, W) the image and what covers it, in the model's input space; `mean` and `std` take them
            back to pixels in 0–1.
        rows, cols: (R,), (C,) the occluder's top-left corners in pixels; for masks R counts them and C is 1.
        size: (height, width) of the occluder in pixels, None for masks.
        target: class, or a function's name; a tuple of them for a list of targets.
        probability: (R, C) the target's softmax share (the output itself where the network ends in a softmax);
            NaN for a function.
        logit: (R, C) the model's output for the target, or the function's value.
        label: (R, C) the most probable class.
        activation: (R, C) the sum over space of the map of `layer` whose sum is the largest in the unoccluded image,
            `unit`; None where the model has no such layer.
        unoccluded: the same four for the image as it is, by name.
        measured: (R, C) False where `refine` interpolated.
        masks: (P, H, W) what was covered, None for a grid.
        projection: (C, H, W) the map's strongest activation in the unoccluded image, carried back to pixels by the
            deconvnet; None where an operation has no rule.
        other_patches, other_projections: (K, C, h, w) the top patches of `unit` among `others`, and their projections.
        method: "incremental" or "full"; `note` says why it was not the fast one, or why images ran one by one, or "".
        deviation: for a lower precision, each map's largest difference from the model's own on a sample.
    """

    image: Tensor
    fill: Tensor
    rows: Tensor
    cols: Tensor
    size: tuple[int, int] | None
    target: int | str | tuple[int | str, ...]
    probability: Tensor
    logit: Tensor
    label: Tensor
    activation: Tensor | None
    unoccluded: dict[str, Tensor]
    measured: Tensor
    masks: Tensor | None = None
    layer: str | None = None
    number: int | None = None
    unit: int | None = None
    projection: Tensor | None = None
    other_patches: Tensor | None = None
    other_projections: Tensor | None = None
    stride: tuple[int, int] | None = None
    fill_name: str = ""
    method: str = ""
    note: str = ""
    deviation: dict[str, float] | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: tuple[int, ...] | None = None  # which of red, green and blue each channel is, where that is not their order
    file_kind = "occlusion"
    drawn_by = "occlusion"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[1], self.image.shape[2]

    def attribution(self, of: str | None = None) -> Tensor:
        """Return (H, W) float64: the mean drop over the windows that cover each pixel, NaN where none does.

        It is captum's definition: captum's `Occlusion` of the model gives `attribution("logit")`. Masks count with
        their weight. Interpolated positions count like measured ones.

        Args:
            of: "probability", "logit" or "activation"; None: "probability", for functions "logit". With a list of
                targets the result is (T, H, W).

        Raises:
            OptionError: No such map.
        """
        of = of or ("logit" if self.probability.isnan().all() else "probability")
        values = getattr(self, of) if of in ("probability", "logit", "activation") else None
        if values is None:
            raise OptionError(f"of={of!r}: give 'probability', 'logit' or, with a layer, 'activation'.")
        drop = self.unoccluded[of].double()[..., None, None] - values.double()
        total, count = self.over_pixels(drop), self.over_pixels(torch.ones_like(drop))
        return torch.where(count > 0, total / count, torch.nan)

    def over_pixels(self, values: Tensor) -> Tensor:
        """Sum values (…, R, C) over the positions that cover each pixel: (…, H, W) float64."""
        if self.masks is not None:
            return torch.einsum("...p,phw->...hw", values[..., 0].double(), self.masks.double())
        assert self.size is not None
        height, width = (_covers(*x) for x in zip((self.rows, self.cols), self.size, self.image_size, strict=True))
        return height.T @ values.double() @ width

    def only(self, target: int | str) -> Occlusion:
        """Return the result for one of several targets."""
        if not isinstance(self.target, tuple):
            if target == self.target:
                return self
            raise OptionError(f"target {target!r} was not measured, only {self.target!r}.")
        if target not in self.target:
            raise OptionError(f"target {target!r} was not measured, only {', '.join(map(repr, self.target))}.")
        i = self.target.index(target)
        base = self.unoccluded | {name: self.unoccluded[name][i] for name in ("probability", "logit")}
        return replace(self, target=target, probability=self.probability[i], logit=self.logit[i], unoccluded=base)

    def name_of(self, target: int | str) -> str:
        """Return a class's name, or its number where names are not known."""
        if isinstance(target, str):
            return target
        if target < 0:
            return "no classes"
        return self.class_names[target] if self.class_names else f"class {target}"

    def plot(
        self,
        figure: Any = None,
        *,
        target: int | str | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the five panels of Fig. 7; see `deconvviz.plotting.occlusion.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, target=target, **look)

    def overlay(
        self,
        figure: Any = None,
        *,
        of: str | None = None,
        target: int | str | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the attribution over the image; see `deconvviz.plotting.occlusion.overlay` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("overlay", figure, of=of, target=target, **look)

    def animate(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write a GIF of the occluder and the probability side by side, see `deconvviz.plotting.animation.animate`."""
        self.drawing("animate", "animation")(self, path, **options)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each place of the occluder, or for each mask."""
        rows, cols = torch.meshgrid(self.rows, self.cols, indexing="ij")
        found: dict[str, Any] = {"row": rows.flatten(), "col": cols.flatten()}
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        for name in ("probability", "logit"):
            maps = getattr(self, name).reshape(len(targets), -1)
            for target, values in zip(targets, maps, strict=True):
                found[f"{name} of {self.name_of(target)}" if len(targets) > 1 else name] = values
        found["label"] = self.label.flatten()
        if self.class_names:
            found["class"] = [self.class_names[n] if n >= 0 else "" for n in self.label.flatten().tolist()]
        if self.activation is not None:
            found["activation"] = self.activation.flatten()
        return found | {"measured": self.measured.expand(rows.shape).flatten()}

    def describe(self) -> str:
        """Say of which target, how many positions and pixels."""
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        rows, cols = self.label.shape
        what = amount(rows, "mask") if self.size is None else f"{rows}×{cols} positions"
        height, width = self.image_size
        return f"{', '.join(map(self.name_of, targets))}: {what}, {height}×{width} px"

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says, and the arrays in it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        arrays |= {f"unoccluded.{name}": value for name, value in self.unoccluded.items()}
        plain = {n: v for n, v in held.items() if v is not None and not isinstance(v, (Tensor, dict))}
        return {"deviation": self.deviation, **plain}, arrays

    @classmethod
    def from_header(cls, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Occlusion:
        """Take back what `header` returned."""
        plain: dict[str, Any] = {"size": None, "activation": None}
        plain |= {name: tuples(value) for name, value in facts.items()}
        base = {n.partition(".")[2]: arrays.pop(n) for n in list(arrays) if n.startswith("unoccluded.")}
        return cls(**plain | arrays, unoccluded=base)


def _covers(first: Tensor, window: int, length: int) -> Tensor:
    """Mark (positions, pixels) of one dimension: which window covers which line."""
    line = torch.arange(length)
    return ((line >= first[:, None]) & (line < first[:, None] + window)).double()
