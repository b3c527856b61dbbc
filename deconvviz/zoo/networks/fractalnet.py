"""FractalNet for CIFAR: Larsson, Maire & Shakhnarovich, "FractalNet", ICLR 2017, sections 2 to 4."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Larsson, Maire & Shakhnarovich, FractalNet: Ultra-Deep Neural Networks without Residuals, ICLR 2017, "
    "arXiv:1605.07648"
)
_MAPS = (64, 128, 256, 512, 512)
_DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4)
_GLOBAL = 0.5  # share of the training steps in which one column alone is kept


class Fractal(nn.Module):
    """Columns of 1, 2, 4, … convolutions over one input; where several end, their mean goes on in each.

    In training, `forward` keeps the inputs of each join that it is told to (drop-path).
    """

    def __init__(self, inputs: int, maps: int, columns: int) -> None:
        """Make the columns; the deepest has 2 ** (columns - 1) convolutions."""
        super().__init__()
        self.columns = nn.ModuleList(
            nn.ModuleList(_convolution(maps if n else inputs, maps) for n in range(2**column))
            for column in range(columns)
        )

    def forward(self, x: Tensor, drop: float = 0.0, only: int | None = None) -> Tensor:
        """Map (N, inputs, H, W) to (N, maps, H, W); each join drops inputs with probability `drop`, or keeps `only`."""
        depth = len(self.columns[-1])  # type: ignore[arg-type]
        values = [x] * len(self.columns)
        for step in range(1, depth + 1):
            ending = []
            for number, column in enumerate(self.columns):
                span = depth >> number
                if step % span == 0:
                    values[number] = column[step // span - 1](values[number])  # type: ignore[index]
                    ending.append(number)
            joined = _join([values[n] for n in _kept(ending, drop, only)])
            for number in ending:
                values[number] = joined
        return values[-1]


def _kept(ending: Sequence[int], drop: float, only: int | None) -> Sequence[int]:
    """Choose the inputs of a join: one column's, or each with a probability, but at least one."""
    if only is not None:
        return [only] if only in ending else ending
    if not drop or len(ending) == 1:
        return ending
    drawn = torch.rand(len(ending), device="cpu").tolist()
    kept = [number for number, chance in zip(ending, drawn, strict=True) if chance >= drop]
    return kept or [ending[max(range(len(ending)), key=lambda n: drawn[n])]]


def _join(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if len(values) > 1 else total


def _convolution(inputs: int, maps: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(inplace=True))


class FractalNet(nn.Module):
    """Five fractals, a pool after each: (N, 3, 32, 32) to (N, num_classes); maps 32, 16, 8, 4 and 2 wide."""

    def __init__(
        self,
        num_classes: int = 10,
        *,
        columns: int = 3,
        drop_path: float = 0.15,
        dropout: Sequence[float] = _DROPOUT,
        maps: Sequence[int] = _MAPS,
    ) -> None:
        """Make the layers: 5 · 2 ** (columns - 1) convolutions deep. Without drop-path, every join keeps all."""
        super().__init__()
        self.drop_path = drop_path
        self.fractals = nn.ModuleList(Fractal(i, o, columns) for i, o in itertools.pairwise((3, *maps)))
        self.dropouts = nn.ModuleList(nn.Dropout(share) for share in dropout)
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in maps)
        self.flatten, self.fc = nn.Flatten(), nn.Linear(maps[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) to (N, num_classes)."""
        drop, only = 0.0, None
        if self.training and self.drop_path:
            chance, column = torch.rand(2, device="cpu").tolist()
            columns = len(self.fractals[0].columns)  # type: ignore[arg-type]
            drop, only = self.drop_path, int(column * columns) if chance < _GLOBAL else None
        for fractal, dropout, pool in zip(self.fractals, self.dropouts, self.pools, strict=True):
            x = pool(dropout(fractal(x, drop, only)))
        return self.fc(self.flatten(x))


_CARD = Card(
    "fractalnet-20",
    _PAPER,
    (
        "Drop-path is drawn for each batch, half of the time globally; dropout stands behind each block's last join.",
        "The paper's table counts 38.6 million parameters; the channels and columns of its section 4 make 33.7.",
        "The input has a mean and a deviation per channel.",
    ),
    input_size=(32, 32),
    resize=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    reported="4.60 % on CIFAR-10, with dropout, drop-path, shifted and mirrored images",
)
NETWORKS = (Entry(FractalNet, _CARD, first="kaiming"),)
