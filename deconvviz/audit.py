"""Which rule each operation of a model gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import rules
from ._state import placement, untouched
from ._table import as_html, as_text
from .errors import UnsupportedOp
from .tape import record


@dataclass(frozen=True)
class AuditRow:
    """One operation that ran: its function, its module, how often there, its rule, and how the rule stands.

    `status` is "exact" (as in the ZFNet paper), "extension" (the paper has no such operation) or "unsupported".
    """

    operation: str
    module: str
    calls: int
    kind: str
    rule: str
    status: str


@dataclass(frozen=True)
class Audit:
    """What `audit` found; prints as a table, iterates over its rows."""

    rows: tuple[AuditRow, ...]

    def __iter__(self) -> Iterator[AuditRow]:
        """Go through the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    @property
    def unsupported(self) -> tuple[AuditRow, ...]:
        """The operations without a rule."""
        return tuple(row for row in self.rows if row.status == "unsupported")

    def _cells(self) -> list[tuple[str, ...]]:
        return [(r.operation, r.module, str(r.calls), r.status, r.rule) for r in self.rows]

    def __str__(self) -> str:
        """Lay the table out as text."""
        return as_text(_HEADINGS, self._cells())

    def _repr_html_(self) -> str:
        return as_html(_HEADINGS, self._cells())


_HEADINGS = ("operation", "module", "calls", "status", "rule")
_SHOWN = ("rectifier", "max-pool", "average pool", "normalization", "product")


def audit(model: nn.Module, images: Any = None) -> Audit:
    """List every nonlinearity, pool and normalization that a model runs, and the rule each gets.

    Example:
        >>> import deconvviz, torchvision
        >>> report = deconvviz.audit(torchvision.models.resnet18(weights=None))
        >>> len(report.unsupported), report.rows[1].rule
        (0, 'max(signal, 0), as in the paper')

    The model runs once; what is listed is what ran, functional and in-place calls included. Operations without a
    rule are listed whatever they are.

    Args:
        model: The network; it is left as it was.
        images: (N, C, H, W) or anything else `project` takes; the first is used. None: a blank image of the
            model's own size.

    Returns:
        `Audit`.

    Raises:
        ModelError: The operations of the model cannot be seen.
    """
    from .images import open_images
    from .layers import _input_size

    device, dtype = placement(model)
    if images is None:
        image = torch.zeros(1, *_input_size(model, None))
    else:
        image = open_images(model, images).take([0])
    with untouched(model) as network:
        tape = record(network, image.to(device, dtype), saver=rules.Saving())
    counts: dict[AuditRow, int] = {}
    for op in tape.ops:
        try:
            rule = rules.find(op)
            row = AuditRow(op.name, op.module, 0, rule.kind, rule.note, "exact" if rule.exact else "extension")
        except UnsupportedOp as error:
            row = AuditRow(op.name, op.module, 0, "", str(error), "unsupported")
        if row.kind in _SHOWN or row.status == "unsupported":
            counts[row] = counts.get(row, 0) + 1
    return Audit(tuple(AuditRow(r.operation, r.module, n, r.kind, r.rule, r.status) for r, n in counts.items()))
