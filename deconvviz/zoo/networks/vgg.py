"""VGG A to E: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1."""

from __future__ import annotations

import functools

from torch import nn

from ..card import Card
from ..entry import Entry
from ..parts import classifier, network

_PAPER = (
    "Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, "
    "arXiv:1409.1556"
)
# The convolutions before each of the five pools; a 1 is a 1×1, an L a response norm behind the one before it.
_COLUMNS = {
    "a": ("3", "3", "33", "33", "33"),
    "a-lrn": ("3L", "3", "33", "33", "33"),
    "b": ("33", "33", "33", "33", "33"),
    "c": ("33", "33", "331", "331", "331"),
    "d": ("33", "33", "333", "333", "333"),
    "e": ("33", "33", "3333", "3333", "3333"),
}
_MAPS = (64, 128, 256, 512, 512)
# Table 3: one network at one scale, its validation images' shorter side as it does best.
_REPORTED = {
    "a": "29.6 % top-1, 10.4 % top-5 (side 256)",
    "a-lrn": "29.7 % top-1, 10.5 % top-5 (side 256)",
    "b": "28.7 % top-1, 9.9 % top-5 (side 256)",
    "c": "27.3 % top-1, 8.8 % top-5 (side 384, trained on 256 to 512)",
    "d": "25.6 % top-1, 8.1 % top-5 (side 384, trained on 256 to 512)",
    "e": "25.5 % top-1, 8.0 % top-5 (side 384, trained on 256 to 512)",
}


def vgg(
    column: str, num_classes: int = 1000, *, dropout: float = 0.5, size: int = 224, hidden: int = 4096
) -> nn.Sequential:
    """Build a column of the table: (N, 3, size, size) to (N, num_classes); maps 1, 1/2, 1/4, 1/8 and 1/16 of the size."""
    features: list[nn.Module] = []
    inputs = 3
    for kinds, maps in zip(_COLUMNS[column], _MAPS, strict=True):
        for kind in kinds:
            if kind == "L":
                # Torch divides alpha by the size, the papers do not: 5e-4 here is their 1e-4.
                features.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
            else:
                features += [nn.Conv2d(inputs, maps, int(kind), padding=int(kind) // 2), nn.ReLU(inplace=True)]
                inputs = maps
        features.append(nn.MaxPool2d(2))
    return network(features, classifier(512 * (size // 32) ** 2, (hidden, hidden), num_classes, dropout))


def _card(column: str) -> Card:
    scaled = "The input is divided by a deviation per channel; the paper subtracts a mean alone."
    reported = f"{_REPORTED[column]}; one network, dense, validation"
    return Card(f"vgg-{column}", _PAPER, (scaled,), reported=reported)


NETWORKS = tuple(Entry(functools.partial(vgg, column), _card(column)) for column in _COLUMNS)
