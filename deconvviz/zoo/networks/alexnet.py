"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep CNNs", NIPS 2012, section 3."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import SMALL_DEVIATIONS, classifier, network

PAPER = "Krizhevsky, Sutskever & Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012"

# Section 5: the biases of the second, fourth and fifth convolution and of the hidden layers start at 1.
_BIAS_ONE = ("features.4", "features.10", "features.12", "classifier.2", "classifier.5")
_BIAS_ONE64 = ("features.3", "features.8", "features.10", "classifier.2")


def _norm() -> nn.Module:
    # Torch divides alpha by the size, the paper does not: 5e-4 here is its 1e-4.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def alexnet(num_classes: int = 1000, *, dropout: float = 0.5, hidden: int = 4096) -> nn.Sequential:
    """Build the paper's network: (N, 3, 227, 227) to (N, num_classes); maps 55, 27, 13 and 6 wide."""
    features = [
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), _norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), _norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    ]
    return network(features, classifier(256 * 6 * 6, (hidden, hidden), num_classes, dropout))


def alexnet64(num_classes: int = 200, *, dropout: float = 0.5) -> nn.Sequential:
    """Build AlexNet for small images: (N, 3, 64, 64) to (N, num_classes); maps 16, 8, 4 and 2 wide."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    features = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=5), nn.ReLU(inplace=True), pool()),
        *(nn.Conv2d(64, 160, 5, padding=2, groups=2), nn.ReLU(inplace=True), pool()),
        *(nn.Conv2d(160, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 192, 3, padding=1, groups=2), nn.ReLU(inplace=True), pool()),
    ]
    return network(features, classifier(192 * 2 * 2, (512,), num_classes, dropout))


_CARD = Card(
    "alexnet",
    PAPER,
    (
        "Input of 227 pixels: the paper's 224 does not give its 55 positions.",
        "One device: the two halves of the grouped convolutions are one module with groups=2.",
    ),
    input_size=(227, 227),
    reported="40.7 % top-1, 18.2 % top-5 (one network, 10 crops, validation)",
)
_CARD64 = Card("alexnet64", PAPER, SMALL_DEVIATIONS, input_size=(64, 64), resize=64)
NETWORKS = (Entry(alexnet, _CARD, _BIAS_ONE), Entry(alexnet64, _CARD64, _BIAS_ONE64))
