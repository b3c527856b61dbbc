"""Inception-v4, Inception-ResNet-v1 and -v2: Szegedy, Ioffe, Vanhoucke & Alemi, 2016; the first and last as timm's."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..card import Card
from ..entry import Entry

_PAPER = (
    "Szegedy, Ioffe, Vanhoucke & Alemi, Inception-v4, Inception-ResNet and the Impact of Residual Connections on "
    "Learning, AAAI 2017, arXiv:1602.07261"
)


def of_timm(name: str, num_classes: int = 1000, *, dropout: float = 0.2) -> nn.Module:
    """Build timm's network: (N, 3, 299, 299) to (N, num_classes); maps 149, 73, 35, 17 and 8 wide."""
    try:
        import timm  # takes seconds, and most never build one
    except ImportError as error:
        raise ModelError(
            f'{name} needs the package timm, which is not installed: pip install "deconvviz[zoo]".'
        ) from error
    return timm.create_model(name, pretrained=False, num_classes=num_classes, drop_rate=dropout)


def _convolution(
    inputs: int, maps: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True
) -> nn.Module:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2) if same else 0
    convolution = nn.Conv2d(inputs, maps, sides, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps, eps=0.001), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Branches side by side, a linear 1×1 to the input's maps, scaled down and added to the input (Fig. 20)."""

    def __init__(self, maps: int, branches: list[nn.Module], joined: int, scale: float) -> None:
        """Take the branches, which make `joined` maps in all."""
        super().__init__()
        self.branches, self.up = nn.ModuleList(branches), nn.Conv2d(joined, maps, 1)
        self.scale, self.relu = scale, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, maps, H, W) to the same."""
        return self.relu(x + self.scale * self.up(torch.cat([branch(x) for branch in self.branches], 1)))


class Reduction(nn.Module):
    """Branches that halve the map, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        """Take the branches beside a max-pool."""
        super().__init__()
        self.branches = nn.ModuleList((nn.MaxPool2d(3, 2), *branches))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the branches' maps."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _a(scale: float) -> Residual:
    first = _convolution(256, 32, 1)
    second = nn.Sequential(_convolution(256, 32, 1), _convolution(32, 32, 3))
    third = nn.Sequential(_convolution(256, 32, 1), _convolution(32, 32, 3), _convolution(32, 32, 3))
    return Residual(256, [first, second, third], 96, scale)


def _b(scale: float) -> Residual:
    long = nn.Sequential(_convolution(896, 128, 1), _convolution(128, 128, (1, 7)), _convolution(128, 128, (7, 1)))
    return Residual(896, [_convolution(896, 128, 1), long], 256, scale)


def _c(scale: float) -> Residual:
    long = nn.Sequential(_convolution(1792, 192, 1), _convolution(192, 192, (1, 3)), _convolution(192, 192, (3, 1)))
    return Residual(1792, [_convolution(1792, 192, 1), long], 384, scale)


class InceptionResNetV1(nn.Sequential):
    """(N, 3, 299, 299) to (N, num_classes); maps 149, 73, 35, 17 and 8 wide."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        dropout: float = 0.2,
        scales: tuple[float, float, float] = (0.17, 0.1, 0.2),
        blocks: tuple[int, int, int] = (5, 10, 5),
    ) -> None:
        """Make the layers; `scales` are the residuals' factors in the three stages, `blocks` their numbers."""
        super().__init__()
        self.stem = nn.Sequential(
            *(_convolution(3, 32, 3, 2, False), _convolution(32, 32, 3, 1, False), _convolution(32, 64, 3)),
            *(nn.MaxPool2d(3, 2), _convolution(64, 80, 1)),
            *(_convolution(80, 192, 3, 1, False), _convolution(192, 256, 3, 2, False)),
        )
        self.a = nn.Sequential(*(_a(scales[0]) for _ in range(blocks[0])))
        self.reduction_a = Reduction(
            _convolution(256, 384, 3, 2, False),
            nn.Sequential(
                *(_convolution(256, 192, 1), _convolution(192, 192, 3), _convolution(192, 256, 3, 2, False)),
            ),
        )
        self.b = nn.Sequential(*(_b(scales[1]) for _ in range(blocks[1])))
        self.reduction_b = Reduction(
            nn.Sequential(_convolution(896, 256, 1), _convolution(256, 384, 3, 2, False)),
            nn.Sequential(_convolution(896, 256, 1), _convolution(256, 256, 3, 2, False)),
            nn.Sequential(
                *(_convolution(896, 256, 1), _convolution(256, 256, 3), _convolution(256, 256, 3, 2, False)),
            ),
        )
        self.c = nn.Sequential(*(_c(scales[2]) for _ in range(blocks[2])))
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(1792, num_classes)


def _card(name: str, deviation: str, reported: str) -> Card:
    return Card(
        name,
        _PAPER,
        (deviation,),
        input_size=(299, 299),
        resize=342,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        reported=f"{reported}, one network, validation images that are not blacklisted",
    )


_RELEASED = "The authors' released network, as timm builds it; its constants are of the release, not the paper's."
_SCALES = "The residuals are scaled by 0.17, 0.1 and 0.2, as the authors released them; the paper says 0.1 to 0.3."
NETWORKS = (
    Entry(
        functools.partial(of_timm, "inception_v4"),
        _card("inception-v4", _RELEASED, "20.0 % top-1, 5.0 % top-5 (1 crop)"),
        first="kaiming",
    ),
    Entry(
        InceptionResNetV1,
        _card("inception-resnet-v1", _SCALES, "21.3 % top-1, 5.5 % top-5 (1 crop)"),
        first="kaiming",
    ),
    Entry(
        functools.partial(of_timm, "inception_resnet_v2"),
        _card(
            "inception-resnet-v2",
            f"{_RELEASED[:-1]}: a 1×1 convolution to 1,536 maps stands before the mean.",
            "19.9 % top-1, 4.9 % top-5 (1 crop)",
        ),
        first="kaiming",
    ),
)
