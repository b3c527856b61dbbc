"""OverFeat, fast and accurate: Sermanet et al., "OverFeat", ICLR 2014, tables 1 and 3."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import classifier, network

_PAPER = (
    "Sermanet, Eigen, Zhang, Mathieu, Fergus & LeCun, OverFeat: Integrated Recognition, Localization and Detection "
    "using Convolutional Networks, ICLR 2014, arXiv:1312.6229"
)


def _convolution(inputs: int, maps: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inputs, maps, kernel, stride, padding), nn.ReLU(inplace=True)]


def fast(num_classes: int = 1000, *, dropout: float = 0.5, hidden: tuple[int, int] = (3072, 4096)) -> nn.Sequential:
    """Build the fast network: (N, 3, 231, 231) to (N, num_classes); maps 56, 28, 24, 12 and 6 wide."""
    features = [
        *(*_convolution(3, 96, 11, stride=4), nn.MaxPool2d(2)),
        *(*_convolution(96, 256, 5), nn.MaxPool2d(2)),
        *_convolution(256, 512, 3, padding=1),
        *_convolution(512, 1024, 3, padding=1),
        *(*_convolution(1024, 1024, 3, padding=1), nn.MaxPool2d(2)),
    ]
    return network(features, classifier(1024 * 6 * 6, hidden, num_classes, dropout))


def accurate(num_classes: int = 1000, *, dropout: float = 0.5, hidden: tuple[int, int] = (4096, 4096)) -> nn.Sequential:
    """Build the accurate network: (N, 3, 221, 221) to (N, num_classes); maps 108, 36, 30, 15 and 5 wide."""
    features = [
        *(*_convolution(3, 96, 7, stride=2), nn.MaxPool2d(3)),
        *(*_convolution(96, 256, 7), nn.MaxPool2d(2)),
        *_convolution(256, 512, 3, padding=1),
        *_convolution(512, 512, 3, padding=1),
        *_convolution(512, 1024, 3, padding=1),
        *(*_convolution(1024, 1024, 3, padding=1), nn.MaxPool2d(3)),
    ]
    return network(features, classifier(1024 * 5 * 5, hidden, num_classes, dropout))


_CARD_FAST = Card(
    "overfeat-fast",
    _PAPER,
    input_size=(231, 231),
    reported=(
        "39.01 % top-1, 16.97 % top-5 at one scale; 38.57 and 16.39 % at four; 38.12 and 16.27 % at six (one network, "
        "fine stride, validation)"
    ),
)
_CARD_ACCURATE = Card(
    "overfeat-accurate",
    _PAPER,
    input_size=(221, 221),
    reported=(
        "35.74 % top-1, 14.18 % top-5 at four scales, fine stride; 35.60 and 14.71 % with 10 crops (one network, "
        "validation)"
    ),
)
NETWORKS = (Entry(fast, _CARD_FAST), Entry(accurate, _CARD_ACCURATE))
