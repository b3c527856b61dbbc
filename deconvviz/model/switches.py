"""How many max-pools lie between each value of a tape and the images: what a deconvnet's way back takes from them."""

from __future__ import annotations

from ..rules.kinds import Kind
from ..rules.table import kind_of
from ..tape.operations import Tape


def switches_below(tape: Tape) -> dict[int, int]:
    """Return for each value the number of max-pools that it depends on."""
    below: dict[int, frozenset[int]] = {0: frozenset()}
    for number, op in enumerate(tape.ops):
        seen = frozenset().union(*(below.get(value, frozenset()) for value in op.inputs))
        if kind_of(op) == Kind.MAX_POOL:
            seen |= {number}
        below.update(dict.fromkeys(op.outputs, seen))
    return {value: len(pools) for value, pools in below.items()}
