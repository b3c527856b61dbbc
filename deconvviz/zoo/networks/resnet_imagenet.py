"""Plain and residual networks for ImageNet: He et al., "Deep Residual Learning for Image Recognition", table 1."""

from __future__ import annotations

import functools

from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = "He, Zhang, Ren & Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385"
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Tables 2 and 3, one network, 10 crops, validation: top-1 and, where given, top-5.
_REPORTED = {
    "plain-18": "27.94 % top-1",
    "plain-34": "28.54 % top-1, 10.02 % top-5",
    "resnet-18": "27.88 % top-1 with identity shortcuts, option A",
    "resnet-34": "24.52 % top-1, 7.46 % top-5",
    "resnet-50": "22.85 % top-1, 6.71 % top-5",
    "resnet-101": "21.75 % top-1, 6.05 % top-5",
    "resnet-152": "21.43 % top-1, 5.71 % top-5",
}


class PlainBlock(nn.Module):
    """The two convolutions of a basic block, and nothing beside them; made as torchvision makes its own."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1, *_: object, **__: object) -> None:
        """Make the block, without the shortcut that is handed in behind."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, planes, H / stride, W / stride)."""
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def residual(layers: int, num_classes: int = 1000) -> nn.Module:
    """Build torchvision's network with the paper's stride: in a bottleneck, at its first 1×1."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # the import takes seconds

    model = ResNet(BasicBlock if layers < 50 else Bottleneck, list(_BLOCKS[layers]), num_classes)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


def plain(layers: int, num_classes: int = 1000) -> nn.Module:
    """Build the same layers without shortcuts."""
    from torchvision.models.resnet import ResNet

    return ResNet(PlainBlock, list(_BLOCKS[layers]), num_classes)


def _entry(family: str, layers: int) -> Entry:
    name = f"{family}-{layers}"
    deviations: tuple[str, ...] = (
        "The input is divided by a deviation per channel; the paper subtracts a mean per pixel.",
    )
    if family == "resnet":
        deviations += ("Shortcuts that change the size are projections, the paper's option B.",)
    build = functools.partial(residual if family == "resnet" else plain, layers)
    reported = f"{_REPORTED[name]} (one network, 10 crops, validation)"
    return Entry(build, Card(f"imagenet-{name}", _PAPER, deviations, reported=reported), first="kaiming")


NETWORKS = (*(_entry("plain", n) for n in (18, 34)), *(_entry("resnet", n) for n in _BLOCKS))
