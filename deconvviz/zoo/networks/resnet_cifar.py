"""CIFAR networks: plain-N, resnet-N (He et al., "Deep Residual Learning", section 4.2) and preresnet-N."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from ..card import Card
from ..entry import Entry, Family

_RESIDUAL = "He, Zhang, Ren & Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385"
_IDENTITY = "He, Zhang, Ren & Sun, Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027"
_PAPERS = {"plain": _RESIDUAL, "resnet": _RESIDUAL, "preresnet": _IDENTITY}

DEEPEST = 1202
_SHOWN = {"plain": (20, 32, 44, 56, 110)}  # plain nets of 1202 layers are no one's
COMMON = tuple(f"{family}-{n}" for family in _PAPERS for n in _SHOWN.get(family, (20, 32, 44, 56, 110, DEEPEST)))

# Of the 50,000 training images, on the 0–1 scale.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_DEVIATIONS = ("The input has a mean and a standard deviation per channel; the papers subtract a mean per pixel.",)
_EXTENSION = "The paper has this network with 110 or more layers."


def matches(name: str) -> bool:
    """Say whether the name is of the form of these networks, whatever its number."""
    return isinstance(name, str) and re.fullmatch(r"(plain|resnet|preresnet)-?\d+", name) is not None


def card(name: str) -> Card:
    """Return the card of a network that `matches`.

    Raises:
        ModelError: N is not 6n + 2.
    """
    family, layers = _parse(name)
    short = (_EXTENSION,) if family == "preresnet" and layers < 110 else ()
    return Card(name, _PAPERS[family], _DEVIATIONS + short, input_size=(32, 32), resize=32, mean=_MEAN, std=_STD)


def build(name: str, num_classes: int = 10) -> nn.Module:
    """Build the network: (N, 3, 32, 32) to (N, num_classes); maps 32, 16 and 8 wide."""
    family, layers = _parse(name)
    return Net(family, (layers - 2) // 6, num_classes)


def _parse(name: str) -> tuple[str, int]:
    family, dash, digits = name.partition("-")
    number = int(digits) if dash else 0
    if dash and digits == str(number) and 8 <= number <= DEEPEST and number % 6 == 2:
        return family, number
    family = re.sub(r"\W?\d.*", "", name)
    wanted = int(re.sub(r"\D", "", name))
    near = min(range(8, DEEPEST + 1, 6), key=lambda n: abs(n - wanted))
    raise ModelError(
        f"no network named {name!r} in the zoo: {family}-N has N = 6n + 2 layers, from {family}-8 to "
        f"{family}-{DEEPEST}. Did you mean '{family}-{near}'?"
    )


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Shortcut(nn.Module):
    """Option A, without parameters: every `stride`-th row and column, and channels of zeros behind."""

    def __init__(self, missing: int, stride: int) -> None:
        """Add `missing` channels."""
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + missing, H / stride, W / stride)."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x


class Block(nn.Module):
    """Two 3×3 convolutions, each normalized; the shortcut, if any, is added before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: bool) -> None:
        """Take `inputs` channels to `outputs`."""
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(outputs - inputs, stride) if residual else None
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.residual(x)
        return self.relu2(y if self.shortcut is None else y + self.shortcut(x))

    def residual(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of (N, C, H, W), before the sum."""
        return self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))


class PreBlock(nn.Module):
    """The unit of "Identity Mappings": normalization and ReLU come before each convolution, nothing after the sum.

    `first` has no norm of its own: the first unit takes its input activated, on both ways (appendix).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        """Take `inputs` channels to `outputs`."""
        super().__init__()
        self.bn1: nn.Module = nn.Identity() if first else nn.BatchNorm2d(inputs)
        self.relu1: nn.Module = nn.Identity() if first else nn.ReLU(inplace=True)
        self.conv1, self.bn2 = _convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.relu2, self.conv2 = nn.ReLU(inplace=True), _convolution(outputs, outputs)
        self.shortcut = Shortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.conv1(self.relu1(self.bn1(x)))
        return self.conv2(self.relu2(self.bn2(y))) + self.shortcut(x)


class Net(nn.Module):
    """A 3×3 convolution, three stages of blocks with 16, 32 and 64 channels, the mean over space, one matrix.

    Where the blocks normalize first, a norm and a ReLU follow the last sum: `bn2` and `relu2`.
    """

    def __init__(self, family: str, blocks: int, num_classes: int) -> None:
        """Put `blocks` blocks into each stage: 6 blocks + 2 layers."""
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _convolution(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = (
            _stage(family, blocks, i, o) for i, o in ((16, 16), (16, 32), (32, 64))
        )
        self.bn2 = nn.BatchNorm2d(64) if family == "preresnet" else None
        self.relu2 = nn.ReLU(inplace=True) if family == "preresnet" else None
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.relu1(self.bn1(self.conv1(x))))))
        if self.bn2 is not None and self.relu2 is not None:
            x = self.relu2(self.bn2(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(family: str, blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    """Chain blocks; the first takes `inputs` channels to `outputs`, at half the size if these are more."""
    made: list[nn.Module] = []
    for i in range(blocks):
        width, stride = (outputs, 1) if i else (inputs, outputs // inputs)
        if family == "preresnet":
            made.append(PreBlock(width, outputs, stride, first=i == 0 and stride == 1))
        else:
            made.append(Block(width, outputs, stride, residual=family == "resnet"))
    return nn.Sequential(*made)


def _entry(name: str) -> Entry:
    return Entry(functools.partial(build, name), card(name), first="kaiming")


FAMILIES = (Family(matches, _entry, COMMON),)
