"""Network in Network: Lin, Chen & Yan, ICLR 2014: micro networks of 1×1 convolutions, a mean in place of matrices."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry

_PAPER = "Lin, Chen & Yan, Network In Network, ICLR 2014, arXiv:1312.4400"


def _mlpconv(
    inputs: int, maps: tuple[int, int, int], kernel: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Return a convolution and two 1×1 convolutions, each with its ReLU."""
    first, second, third = maps
    return [
        *(nn.Conv2d(inputs, first, kernel, stride, padding), nn.ReLU(inplace=True)),
        *(nn.Conv2d(first, second, 1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(second, third, 1), nn.ReLU(inplace=True)),
    ]


def _pool(dropout: float) -> list[nn.Module]:
    return [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)]


def nin(num_classes: int = 1000, *, dropout: float = 0.5) -> nn.Sequential:
    """Build the network for ImageNet: (N, 3, 224, 224) to (N, num_classes); maps 54, 27, 13 and 6 wide."""
    return nn.Sequential(
        *_mlpconv(3, (96, 96, 96), 11, stride=4),
        *_pool(0.0)[:1],
        *_mlpconv(96, (256, 256, 256), 5, padding=2),
        *_pool(0.0)[:1],
        *_mlpconv(256, (384, 384, 384), 3, padding=1),
        *_pool(dropout),
        *_mlpconv(384, (1024, 1024, num_classes), 3, padding=1),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def nin_cifar(num_classes: int = 10, *, dropout: float = 0.5) -> nn.Sequential:
    """Build the network for CIFAR: (N, 3, 32, 32) to (N, num_classes); maps 32, 16 and 8 wide."""
    return nn.Sequential(
        *_mlpconv(3, (192, 160, 96), 5, padding=2),
        *_pool(dropout),
        *_mlpconv(96, (192, 192, 192), 5, padding=2),
        *_pool(dropout),
        *_mlpconv(192, (192, 192, num_classes), 3, padding=1),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


_SIZES = "The paper states no sizes; these are those of the authors' Caffe definition."
_CARD = Card("nin", _PAPER, (_SIZES, "The paper has no network for ImageNet; its authors published this one."))
_CARD_CIFAR = Card(
    "nin-cifar",
    _PAPER,
    (
        _SIZES,
        "All pools take the maximum; the Caffe definition's second takes the mean.",
        "The input has a mean and a deviation per channel; the paper normalizes contrast and whitens.",
    ),
    input_size=(32, 32),
    resize=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    reported="10.41 % on CIFAR-10, 8.81 % with shifted and mirrored images, both with dropout",
)
NETWORKS = (Entry(nin, _CARD, first="kaiming"), Entry(nin_cifar, _CARD_CIFAR, first="kaiming"))
