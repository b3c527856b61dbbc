"""How an image is written as numbers to optimize: pixels, a Fourier spectrum, or the phases of one (MACO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .natural import Natural, natural

PARAMETRIZATIONS = ("fourier", "maco", "pixels")
_START = 0.01  # the spread of the first values: a nearly gray image


class Parameters(Protocol):
    """Numbers to optimize, and the images (B, C, H, W) between 0 and 1 that they stand for."""

    values: Tensor

    def images(self) -> Tensor:
        """Return the images, differentiable in `values`."""


class Pixels:
    """One number per pixel and channel, before a sigmoid."""

    def __init__(self, starts: list[torch.Generator], shape: tuple[int, int, int]) -> None:
        self.values = torch.stack([torch.randn(shape, generator=start) for start in starts]) * _START

    def images(self) -> Tensor:
        """Return the images (B, C, H, W)."""
        return self.values.sigmoid()


class Fourier:
    """A spectrum in colours that are independent in photographs, before a sigmoid.

    Each frequency is scaled by its wavelength, as the amplitudes of photographs are: all of them then learn equally
    fast, where single pixels learn the high ones first.

    Source: Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017, the section on preconditioning.
    """

    def __init__(self, starts: list[torch.Generator], shape: tuple[int, int, int], natural: Natural) -> None:
        channels, height, width = self.shape = shape
        size = (channels, height, width // 2 + 1, 2)
        self.values = torch.stack([torch.randn(size, generator=start) for start in starts]) * _START
        self.natural = natural
        self.scale = (height * width) ** 0.5 / frequencies(height, width).clamp(min=1 / max(height, width))

    def images(self) -> Tensor:
        """Return the images (B, C, H, W)."""
        spectrum = torch.view_as_complex(self.values) * self.scale.to(self.values.device)
        # A quarter, as in the original: the first steps stay where the sigmoid is steep.
        independent = torch.fft.irfft2(spectrum, s=self.shape[-2:], norm="backward") / 4
        return self.natural.correlate(independent).sigmoid()

    def invert(self, images: Tensor) -> None:
        """Set `values` so that `images` (B, C, H, W) come out, up to the sigmoid's ends."""
        independent = self.natural.decorrelate(images.clamp(0.002, 0.998).logit())
        spectrum = torch.fft.rfft2(independent * 4, norm="backward") / self.scale
        self.values = torch.view_as_real(spectrum).contiguous()


class Maco:
    """The phases of a spectrum whose magnitudes are those of photographs; before a sigmoid.

    Source: Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization",
    NeurIPS 2023.
    """

    def __init__(self, starts: list[torch.Generator], shape: tuple[int, int, int], natural: Natural) -> None:
        channels, height, width = self.shape = shape
        size = (channels, height, width // 2 + 1)
        phases = [torch.rand(size, generator=start) * 2 * torch.pi - torch.pi for start in starts]
        self.values = torch.stack(phases)
        self.natural = natural
        self.magnitude = natural.magnitude(shape)

    def buffer(self) -> Tensor:
        """Return the independent channels (B, C, H, W), whose spectrum has the fixed magnitude in every bin."""
        phases = _odd_columns(self.values, self.shape[2])
        return torch.fft.irfft2(torch.polar(self.magnitude.to(phases).expand_as(phases), phases), s=self.shape[-2:])

    def images(self) -> Tensor:
        """Return the images (B, C, H, W)."""
        return self.natural.correlate(self.buffer()).sigmoid()


def make(parametrization: str, seeds: Sequence[int], shape: tuple[int, int, int]) -> Parameters:
    """Return images (B, C, H, W) as numbers to optimize, each from the start that belongs to its seed."""
    starts = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
    if parametrization == "pixels":
        return Pixels(starts, shape)
    return (Fourier if parametrization == "fourier" else Maco)(starts, shape, natural())


def frequencies(height: int, width: int) -> Tensor:
    """Return the frequency of each bin of a real image's spectrum (height, width // 2 + 1), in cycles per pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))


def _odd_columns(phases: Tensor, width: int) -> Tensor:
    """Make the phases of the first and, for an even width, the last column odd in the row frequency.

    These columns are their own mirror images: of another phase the transform would keep the even part alone, and with
    it a smaller magnitude.
    """
    columns = [0, width // 2] if width % 2 == 0 else [0]
    mirrored = phases.flip(-2).roll(1, -2)
    odd = (phases - mirrored) / 2
    own = torch.zeros(phases.shape[-1], dtype=torch.bool, device=phases.device)
    own[columns] = True
    return torch.where(own, odd, phases)
