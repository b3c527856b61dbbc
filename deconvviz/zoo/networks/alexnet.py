"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep CNNs", NIPS 2012, section 3."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import SMALL_DEVIATIONS, activations, classifier, network, pool, response_norm

PAPER = "Krizhevsky, Sutskever & Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012"

# Section 5: the biases of the second, fourth and fifth convolution and of the hidden layers start at 1.
_BIAS_ONE = ("features.4", "features.10", "features.12", "classifier.2", "classifier.5")
_BIAS_ONE64 = ("features.3", "features.8", "features.10", "classifier.2")


def alexnet(
    num_classes: int = 1000,
    *,
    dropout: float = 0.5,
    hidden: int = 4096,
    activation: str = "relu",
    overlap: bool = True,
    norm: bool = True,
) -> nn.Sequential:
    """Build the paper's network: (N, 3, 227, 227) to (N, num_classes); maps 55, 27, 13 and 6 wide.

    To take its ingredients one at a time: another `activation` ("tanh", "sigmoid"), pools that do not `overlap`,
    no response `norm`.
    """
    act = activations(activation)

    def pooled() -> nn.Module:
        return nn.MaxPool2d(3, 2) if overlap else nn.MaxPool2d(2, 2)

    def normed() -> nn.Module:  # one module either way: the others keep their numbers
        return response_norm() if norm else nn.Identity()

    features = [
        *(nn.Conv2d(3, 96, 11, stride=4), act(), normed(), pooled()),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), act(), normed(), pooled()),
        *(nn.Conv2d(256, 384, 3, padding=1), act()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), act()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), act(), pooled()),
    ]
    return network(features, classifier(256 * 6 * 6, (hidden, hidden), num_classes, dropout, act))


def alexnet64(
    num_classes: int = 200,
    *,
    dropout: float = 0.5,
    activation: str = "relu",
    overlap: bool = True,
    norm: bool = False,
) -> nn.Sequential:
    """Build AlexNet for small images: (N, 3, 64, 64) to (N, num_classes); maps 16, 8, 4 and 2 wide.

    To take its ingredients one at a time: another `activation` ("tanh", "sigmoid"), pools that do not `overlap`,
    a response `norm` before the first two of them.
    """
    act = activations(activation)

    def normed() -> nn.Module:  # one module either way: the others keep their numbers
        return nn.Sequential(response_norm(), pool(overlap)) if norm else pool(overlap)

    features = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=5), act(), normed()),
        *(nn.Conv2d(64, 160, 5, padding=2, groups=2), act(), normed()),
        *(nn.Conv2d(160, 256, 3, padding=1), act()),
        *(nn.Conv2d(256, 256, 3, padding=1, groups=2), act()),
        *(nn.Conv2d(256, 192, 3, padding=1, groups=2), act(), pool(overlap)),
    ]
    return network(features, classifier(192 * 2 * 2, (512,), num_classes, dropout, act))


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
