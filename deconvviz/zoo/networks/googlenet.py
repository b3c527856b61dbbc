"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", table 1 and section 5."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = "Szegedy, Liu, Jia et al., Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842"
# Table 1: what each module reads, and its 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5 and pool projection.
_MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
AUXILIARY_WEIGHT = 0.3  # of each head's loss in the sum, section 5


class Outputs(NamedTuple):
    """What the network returns in training mode, where it has heads: scores of the end and of both heads."""

    scores: Tensor
    head4a: Tensor
    head4d: Tensor


def _convolution(inputs: int, maps: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, maps, kernel, stride, kernel // 2), nn.ReLU(inplace=True))


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _norm() -> nn.Module:
    # Torch divides alpha by the size, AlexNet's paper does not: 5e-4 here is its 1e-4.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


class Inception(nn.Module):
    """Four branches side by side: 1×1, 3×3 and 5×5 behind a reduction each, and a projected pool (Fig. 2b)."""

    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int) -> None:
        """Make the branches."""
        super().__init__()
        self.one = _convolution(inputs, one, 1)
        self.three = nn.Sequential(_convolution(inputs, reduce3, 1), _convolution(reduce3, three, 3))
        self.five = nn.Sequential(_convolution(inputs, reduce5, 1), _convolution(reduce5, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _convolution(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, one + three + five + pooled, H, W)."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Head(nn.Sequential):
    """An auxiliary classifier over maps 14 wide, for training alone."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        """Make the layers of section 5."""
        super().__init__(
            *(nn.AvgPool2d(5, 3), _convolution(inputs, 128, 1), nn.Flatten()),
            *(nn.Linear(128 * 4 * 4, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(1024, num_classes)),
        )


class GoogLeNet(nn.Module):
    """(N, 3, 224, 224) to (N, num_classes); maps 112, 56, 28, 14 and 7 wide. In training mode, `Outputs`."""

    def __init__(self, num_classes: int = 1000, *, dropout: float = 0.4, heads: bool = True) -> None:
        """Make the layers; without `heads` training has one output as well."""
        super().__init__()
        self.stem = nn.Sequential(
            *(_convolution(3, 64, 7, 2), _pool(), _norm()),
            *(_convolution(64, 64, 1), _convolution(64, 192, 3), _norm(), _pool()),
        )
        for name, numbers in _MODULES.items():
            setattr(self, f"inception{name}", Inception(*numbers))
        self.pool3, self.pool4 = _pool(), _pool()
        self.head4a = Head(512, num_classes) if heads else None
        self.head4d = Head(528, num_classes) if heads else None
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(1024, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Map (N, 3, H, W) to (N, num_classes)."""
        x, heads = self.stem(x), []
        for name in _MODULES:
            x = getattr(self, f"inception{name}")(x)
            if name in ("3b", "4e"):
                x = self.pool3(x) if name == "3b" else self.pool4(x)
            if self.training and (head := getattr(self, f"head{name}", None)) is not None:
                heads.append(head(x))
        scores = self.classifier(x)
        return Outputs(scores, *heads) if heads else scores


_CARD = Card(
    "googlenet",
    _PAPER,
    (
        "The response norms have AlexNet's constants; the paper states none.",
        "The input is divided by a deviation per channel; the paper subtracts a mean alone.",
    ),
    reported="10.07 % top-5 (one network, 1 crop), 9.15 % (10 crops), 7.89 % (144 crops), validation",
)
NETWORKS = (Entry(GoogLeNet, _CARD, first="kaiming"),)
