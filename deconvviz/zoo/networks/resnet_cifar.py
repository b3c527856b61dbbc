"""CIFAR networks: plain-N, resnet-N (He et al., "Deep Residual Learning", section 4.2) and preresnet-N."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError, OptionError
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
# "Identity Mappings", Figs. 2 and 4, (a) first: what stands on the shortcut, and where norms and ReLUs stand.
SHORTCUTS = ("identity", "scaled", "exclusive gate", "shortcut gate", "convolution", "dropout")
ORDERS = ("original", "norm after addition", "relu before addition", "relu first", "norm first")
# Errors in table 6 of the first paper and table 2 of the second.
_REPORTED = {
    "resnet-20": "8.75 % on CIFAR-10",
    "resnet-32": "7.51 % on CIFAR-10",
    "resnet-44": "7.17 % on CIFAR-10",
    "resnet-56": "6.97 % on CIFAR-10",
    "resnet-110": "6.43 % on CIFAR-10, the best of five; 6.61 % in the mean",
    "resnet-1202": "7.93 % on CIFAR-10",
    "preresnet-110": "6.37 % on CIFAR-10",
}


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
    return Card(
        name,
        _PAPERS[family],
        _DEVIATIONS + short,
        input_size=(32, 32),
        resize=32,
        mean=_MEAN,
        std=_STD,
        reported=_REPORTED.get(name, ""),
    )


def build(name: str, num_classes: int = 10, *, shortcut: str = "identity", order: str = "original") -> nn.Module:
    """Build the network: (N, 3, 32, 32) to (N, num_classes); maps 32, 16 and 8 wide.

    A resnet-N may have another of "Identity Mappings"' `SHORTCUTS` or `ORDERS`; "norm first" makes it preresnet-N.
    """
    family, layers = _parse(name)
    for what, given, known in (("shortcut", shortcut, SHORTCUTS), ("order", order, ORDERS)):
        if given not in known:
            raise OptionError(f"{what}={given!r}: expected one of {', '.join(map(repr, known))}.")
    if (shortcut, order) != ("identity", "original"):
        if family != "resnet":
            raise OptionError(f"{name} has one shortcut and order: give them to resnet-{layers}.")
        if "identity" != shortcut and order != "original":
            raise OptionError(f"shortcut={shortcut!r} and order={order!r}: the paper changes one at a time.")
        family = "preresnet" if order == "norm first" else family
    return Net(family, (layers - 2) // 6, num_classes, shortcut, order)


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


class Unit(nn.Module):
    """The other units of "Identity Mappings": another shortcut in Fig. 2 (b) to (f), another order in Fig. 4 (b) to (d).

    A gate is the sigmoid of a 1×1 convolution whose bias starts at -6, where the paper's do best.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, order: str, first: bool) -> None:
        """Take `inputs` channels to `outputs`; the `first` unit takes its input activated."""
        super().__init__()
        self.kind, self.order = shortcut, order
        begins = order == "relu first" and not first
        self.relu0: nn.Module = nn.ReLU() if begins else nn.Identity()  # its input goes on beside: not in place
        self.conv1, self.bn1 = _convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        projected = shortcut == "convolution"
        self.shortcut: nn.Module = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projected else Shortcut(outputs - inputs, stride)
        )
        self.gate = nn.Conv2d(inputs, outputs, 1, stride) if "gate" in shortcut else None
        self.dropout = nn.Dropout(0.5 if shortcut == "dropout" else 0.0)
        self.relu2: nn.Module = nn.Identity() if order == "relu first" else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        y, beside = self.conv2(self.relu1(self.bn1(self.conv1(self.relu0(x))))), self.dropout(self.shortcut(x))
        if self.order == "norm after addition":
            return self.relu2(self.bn2(y + beside))
        y = self.bn2(y)
        if self.order == "relu before addition":
            return self.relu2(y) + beside
        if self.kind == "scaled":
            y, beside = 0.5 * y, 0.5 * beside
        elif self.gate is not None:
            gate = torch.sigmoid(self.gate(x) - 6)
            y, beside = y * gate if self.kind == "exclusive gate" else y, beside * (1 - gate)
        return self.relu2(y + beside)


class Net(nn.Module):
    """A 3×3 convolution, three stages of blocks with 16, 32 and 64 channels, the mean over space, one matrix.

    Where the blocks normalize or rectify first, a norm and a ReLU follow the last sum: `bn2` and `relu2`.
    """

    def __init__(
        self, family: str, blocks: int, num_classes: int, shortcut: str = "identity", order: str = "original"
    ) -> None:
        """Put `blocks` blocks into each stage: 6 blocks + 2 layers."""
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _convolution(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = (
            _stage(family, blocks, i, o, shortcut, order) for i, o in ((16, 16), (16, 32), (32, 64))
        )
        self.bn2 = nn.BatchNorm2d(64) if family == "preresnet" else None
        self.relu2 = nn.ReLU(inplace=True) if family == "preresnet" or order == "relu first" else None
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.relu1(self.bn1(self.conv1(x))))))
        x = x if self.bn2 is None else self.bn2(x)
        x = x if self.relu2 is None else self.relu2(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(family: str, blocks: int, inputs: int, outputs: int, shortcut: str, order: str) -> nn.Sequential:
    """Chain blocks; the first takes `inputs` channels to `outputs`, at half the size if these are more."""
    made: list[nn.Module] = []
    for i in range(blocks):
        width, stride = (outputs, 1) if i else (inputs, outputs // inputs)
        if family == "preresnet":
            made.append(PreBlock(width, outputs, stride, first=i == 0 and stride == 1))
        elif (shortcut, order) != ("identity", "original"):
            made.append(Unit(width, outputs, stride, shortcut, order, first=i == 0 and stride == 1))
        else:
            made.append(Block(width, outputs, stride, residual=family == "resnet"))
    return nn.Sequential(*made)


def _entry(name: str) -> Entry:
    return Entry(functools.partial(build, name), card(name), first="kaiming")


FAMILIES = (Family(matches, _entry, COMMON),)
