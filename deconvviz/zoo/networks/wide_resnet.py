"""Wide ResNet 28-10: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, table 1."""

from __future__ import annotations

from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = "Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146"


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3×3 convolutions, dropout between them, a 1×1 where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        """Take `inputs` channels to `outputs`."""
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.relu2, self.dropout = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = self.relu1(self.bn1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        return beside + self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))


def wide_resnet(num_classes: int = 10, *, dropout: float = 0.0, depth: int = 28, widen: int = 10) -> nn.Sequential:
    """Build WRN-depth-widen: (N, 3, 32, 32) to (N, num_classes); maps 32, 16 and 8 wide; depth is 6n + 4."""
    blocks, inputs = (depth - 4) // 6, 16
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for maps, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        stage = [WideBlock(maps if n else inputs, maps, 1 if n else stride, dropout) for n in range(blocks)]
        layers.append(nn.Sequential(*stage))
        inputs = maps
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


_CARD = Card(
    "wide-resnet-28-10",
    _PAPER,
    input_size=(32, 32),
    resize=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    reported="4.00 % on CIFAR-10, 3.89 % with a dropout of 0.3",
)
NETWORKS = (Entry(wide_resnet, _CARD, first="kaiming"),)
