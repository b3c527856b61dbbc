"""ZFNet: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4 and Fig. 3."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import SMALL_DEVIATIONS, classifier, network

PAPER = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv:1311.2901"


def _norm() -> nn.Module:
    # Torch divides alpha by the size, the papers do not: 5e-4 here is their 1e-4.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def zfnet(num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096) -> nn.Sequential:
    """Build the paper's network: (N, 3, 224, 224) to (N, num_classes); maps 110, 55, 26, 13 and 6 wide."""
    return _zfnet((384, 384, 256), num_classes, dropout, hidden)


def zfnet_wide(num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096) -> nn.Sequential:
    """Build the network of section 5.1 that did best: layers 3, 4 and 5 have 512, 1024 and 512 maps."""
    return _zfnet((512, 1024, 512), num_classes, dropout, hidden)


def _zfnet(maps: tuple[int, int, int], num_classes: int, dropout: float, hidden: int) -> nn.Sequential:
    third, fourth, fifth = maps
    features = [
        *(nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True), _pool(), _norm()),
        *(nn.Conv2d(96, 256, 5, stride=2), nn.ReLU(inplace=True), _pool(), _norm()),
        *(nn.Conv2d(256, third, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(inplace=True), _pool()),
    ]
    return network(features, classifier(fifth * 6 * 6, (hidden, hidden), num_classes, dropout))


def zfnet64(num_classes: int = 200, *, dropout: float = 0.5) -> nn.Sequential:
    """Build ZFNet for small images: (N, 3, 64, 64) to (N, num_classes); maps 32, 16, 8, 4 and 2 wide."""
    features = [
        *(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.ReLU(inplace=True), _pool()),
        *(nn.Conv2d(64, 160, 5, stride=2, padding=2), nn.ReLU(inplace=True), _pool()),
        *(nn.Conv2d(160, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(inplace=True), _pool()),
    ]
    return network(features, classifier(192 * 2 * 2, (512,), num_classes, dropout))


_DEVIATIONS = (
    "The first convolution pads by 1 for the 110-pixel map of Fig. 3; the paper states no padding.",
    "The response norm follows the pool, with AlexNet's constants; the paper states none.",
)
_CARD = Card("zfnet", PAPER, _DEVIATIONS, reported="38.4 % top-1, 16.5 % top-5 (one network, 10 crops, validation)")
_CARD_WIDE = Card(
    "zfnet-wide", PAPER, _DEVIATIONS, reported="37.5 % top-1, 16.0 % top-5 (one network, 10 crops, validation)"
)
_CARD64 = Card("zfnet64", PAPER, SMALL_DEVIATIONS, input_size=(64, 64), resize=64)
NETWORKS = (Entry(zfnet, _CARD), Entry(zfnet_wide, _CARD_WIDE), Entry(zfnet64, _CARD64))
