"""Keeping the strongest: a batch's responses absorbed, ties and places settled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22  # values of maps looked through at once: bounds the memory for large maps and a large k
NOBODY = -1  # the image id of a place that is empty


class Places(NamedTuple):
    """The strongest of each unit so far, strongest first.

    `keys` (units, k) is what they are ranked by: the activations `values`, or what went into them where their own
    end makes ties; `ids` (units, k) int64 and `positions` (units, k, 2) int64 say where.
    """

    keys: Tensor
    values: Tensor
    ids: Tensor
    positions: Tensor


def empty(response: Tensor) -> Places:
    """Return the places before the first image: none."""
    dtype = torch.promote_types(response.dtype, torch.float32)
    values = torch.empty(response.shape[1], 0, device=response.device, dtype=dtype)
    ids = torch.empty(response.shape[1], 0, device=response.device, dtype=torch.int64)
    return Places(values, values, ids, ids[..., None].expand(-1, -1, 2))


def strongest(places: Places, k: int, origins: Tensor | None = None) -> Places:
    """Return the k strongest by key, then by smaller id: two stable sorts, NaN first; each origin once."""
    order = places.ids.argsort(dim=1, stable=True)
    order = order.gather(1, places.keys.gather(1, order).argsort(dim=1, descending=True, stable=True))
    if origins is None:
        return _picked(places, order[:, :k])
    places = _picked(places, order)
    weaker = _weaker(places.ids, origins)
    keys = places.keys.masked_fill(weaker, -torch.inf)
    ids = places.ids.masked_fill(weaker, NOBODY)
    return _picked(places._replace(keys=keys, ids=ids), keys.argsort(dim=1, descending=True, stable=True)[:, :k])


def _picked(places: Places, order: Tensor) -> Places:
    keys, values, ids = (x.gather(1, order) for x in places[:3])
    return Places(keys, values, ids, places.positions.gather(1, order[..., None].expand(-1, -1, 2)))


def _weaker(ids: Tensor, origins: Tensor) -> Tensor:
    """Say of each place whether one before it, in its row, is of the same origin; empty ones are of none."""
    origins = origins.to(ids.device)
    own = torch.where(ids == NOBODY, -1 - torch.arange(ids.shape[1], device=ids.device), origins[ids.clamp(min=0)])
    same, order = own.sort(dim=1, stable=True)
    again = torch.cat([torch.zeros_like(same[:, :1], dtype=torch.bool), same[:, 1:] == same[:, :-1]], 1)
    return torch.zeros_like(again).scatter_(1, order, again)


def absorb(
    places: Places,
    response: Tensor,
    ranked: Tensor,
    first: int,
    k: int,
    look: bool = True,
    origins: Tensor | None = None,
) -> Places:
    """Merge a batch's responses (N, U, H, W), images `first`, `first` + 1, …, into the strongest so far.

    They are ranked by `ranked`, of the same shape. `look` spares work by what the values are; on a GPU any look at
    them would wait for the batch.
    """
    peaks = ranked.amax((2, 3)).t().to(places.keys.dtype)
    peaks = peaks + 0.0  # turns -0 into 0: which of the two a maximum gives depends on the order of its work
    rows = torch.arange(len(peaks), device=peaks.device)
    if look and places.keys.shape[1] == k:
        # Later images lose ties, so only units that a larger value reaches change; NaN counts as larger.
        rows = (~(peaks <= places.keys[:, -1:])).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return places
    changed = _absorb_rows(places, response, ranked, peaks[rows], rows, first, k, look, origins)
    if len(rows) == len(peaks):
        return changed
    return Places(*(a.index_copy(0, rows, b) for a, b in zip(places, changed, strict=True)))


def _absorb_rows(
    places: Places,
    response: Tensor,
    ranked: Tensor,
    peaks: Tensor,
    rows: Tensor,
    first: int,
    k: int,
    look: bool,
    origins: Tensor | None,
) -> Places:
    """Return the strongest of the units `rows`, whose `peaks` are (len(rows), N), after this batch."""
    # The sort is stable: among equal peaks the earlier image stays in front. With origins all compete.
    count = k if origins is None else peaks.shape[1]
    best, images = (x[:, :count] for x in peaks.sort(dim=1, descending=True, stable=True))
    unknown = torch.zeros_like(images)[..., None].expand(-1, -1, 2)
    new = Places(best, best, images + first, unknown)
    found = strongest(
        Places(*(torch.cat([old[rows], more], 1) for old, more in zip(places, new, strict=True))), k, origins
    )
    fresh = found.ids >= first
    # Without a look at how many there are: all are looked up, those that are new are kept.
    flat = fresh.flatten().nonzero()[:, 0] if look else torch.arange(fresh.numel(), device=fresh.device)
    unit, image = rows[flat // found.ids.shape[1]], (found.ids.flatten()[flat] - first).clamp(min=0)
    at = _first_positions(ranked, image, unit, found.keys.flatten()[flat])
    is_new, kept = fresh.flatten()[flat], found.positions.flatten(0, 1)
    kept[flat] = torch.where(is_new[:, None], at, kept[flat])
    if response is ranked:
        return found._replace(values=found.keys, positions=kept.view_as(found.positions))
    values = found.values.flatten()
    row, col = (at[:, i].clamp(max=response.shape[2 + i] - 1) for i in (0, 1))
    values[flat] = torch.where(is_new, response[image, unit, row, col].to(values.dtype) + 0.0, values[flat])
    return found._replace(values=values.view_as(found.values), positions=kept.view_as(found.positions))


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
