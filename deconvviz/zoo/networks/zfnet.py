"""ZFNet: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4 and Fig. 3."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import SMALL_DEVIATIONS, activations, classifier, network, pool, response_norm

PAPER = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv:1311.2901"


def zfnet(num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096) -> nn.Sequential:
    """Build the paper's network: (N, 3, 224, 224) to (N, num_classes); maps 110, 55, 26, 13 and 6 wide."""
    return _zfnet((384, 384, 256), num_classes, dropout, hidden)


def zfnet_wide(num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096) -> nn.Sequential:
    """Build the network of section 5.1 that did best: layers 3, 4 and 5 have 512, 1024 and 512 maps."""
    return _zfnet((512, 1024, 512), num_classes, dropout, hidden)


def _zfnet(maps: tuple[int, int, int], num_classes: int, dropout: float, hidden: int) -> nn.Sequential:
    third, fourth, fifth = maps
    features = [
        *(nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True), pool(True), response_norm()),
        *(nn.Conv2d(96, 256, 5, stride=2), nn.ReLU(inplace=True), pool(True), response_norm()),
        *(nn.Conv2d(256, third, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(inplace=True), pool(True)),
    ]
    return network(features, classifier(fifth * 6 * 6, (hidden, hidden), num_classes, dropout))


def zfnet64(
    num_classes: int = 200,
    *,
    dropout: float = 0.5,
    activation: str = "relu",
    overlap: bool = True,
    norm: bool = False,
) -> nn.Sequential:
    """Build ZFNet for small images: (N, 3, 64, 64) to (N, num_classes); maps 32, 16, 8, 4 and 2 wide.

    To take its ingredients one at a time: another `activation` ("tanh", "sigmoid"), pools that do not `overlap`,
    a response `norm` after the first two of them.
    """
    act = activations(activation)

    def normed() -> nn.Module:  # one module either way: the others keep their numbers
        return nn.Sequential(pool(overlap), response_norm()) if norm else pool(overlap)

    features = [
        *(nn.Conv2d(3, 64, 7, stride=2, padding=3), act(), normed()),
        *(nn.Conv2d(64, 160, 5, stride=2, padding=2), act(), normed()),
        *(nn.Conv2d(160, 256, 3, padding=1), act()),
        *(nn.Conv2d(256, 256, 3, padding=1), act()),
        *(nn.Conv2d(256, 192, 3, padding=1), act(), pool(overlap)),
    ]
    return network(features, classifier(192 * 2 * 2, (512,), num_classes, dropout, act))


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
