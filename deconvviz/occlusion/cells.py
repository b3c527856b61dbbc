"""From position maps to arrays that can be drawn: cells, colours, legends; no figures here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..images.inverse import Inverse
from .result import Occlusion

# The unoccluded label, then the most frequent others; muted, and apart in lightness too.
COLOURS = ("#33608c", "#e0a458", "#6a9f6b", "#a8484b", "#a99bc9", "#7a5c48", "#d7a9c0")
OTHER = "#c4c4c4"
MOST_LETTERS = 26


def pixels(result: Occlusion, image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) of the model's input space as (H, W, 3) within 0–1."""
    return Inverse(result.mean, result.std, result.order)(image).permute(1, 2, 0).numpy()


def covered(result: Occlusion, position: int) -> tuple[Tensor, Tensor]:
    """Return the image with one position covered (C, H, W), and the mask (H, W)."""
    if result.masks is not None:
        mask = result.masks[position].float()
    else:
        one = torch.zeros(len(result.rows), len(result.cols))
        one.view(-1)[position] = 1
        mask = result.over_pixels(one).float()
    return result.image * (1 - mask) + result.fill * mask, mask


def score(result: Occlusion) -> tuple[str, Tensor, float]:
    """Return the target's map (R, C) with its unit and unoccluded value: its probability, or a function's value."""
    name = "logit" if result.probability.isnan().all() else "probability"
    unit = "probability" if name == "probability" else "value"
    return unit, getattr(result, name), float(result.unoccluded[name])


def cell_edges(first: Tensor, window: int, length: int) -> np.ndarray:
    """Return the edges (n + 1,) of the cells around the centres of what the windows cover along one dimension."""
    centres = (first + (first + window).clamp(max=length)).double().numpy() / 2
    if len(centres) == 1:
        return np.array([0.0, length])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def over_image(result: Occlusion, values: Tensor) -> np.ndarray:
    """Return masks' values (P, 1) over the pixels (H, W): the mean where they overlap, NaN where there is none."""
    count = result.over_pixels(torch.ones_like(values, dtype=torch.float64))
    return torch.where(count > 0, result.over_pixels(values) / count, torch.nan).numpy()


def label_index(result: Occlusion) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return the label map as indices into a legend of (text, colour): the unoccluded label, the top ones, "other"."""
    usual = int(result.unoccluded["label"])
    found, count = result.label.unique(return_counts=True)
    order = [int(found[i]) for i in count.argsort(descending=True, stable=True) if int(found[i]) != usual]
    shown = [usual, *order[: len(COLOURS) - 1]]
    rest = len(order) + 1 - len(shown)
    total = result.label.numel()
    index = np.full(result.label.shape, len(shown))
    legend = []
    for i, label in enumerate(shown):
        here = (result.label == label).numpy()
        index[here] = i
        legend.append((f"{short(result.name_of(label))}  {_percent(here.sum() / total)}", COLOURS[i]))
    if rest:
        legend.append((f"{rest} other{'s' * (rest > 1)}  {_percent((index == len(shown)).mean())}", OTHER))
    return index, legend


def short(name: str, most: int = MOST_LETTERS) -> str:
    """Return a class's first name, cut to what fits."""
    name = name.split(",")[0]
    return name if len(name) <= most else name[: most - 1] + "…"


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
