"""LeNet-1 and LeNet-5: LeCun et al., NIPS 1989, and "Gradient-Based Learning Applied to Document Recognition", 1998."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..card import Card
from ..entry import Entry

# LeNet-1's H3, table 1 of its paper: which maps of H2 each of the twelve reads; 20 connections.
_TABLE1 = ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1), (2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3))
# LeNet-5's C3, table I: six maps read three neighbours, six four neighbours, three four others, one all; 60 in all.
_TABLE5 = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
# The targets of LeNet-5's output, seven pixels wide and twelve high, drawn after Fig. 3 of the paper.
_DIGITS = """
.......|.......|.......|.......|.......|.......|.......|.......|.......|.......
..###..|...#...|.#####.|.#####.|.#...#.|.#####.|...###.|.#####.|..###..|..###..
.#...#.|..##...|#.....#|.....#.|.#...#.|.#.....|..#....|.....#.|.#...#.|.#...#.
#.....#|.#.#...|......#|....#..|.#...#.|.#.....|.#.....|.....#.|#.....#|#.....#
#.....#|...#...|......#|...#...|.#...#.|.####..|.#.....|....#..|.#...#.|#.....#
#.....#|...#...|.....#.|..###..|.#...#.|.....#.|#.###..|....#..|..###..|#.....#
#.....#|...#...|....#..|.....#.|.######|......#|##...#.|...#...|.#...#.|.#...##
#.....#|...#...|...#...|......#|.....#.|......#|#.....#|...#...|#.....#|..###.#
#.....#|...#...|..#....|......#|.....#.|......#|#.....#|..#....|#.....#|......#
.#...#.|...#...|.#.....|.....#.|.....#.|.#...#.|.#...#.|..#....|.#...#.|.....#.
..###..|.#####.|#######|.####..|.....#.|..###..|..###..|..#....|..###..|..###..
.......|.......|.......|.......|.......|.......|.......|.......|.......|.......
"""


class Squash(nn.Module):
    """1.7159 tanh(2x / 3), which is ±1 at ±1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        """Squash each value."""
        return 1.7159 * torch.tanh(2 / 3 * x)


class Average(nn.Module):
    """Subsampling: the sum of each 2×2 window, times a weight, plus a bias, one of each per map."""

    def __init__(self, maps: int) -> None:
        """Start as the sum times a number drawn as the other weights are."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps).uniform_(-2.4 / 4, 2.4 / 4))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, maps, H, W) to half the height and width."""
        mean = F.avg_pool2d(x, 2)
        return mean * (4 * self.weight[:, None, None]) + self.bias[:, None, None]


class TableConvolution(nn.Module):
    """A 5×5 convolution in which each map reads the maps that a table says; `weight` is (connections, 5, 5)."""

    rows: Tensor
    cols: Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...]) -> None:
        """Make one filter for each connection and one bias for each map."""
        super().__init__()
        self.shape = (len(table), 1 + max(map(max, table)), 5, 5)
        self.connected = 25 * sum(map(len, table))  # products at a position: the filter's zeros are no connections
        pairs = [(to, source) for to, sources in enumerate(table) for source in sources]
        self.register_buffer("rows", torch.tensor([to for to, _ in pairs]), persistent=False)
        self.register_buffer("cols", torch.tensor([source for _, source in pairs]), persistent=False)
        limit = torch.tensor([2.4 / (25 * len(table[to])) for to, _ in pairs])
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5).uniform_(-1, 1) * limit[:, None, None])
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, maps read, H, W) to (N, maps, H − 4, W − 4)."""
        whole = self.weight.new_zeros(self.shape).index_put((self.rows, self.cols), self.weight)
        return F.conv2d(x, whole, self.bias)


class Codes(nn.Module):
    """LeNet-5's output: how near the 84 values are to each class's code of ±1, as scores for a softmax.

    Of −‖x − code‖² the part that all classes share, −‖x‖² − 84, is left out: what remains is 2 code · x.
    """

    codes: Tensor

    def __init__(self, num_classes: int) -> None:
        """Take the digits' pictures, or random codes for another number of classes."""
        super().__init__()
        rows = [line.split("|") for line in _DIGITS.split()]
        digits = [[1.0 if pixel == "#" else -1.0 for row in rows for pixel in row[n]] for n in range(10)]
        random = torch.Generator().manual_seed(0)
        other = torch.randint(2, (num_classes, 84), generator=random) * 2.0 - 1
        self.register_buffer("codes", torch.tensor(digits) if num_classes == 10 else other)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 84) to (N, classes)."""
        return F.linear(x, 2 * self.codes)


class LeNet1(nn.Module):
    """H1 to H4 and the output; (N, 1, 28, 28) to (N, classes)."""

    def __init__(self, num_classes: int = 10) -> None:
        """Make the layers."""
        super().__init__()
        self.h1, self.squash1 = nn.Conv2d(1, 4, 5), Squash()
        self.h2, self.squash2 = Average(4), Squash()
        self.h3, self.squash3 = TableConvolution(_TABLE1), Squash()
        self.h4, self.squash4 = Average(12), Squash()
        self.output = nn.Linear(12 * 4 * 4, num_classes)
        _first_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, 28, 28) to (N, classes)."""
        x = self.squash2(self.h2(self.squash1(self.h1(x))))
        x = self.squash4(self.h4(self.squash3(self.h3(x))))
        return self.output(torch.flatten(x, 1))


class LeNet5(nn.Module):
    """C1, S2, C3, S4, C5, F6 and the output; (N, 1, 32, 32) to (N, classes)."""

    def __init__(self, num_classes: int = 10) -> None:
        """Make the layers."""
        super().__init__()
        self.c1, self.squash1 = nn.Conv2d(1, 6, 5), Squash()
        self.s2, self.squash2 = Average(6), Squash()
        self.c3, self.squash3 = TableConvolution(_TABLE5), Squash()
        self.s4, self.squash4 = Average(16), Squash()
        self.c5, self.squash5 = nn.Conv2d(16, 120, 5), Squash()
        self.f6, self.squash6 = nn.Linear(120, 84), Squash()
        self.output = Codes(num_classes)
        _first_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, 32, 32) to (N, classes)."""
        x = self.squash2(self.s2(self.squash1(self.c1(x))))
        x = self.squash4(self.s4(self.squash3(self.c3(x))))
        x = self.squash5(self.c5(x))
        return self.output(self.squash6(self.f6(torch.flatten(x, 1))))


def _first_weights(model: nn.Module) -> None:
    """Draw evenly from ±2.4 / (inputs of a unit), the papers' choice; biases start at 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            limit = 2.4 / module.weight[0].numel()
            nn.init.uniform_(module.weight, -limit, limit)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


_ONE = "LeCun, Boser, Denker et al., Handwritten Digit Recognition with a Back-Propagation Network, NIPS 1989"
_FIVE = "LeCun, Bottou, Bengio & Haffner, Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 1998"
_INPUT = "The input has a mean of 0 and a deviation of 1 over MNIST; the papers scale it to a range."
_CARD1 = Card(
    "lenet-1",
    _ONE,
    (_INPUT,),
    input_size=(28, 28),
    resize=28,
    mean=(0.1307,),
    std=(0.3081,),
    layers=("squash1", "squash2", "squash3", "squash4"),  # H1 to H4
    reported="1.7 % on MNIST, in the paper of LeNet-5",
)
_CARD5 = Card(
    "lenet-5",
    _FIVE,
    (
        _INPUT,
        "The output leaves out what all classes share, which a softmax does not see.",
        "The codes of the digits are drawn after Fig. 3; another number of classes has random codes.",
    ),
    input_size=(32, 32),
    resize=32,
    mean=(0.1307,),
    std=(0.3081,),
    layers=("squash1", "squash2", "squash3", "squash4", "squash5", "squash6"),  # C1 to F6
    reported="0.95 % on MNIST, 0.8 % trained with distorted images too",
)
NETWORKS = (Entry(LeNet1, _CARD1, first="own"), Entry(LeNet5, _CARD5, first="own"))
