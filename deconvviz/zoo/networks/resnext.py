"""ResNeXt-50 (32×4d), as torchvision builds it: Xie et al., "Aggregated Residual Transformations", table 1."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Xie, Girshick, Dollár, Tu & He, Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017, "
    "arXiv:1611.05431"
)


def resnext50(num_classes: int = 1000) -> nn.Module:
    """Build the network: (N, 3, 224, 224) to (N, num_classes); 32 groups of 4 maps in the first stage's blocks."""
    from torchvision.models.resnet import Bottleneck, ResNet  # the import takes seconds, and most never build one

    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, groups=32, width_per_group=4)


_CARD = Card("resnext-50", _PAPER, reported="22.2 % top-1 (one network, 1 crop, validation)")
NETWORKS = (Entry(resnext50, _CARD, first="kaiming"),)
