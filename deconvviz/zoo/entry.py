"""What a file in `networks` says of its networks: how each is built, and its card."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

from torch import nn

from .card import Card


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network; a file in `networks` lists its own in `NETWORKS`.

    Attributes:
        build: `build(num_classes, …)`; its further arguments are what `create` takes as options.
        card: the network's card, without weights.
        ones: modules whose bias the paper sets to 1.
        first: the first weights: "chosen" by `create`'s `init`, always "kaiming", or the network's "own".
        pretrained: builds it with weights from a package, and their card.
    """

    build: Callable[..., nn.Module]
    card: Card
    ones: tuple[str, ...] = ()
    first: str = "chosen"
    pretrained: Callable[[], tuple[nn.Module, Card]] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments of `build` beside the number of classes."""
        return tuple(name for name in inspect.signature(self.build).parameters if name != "num_classes")


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
