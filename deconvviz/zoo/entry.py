"""What a file in `networks` says of its networks: how each is built, and its card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from .card import Card


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network; a file in `networks` lists its own in `NETWORKS`.

    Attributes:
        build: `build(num_classes, dropout=...)`; either may be left out, `dropout` as said below.
        card: the network's card, without weights.
        ones: modules whose bias the paper sets to 1.
        kaiming: the first weights are Kaiming's, whatever `init` says.
        dropout: whether `build` takes it.
        pretrained: builds it with weights from a package, and their card.
    """

    build: Callable[..., nn.Module]
    card: Card
    ones: tuple[str, ...] = ()
    kaiming: bool = False
    dropout: bool = True
    pretrained: Callable[[], tuple[nn.Module, Card]] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks whose names hold a number; a file in `networks` lists its own in `FAMILIES`.

    Attributes:
        matches: whether a name is of the family's form, whatever its number.
        entry: the network of such a name; a ModelError where there is none of that number.
        common: the usual names, for lists.
    """

    matches: Callable[[str], bool]
    entry: Callable[[str], Entry]
    common: tuple[str, ...]
