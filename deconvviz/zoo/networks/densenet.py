"""DenseNet-121, as torchvision builds it: Huang et al., "Densely Connected Convolutional Networks", table 1."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Huang, Liu, van der Maaten & Weinberger, Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993"
)


def densenet121(num_classes: int = 1000) -> nn.Module:
    """Build the network: (N, 3, 224, 224) to (N, num_classes); maps 112, 56, 28, 14 and 7 wide."""
    from torchvision.models.densenet import DenseNet  # the import takes seconds, and most never build one

    return DenseNet(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64, num_classes=num_classes)


_CARD = Card(
    "densenet-121",
    _PAPER,
    reported="25.02 % top-1, 7.71 % top-5 (1 crop); 23.61 and 6.66 % (10 crops), one network, validation",
)
NETWORKS = (Entry(densenet121, _CARD, first="kaiming"),)
