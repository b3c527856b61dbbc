"""SPPnet: He, Zhang, Ren & Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks", sections 2 and 3: ZF-5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..card import Card
from ..entry import Entry
from ..parts import classifier, network

_PAPER = (
    "He, Zhang, Ren & Sun, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, ECCV 2014, "
    "arXiv:1406.4729"
)


class Pyramid(nn.Module):
    """The maximum in each cell of grids over a map of any size, one grid for each of `levels`."""

    def __init__(self, levels: Sequence[int]) -> None:
        """Make a pool for each level, n×n cells."""
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(level) for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C × cells)."""
        return torch.cat([torch.flatten(pool(x), 1) for pool in self.pools], 1)


def sppnet(
    num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096, levels: Sequence[int] = (6, 3, 2, 1)
) -> nn.Module:
    """Build ZF-5 with a pyramid: (N, 3, H, W) of any size to (N, num_classes); maps 110, 55, 27 and 13 wide at 224."""

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides alpha by the size

    features = [
        *(nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(3, 2, padding=1), norm()),
        *(nn.Conv2d(96, 256, 5, stride=2, padding=1), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(3, 2), norm()),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
    ]
    cells = sum(level * level for level in levels)
    head = classifier(256 * cells, (hidden, hidden), num_classes, dropout)[1:]  # the pyramid flattens
    return network(features, [Pyramid(levels), *head])


_CARD = Card(
    "sppnet",
    _PAPER,
    (
        "The paper's pyramid pools windows of rounded sizes; here the cells divide the map as evenly as they can.",
        "The paddings are those that give the 13-pixel map of its table 1.",
    ),
    reported=(
        "34.98 % top-1, 14.14 % top-5 (trained at one size, 10 crops, validation); without the pyramid 35.99 and 14.76 %"
    ),
)
NETWORKS = (Entry(sppnet, _CARD),)
