"""Small random moves of the image at each step, so that what is found does not hang on single pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError


@dataclass(frozen=True)
class Robustness:
    """How far an image is moved, grown and turned at each step; zero switches a move off.

    Example:
        >>> Robustness(rotation=0).move(torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 64, 64])

    Attributes:
        jitter: the largest shift, as a share of the side.
        scale: the largest growth and shrinkage, as a share.
        rotation: the largest angle in degrees.
        padding: whether a move brings in gray from beyond the border; False brings in the image's own mirror image.

    Source: Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017.
    """

    jitter: float = 0.04
    scale: float = 0.1
    rotation: float = 10.0
    padding: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        limits = {"jitter": 0.5, "scale": 0.9, "rotation": 180.0}
        for name, most in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise OptionError(f"{name}={value!r}: expected a number from 0 (off) to {most:g}.")

    def move(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Return images (B, C, H, W) all moved in one random way."""
        across, down, grow, turn = (torch.rand(4, generator=random) * 2 - 1).tolist()
        if not (self.jitter or self.scale or self.rotation):
            return images
        height, width = images.shape[-2:]
        size, angle = 1 / (1 + grow * self.scale), math.radians(turn * self.rotation)
        cos, sin = math.cos(angle) * size, math.sin(angle) * size
        theta = torch.tensor(
            [
                [cos, -sin * height / width, 2 * across * self.jitter],
                [sin * width / height, cos, 2 * down * self.jitter],
            ],
            device=images.device,
        )
        grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
        grid = grid.expand(len(images), -1, -1, -1)
        if not self.padding:
            return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return F.grid_sample(images - 0.5, grid, padding_mode="zeros", align_corners=False) + 0.5


NONE = Robustness(0, 0, 0)


def read(robust: bool | Robustness) -> Robustness:
    """Make sense of `robust=`: True for the usual moves, False for none, or a `Robustness`."""
    if isinstance(robust, Robustness):
        return robust
    if isinstance(robust, bool):
        return Robustness() if robust else NONE
    raise OptionError(f"robust={robust!r}: expected True, False or a Robustness(jitter=…, scale=…, rotation=…).")
