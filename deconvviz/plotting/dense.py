"""Draws a classifier's answers over one image, beside what covering its parts takes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..model.dense import ClassMap
from ..occlusion.result import Occlusion
from .style import colour_map, new_figure, picture, short


@picture
def draw(
    result: ClassMap,
    figure: Any = None,
    *,
    what: str = "score",
    occlusion: Occlusion | None = None,
    title: str | None = None,
    cmap: str = "viridis",
) -> Any:
    """Draw the image and the target's score at each place; with an occlusion scan of the same image, its map.

    A cell stands around the middle of what its answer sees, as wide as the answers are apart.

    Args:
        result: What `look` returned.
        figure: A matplotlib figure to draw into; a new one if None.
        what: "score", or "probability", by a softmax at each place.
        occlusion: What `occlude` returned for the same image and class.
        title: The line above; the class if None.
        cmap: The colours of the maps, one of matplotlib's.
    """
    if what not in ("score", "probability"):
        raise OptionError(f"what={what!r}: expected 'score' or 'probability'.")
    size = tuple(result.picture.shape[1:])
    if occlusion is not None and occlusion.image_size != size:
        raise OptionError(f"the occlusion is of an image of {occlusion.image_size} pixels, this one has {size}.")
    columns = 2 if occlusion is None else 3
    figure = new_figure(figure, 0.4 + 3.2 * columns, 3.6)
    figure.suptitle(title or short(result.name, 60), fontsize=10)
    axes = figure.subplots(1, columns)
    for axis in axes:
        axis.imshow(result.picture.movedim(0, -1).numpy(), vmin=0, vmax=1, extent=(0, size[1], size[0], 0))
        axis.set(xticks=[], yticks=[], xlim=(0, size[1]), ylim=(size[0], 0))
    axes[0].set_title("image", fontsize=8.5)
    edges = [
        _edges(middles, step) for middles, step in zip((result.cols, result.rows), result.stride[::-1], strict=True)
    ]
    _over(figure, axes[1], edges, getattr(result, what).float().numpy(), cmap, f"{what} here")
    axes[1].set_title(f"the network at {len(result.rows)}×{len(result.cols)} places", fontsize=8.5)
    if occlusion is not None:
        drop = occlusion.attribution().numpy()
        whole = [np.arange(size[1] + 1.0), np.arange(size[0] + 1.0)]
        _over(figure, axes[2], whole, drop, cmap, "mean drop when covered")
        axes[2].set_title("covered part by part", fontsize=8.5)
    return figure


def _edges(middles: Tensor, step: int) -> np.ndarray:
    return torch.cat([middles - step / 2, middles[-1:] + step / 2]).numpy()


def _over(figure: Any, axis: Any, edges: list[np.ndarray], values: np.ndarray, cmap: str, label: str) -> None:
    mesh = axis.pcolormesh(*edges, values, cmap=colour_map(cmap), alpha=0.75, linewidth=0, rasterized=True)
    bar = figure.colorbar(mesh, ax=axis, orientation="horizontal", shrink=0.8, pad=0.03)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
