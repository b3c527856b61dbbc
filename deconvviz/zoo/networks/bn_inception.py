"""BN-Inception: Ioffe & Szegedy, "Batch Normalization", ICML 2015, section 4.2 and the table of its appendix (Fig. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Ioffe & Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift, "
    "ICML 2015, arXiv:1502.03167"
)
# Fig. 5: what each module reads, its 1×1, 3×3 reduce, 3×3, double 3×3 reduce, double 3×3, its pool and projection.
_MODULES = {
    "3a": (192, 64, 64, 64, 64, 96, "mean", 32),
    "3b": (256, 64, 64, 96, 64, 96, "mean", 64),
    "3c": (320, 0, 128, 160, 64, 96, "max", 0),
    "4a": (576, 224, 64, 96, 96, 128, "mean", 128),
    "4b": (576, 192, 96, 128, 96, 128, "mean", 128),
    "4c": (576, 160, 128, 160, 128, 160, "mean", 96),
    "4d": (576, 96, 128, 192, 160, 192, "mean", 96),
    "4e": (576, 0, 128, 192, 192, 256, "max", 0),
    "5a": (1024, 352, 192, 320, 160, 224, "mean", 128),
    "5b": (1024, 352, 192, 320, 192, 224, "max", 128),
}


def _convolution(inputs: int, maps: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, maps, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """A 1×1, a 3×3, two 3×3 and a pool side by side; without a 1×1 all have a stride of 2, and the pool no projection."""

    def __init__(
        self, inputs: int, one: int, reduce3: int, three: int, reduce33: int, double: int, pool: str, pooled: int
    ) -> None:
        """Make the branches."""
        super().__init__()
        stride = 1 if one else 2
        self.one = _convolution(inputs, one, 1) if one else None
        self.three = nn.Sequential(_convolution(inputs, reduce3, 1), _convolution(reduce3, three, 3, stride))
        self.twice = nn.Sequential(
            *(
                _convolution(inputs, reduce33, 1),
                _convolution(reduce33, double, 3),
                _convolution(double, double, 3, stride),
            )
        )
        taken: nn.Module = nn.AvgPool2d(3, 1, 1) if pool == "mean" else nn.MaxPool2d(3, stride, 1)
        self.pool = nn.Sequential(taken, _convolution(inputs, pooled, 1)) if pooled else taken

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to the branches' maps side by side."""
        first = [] if self.one is None else [self.one(x)]
        return torch.cat([*first, self.three(x), self.twice(x), self.pool(x)], 1)


class BNInception(nn.Sequential):
    """(N, 3, 224, 224) to (N, num_classes); maps 112, 56, 28, 14 and 7 wide."""

    def __init__(self, num_classes: int = 1000) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Sequential(
            *(_convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(_convolution(64, 64, 1), _convolution(64, 192, 3), nn.MaxPool2d(3, 2, ceil_mode=True)),
        )
        for name, numbers in _MODULES.items():
            setattr(self, f"inception{name}", Inception(*numbers))
        self.avgpool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, num_classes)


_CARD = Card(
    "bn-inception",
    _PAPER,
    (
        "The first convolution is a plain one; the paper's is separable, with a depth multiplier of 8.",
        "In 4c and 4d the pool's projection makes 96 maps: with the figure's 128 they would have 608, not its 576.",
        "Without auxiliary heads; the text counts 13.6 million parameters, the figure's layers make fewer.",
        "The pools of 3c and 4e pad by 1, which gives the figure's 14 and 7 positions.",
        "The input is divided by a deviation per channel; the paper states no preprocessing.",
    ),
    reported="25.2 % top-1, 7.82 % top-5 (one network, 1 crop); 21.99 and 5.82 % (144 crops), validation",
)
NETWORKS = (Entry(BNInception, _CARD, first="kaiming"),)
