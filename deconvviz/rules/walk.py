"""What every rule gets: the signals at an operation's results, and the walk they are on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..tape.operations import Op, Tape
from .signals import Items, Signal


@dataclass(frozen=True, eq=False)
class Walk:
    """One way back through a tape: the items that travel, and the rule at the rectifiers."""

    tape: Tape
    items: Items
    rule: str = "deconvnet"


Signals = list[Signal | None]
Back = Callable[[Op, Signals, Walk], Signals]


def present(signals: Signals) -> list[Signal]:
    """Return the signals that there are."""
    return [s for s in signals if s is not None]
