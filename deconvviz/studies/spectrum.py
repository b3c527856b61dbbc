"""What filters look like to a signal processor: spectra, shifts, and what a stride folds. All float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_DEAD = 0.1  # of the RMS that 90 % of the filters do not exceed
_DOMINANT = 3.0  # times the median RMS of the filters that are not dead
_ALIKE = 0.9  # cosine of duplicates
_HIGH = 3 / 8  # cycles per pixel
_GRID = 64  # samples of a spectrum, at least
_BLOCK = 1 << 24  # correlation values at once


def powers(images: Tensor, grid: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the power spectra (N, H, W) of (N, C, h, w), summed over channels, and the frequencies (H, 1), (1, W).

    Frequencies are in cycles per pixel, from -1/2 to 1/2, rows first; zero padding to a `grid` × `grid` samples them
    more finely than the images' own size does.
    """
    size = (grid, grid) if grid else tuple(images.shape[-2:])
    power = torch.fft.fft2(images.double(), s=size).abs().square().sum(1)
    rows, cols = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in size)
    return power, rows[:, None], cols[None, :]


def peaks(filters: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return where each filter's (N, C, h, w) spectrum is largest: radius in cycles per pixel, angle in degrees.

    The angle is the direction in which the filter changes: 0 along the rows (vertical stripes), 90 up and down,
    counterclockwise as displayed, below 180. Among equal maxima the smallest frequency counts.
    """
    power, rows, cols = powers(filters, grid)
    radius = (rows.square() + cols.square()).sqrt()
    order = radius.flatten().argsort(stable=True)
    ranked = power.flatten(1)[:, order]
    # What differs by rounding is equal: the spectrum of a real filter is symmetric.
    best = (ranked >= ranked.amax(1, keepdim=True) * (1 - 1e-9)).int().argmax(1)
    place = order[best]
    row, col = rows.flatten()[place // grid], cols.flatten()[place % grid]
    return radius.flatten()[place], torch.rad2deg(torch.atan2(-row, col)).remainder(180.0)


def folded(
    images: Tensor, stride: tuple[int, int], grid: int | None = None, *, natural: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (N,) and (N,): the power of (N, C, h, w) that sampling every `stride` pixels folds, and all of it.

    A frequency is folded where its vertical or its horizontal part exceeds 1 / (2 · stride). The mean does not count.
    With `natural` the power is that of the response to natural images, whose own power falls as 1/f².
    """
    power, rows, cols = powers(images, grid)
    squared = rows.square() + cols.square()
    weight = torch.where(squared > 0, 1 / squared if natural else 1.0, 0.0)
    beyond = (rows.abs() > 0.5 / stride[0]) | (cols.abs() > 0.5 / stride[1])
    return (power * weight * beyond).sum((1, 2)), (power * weight).sum((1, 2))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, 0 where there is nothing."""
    return torch.where(whole > 0, part / whole, 0.0)


def likeness(filters: Tensor) -> Tensor:
    """Return (N, N): the largest absolute cosine of each two filters (N, C, h, w) over all shifts against each other.

    What a shift pushes out is lost, as on a zero background; zero filters are like nothing.
    """
    count, _, height, width = filters.shape
    unit = filters.double() / filters.double().flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
    size = (2 * height - 1, 2 * width - 1)
    spectrum = torch.fft.rfft2(unit, s=size)
    step = max(1, _BLOCK // (count * size[0] * size[1]))
    found = []
    for part in spectrum.split(step):
        cross = torch.einsum("ncyx,mcyx->nmyx", part, spectrum.conj())
        found.append(torch.fft.irfft2(cross, s=size).abs().amax((2, 3)))
    return torch.cat(found).clamp(max=1.0)


def usual_band(size: int) -> tuple[float, float]:
    """Return the middle frequencies of filters of this size, in cycles per pixel; `Filters.band` gives the reasons."""
    return 1 / size, max(_HIGH, 1 / size)


def scores(weights: Tensor, stride: tuple[int, int], band: tuple[float, float]) -> dict[str, Any]:
    """Return every score that the weights alone give."""
    exact = weights.double()
    rms = exact.square().mean((1, 2, 3)).sqrt()
    dead = rms <= _DEAD * rms.quantile(0.9)
    dominant = rms > _DOMINANT * rms[~dead].median() if (~dead).any() else torch.zeros_like(dead)
    like = likeness(exact)
    pairs = (like.triu(1) >= _ALIKE) & ~dead[:, None] & ~dead
    gray = exact.mean(1, keepdim=True)
    energy = exact.square().sum((1, 2, 3))
    grid = max(_GRID, 4 * max(weights.shape[2:]))
    frequency, orientation = peaks(exact, grid)
    return {
        "rms": rms,
        "dead": dead,
        "dominant": dominant & ~dead,
        "likeness": like,
        "duplicates": pairs.nonzero(),
        "colour": ratio((exact - gray).square().sum((1, 2, 3)), energy),
        "frequency": frequency,
        "orientation": orientation,
        "band": band,
        "folded": ratio(*folded(exact, stride, grid, natural=True)),
    }
