"""How alike the projections of one unit are, laid over each other at the positions that they come from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from .bulk import Frames


def likeness(frames: Frames, projections: Tensor) -> Tensor:
    """Return (U,): the mean cosine between each unit's projections (U, K, C, h, w) that are not zero.

    Two of them are compared where both images have pixels: one that the border cuts is no other picture for that. NaN
    where there are not two.

    Raises:
        ModelError: A projection is not finite.
    """
    height, width = frames.shape[-2:]
    shift = frames.shift.unflatten(0, frames.ids.shape)
    boxes = frames.boxes
    size = boxes[..., 2:] - boxes[..., :2]
    rows, cols = frames.layer.reach.rows, frames.layer.reach.cols
    step = torch.tensor([rows.stride, cols.stride])
    # Of each frame's upper left pixel, from where its position is.
    origin = boxes[..., :2] - shift - frames.positions * step
    end = torch.minimum(shift + size, torch.tensor([height, width]))
    found = []
    for unit, *one in zip(frames.units, projections, origin, shift, end, strict=True):
        cosine = _mean_cosine(*one)
        if cosine is None:
            raise ModelError(
                f"layer {frames.layer.name!r}, unit {int(unit)}: a projection is not finite. Look for an overflow in half "
                "precision, or where signals of very many layers add up on the way back; weights in float64 have more room."
            )
        found.append(cosine)
    return torch.tensor(found, dtype=torch.float32)


def _mean_cosine(tiles: Tensor, origin: Tensor, low: Tensor, high: Tensor) -> float | None:
    """Return the mean over pairs of tiles (K, C, h, w) that have pixels between `low` and `high` (K, 2), if finite."""
    there = tiles.flatten(1).any(1).nonzero().flatten()
    tiles, origin = tiles[there].double(), origin[there]
    flat = tiles.flatten(1)
    products = (flat @ flat.T).tolist() if len(tiles) and bool((origin == origin[0]).all()) else None
    energy = torch.nn.functional.pad(tiles.square().sum(1).cumsum(1).cumsum(2), (1, 0, 1, 0)).numpy()
    if not np.isfinite(energy[:, -1, -1]).all():  # the sum over each tile
        return None
    # Plain numbers: a tensor for each corner of each pair would cost more than the projections.
    zero, first, end = origin.tolist(), (origin + low[there]).tolist(), (origin + high[there]).tolist()
    cosines = []
    for a, b in itertools.combinations(range(len(tiles)), 2):
        top, left = (max(*pair) for pair in zip(first[a], first[b], strict=True))
        bottom, right = (min(*pair) for pair in zip(end[a], end[b], strict=True))
        if top >= bottom or left >= right:
            continue  # the images have nothing of the field in common
        boxes = [(top - zero[i][0], left - zero[i][1], bottom - zero[i][0], right - zero[i][1]) for i in (a, b)]
        own = [_within(energy[i], box) for i, box in zip((a, b), boxes, strict=True)]
        if min(own) <= 0:
            continue
        if products is not None:
            product = products[a][b]
        else:
            one, other = (tiles[i, :, t:b, le:r] for i, (t, le, b, r) in zip((a, b), boxes, strict=True))
            product = float((one * other).sum())
        cosines.append(product / (own[0] * own[1]) ** 0.5)
    return sum(cosines) / len(cosines) if cosines else float("nan")


def _within(sums: Any, box: tuple[int, int, int, int]) -> float:
    """Return what lies in a box, of the running sums (h + 1, w + 1), an array, over rows and columns."""
    top, left, bottom, right = box
    return float(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
