"""What `compare_methods` found: fields, table, pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..results.base import Result
from ..results.text import amount, as_text
from .similarity import strength

TITLES = {
    "deconvnet": "deconvnet",
    "guided": "guided backprop",
    "gradient": "gradient",
    "gradcam": "Grad-CAM",
    "integrated": "integrated gradients",
    "occlusion": "occlusion",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MethodComparison(Result):
    """What M methods say of one image, and of the same network with S sets of its layers drawn at random, D times.

    Attributes:
        methods: the M methods.
        target: the number they explain, in words.
        value: that number for the image.
        image: (C, H, W) in the model's input space.
        picture: (3, H, W) uint8, the image as pixels.
        maps: one (C, H, W) per method, or (1, H, W) where the method knows no channels; signed, unscaled.
        layer: the module whose maps Grad-CAM weighs, None without it.
        stages: S tuples: the modules that were drawn anew at this stage and not before it, from the output down to
            the one named last; all earlier ones stay random, and after the last stage no trained weight is left.
        randomized: one (S, C or 1, H, W) per method: its maps at each stage of the first draw.
        rank_correlation: (M, S, D) float64, Spearman's ρ of the strength per pixel, trained against random.
        ssim: (M, S, D) float64, structural similarity of the same maps.
    """

    methods: tuple[str, ...]
    target: str
    value: float
    image: Tensor
    picture: Tensor
    maps: tuple[Tensor, ...]
    layer: str | None
    stages: tuple[tuple[str, ...], ...]
    randomized: tuple[Tensor, ...]
    rank_correlation: Tensor
    ssim: Tensor
    drawn_by = "comparison"

    def __getitem__(self, method: str) -> Tensor:
        """Return one method's map of the trained network."""
        if method not in self.methods:
            raise OptionError(f"no method {method!r} in this result, it has {', '.join(self.methods)}.")
        return self.maps[self.methods.index(method)]

    @property
    def scores(self) -> Tensor:
        """(M,) float64: ρ after all weights were drawn at random, mean over the draws; NaN without randomization."""
        if not self.stages:
            return torch.full((len(self.methods),), torch.nan, dtype=torch.float64)
        return self.rank_correlation[:, -1].mean(1)

    def strength(self, method: str) -> Tensor:
        """Return (H, W) float64: the sum over the channels of the absolute values of one method's map."""
        return strength(self[method])

    def plot(
        self,
        figure: Any = None,
        *,
        what: str = "maps",
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the methods side by side, or with `what="randomized"` what random weights make of them.

        See `deconvviz.plotting.comparison.draw` and `Result.plot`.
        """
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, what=what, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each method, stage and draw of random weights; `stage` starts at 0.

        Raises:
            OptionError: No weights were drawn at random.
        """
        if not self.stages:
            return super().columns()
        methods, stages, draws = self.ssim.shape
        places = torch.meshgrid(*(torch.arange(n) for n in (methods, stages, draws)), indexing="ij")
        method, stage, draw = (place.flatten() for place in places)
        found: dict[str, Any] = {"method": [self.methods[i] for i in method.tolist()], "stage": stage, "draw": draw}
        return found | {"rank_correlation": self.rank_correlation.flatten(), "ssim": self.ssim.flatten()}

    def describe(self) -> str:
        """Say of what, how many methods, and how often weights were drawn at random."""
        height, width = self.image.shape[1:]
        draws = f", {amount(len(self.stages), 'stage')} × {amount(self.ssim.shape[2], 'draw')}" if self.stages else ""
        return f"{self.target}: {amount(len(self.methods), 'method')}, {height}×{width} px{draws}"

    def table(self) -> str:
        """Return a table: ρ of each method at each stage, mean over the draws, and SSIM at the last."""
        head = f"{self.target}, value {self.value:.4g}"
        if not self.stages:
            return f"{head}; methods: {', '.join(self.methods)}"
        names = [stage[-1] or "the model" for stage in self.stages]
        rows = [
            (name, *(f"{r:.2f}" for r in rho.mean(1).tolist()), f"{s:.2f}")
            for name, rho, s in zip(self.methods, self.rank_correlation, self.ssim[:, -1].mean(1).tolist(), strict=True)
        ]
        last, every = self.rank_correlation[:, 0].mean(1), self.scores
        first, same = (self.methods[int(x.argmax())] for x in (last, every))
        return "\n".join(
            [
                f"{head}; rank correlation with the trained network's map when weights are random, from the output "
                f"down to …, {self.ssim.shape[2]} draws; SSIM when all are",
                as_text(("random down to", *names, "SSIM"), rows),
                f"least changed when {names[0]} alone is random: {first}, {float(last.max()):.2f}; "
                f"when all weights are: {same}, {float(every.max()):.2f}",
            ]
        )
