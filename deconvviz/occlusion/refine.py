"""A coarse grid first, a finer one only where its map changes; the rest is interpolated."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a map's range: a cell of the coarse grid whose corners differ by more is measured in full.
CHANGE = 0.2


def coarse(count: int, step: int) -> Tensor:
    """Return every `step`th of `count` indices, and the last."""
    return torch.unique(torch.cat([torch.arange(0, count, step), torch.tensor([count - 1])]))


def changing(maps: dict[str, Tensor], unoccluded: dict[str, Tensor], rows: Tensor, cols: Tensor) -> Tensor:
    """Mark the positions (R, C) between coarse ones whose values differ.

    `maps[name]` is (…, Rc, Cc) on the coarse grid of indices `rows` and `cols`.
    """
    marked = torch.zeros(int(rows[-1]) + 1, int(cols[-1]) + 1, dtype=torch.bool)
    for i, j in changing_cells(maps, unoccluded).nonzero().tolist():
        below, beside = min(i + 1, len(rows) - 1), min(j + 1, len(cols) - 1)
        marked[int(rows[i]) : int(rows[below]) + 1, int(cols[j]) : int(cols[beside]) + 1] = True
    return marked


def changing_cells(maps: dict[str, Tensor], unoccluded: dict[str, Tensor]) -> Tensor:
    """Mark the cells of the coarse grid; a grid of one line has cells of one line."""
    cells = []
    for name, values in maps.items():
        if name == "logit" and not maps["probability"].isnan().any():
            continue  # says the same on another scale
        low, high = _corners(values.double(), largest=False), _corners(values.double(), largest=True)
        base = unoccluded[name].double()
        span = torch.stack([values.double().amax((-2, -1)), base]).amax(0)
        span = span - torch.stack([values.double().amin((-2, -1)), base]).amin(0)
        limit = torch.zeros_like(span) if name == "label" else CHANGE * span
        found = high - low > limit[..., None, None]  # NaN, a function's probability, is never larger
        cells.append(found.reshape(-1, *found.shape[-2:]).any(0))
    return torch.stack(cells).any(0)


def _corners(values: Tensor, *, largest: bool) -> Tensor:
    for dim in (-2, -1):
        length = values.shape[dim]
        if length > 1:
            pair = torch.stack([values.narrow(dim, 0, length - 1), values.narrow(dim, 1, length - 1)])
            values = pair.amax(0) if largest else pair.amin(0)
    return values


def spread(values: Tensor, name: str, rows: Tensor, cols: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Interpolate (…, Rc, Cc) linearly to all `places` (R,) and (C,) in pixels; labels come from the nearest."""
    down, right = _weights(places[0], rows), _weights(places[1], cols)
    if name == "label":
        return values[down.argmax(1)[:, None], right.argmax(1)]
    return (down @ values.double() @ right.T).to(values.dtype)


def _weights(places: Tensor, chosen: Tensor) -> Tensor:
    """Return the matrix (all, chosen) of linear interpolation from `places[chosen]` to `places`."""
    known, at = places[chosen].double(), places.double()
    weights = torch.zeros(len(places), len(chosen), dtype=torch.float64)
    above = torch.searchsorted(known, at).clamp(0, len(known) - 1)
    below = (above - 1).clamp(min=0)
    gap = (known[above] - known[below]).clamp(min=1)
    share = torch.where(above == below, 1.0, (at - known[below]) / gap)
    line = torch.arange(len(places))
    weights[line, below] = 1 - share
    weights[line, above] += share
    return weights
