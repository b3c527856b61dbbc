"""Which rule each operation of a model gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..calls import Call, called
from ..errors import UnsupportedOp
from ..guard import placement, untouched
from ..images import Images, open_images
from ..images.preprocess import input_size as find_input_size
from ..results.text import as_html, as_text
from ..rules.kinds import AUDITED, Kind
from ..rules.table import Saving, find, kind_of
from ..tape.operations import Op, Tape
from ..tape.record import record
from .survey import names_input_size
from .switches import switches_below


@dataclass(frozen=True)
class AuditRow:
    """One operation that ran: its function, its module, how often there, its rule, and how the rule stands.

    `switches` counts the max-pools between its result and the images, at its deepest call. `status` is "exact" (as in
    the ZFNet paper), "extension" (the paper has no such operation) or "unsupported".
    """

    operation: str
    module: str
    calls: int
    kind: str
    rule: str
    status: str
    switches: int = 0


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
        return [(r.operation, r.module, str(r.calls), r.status, str(r.switches), r.rule) for r in self.rows]

    def __str__(self) -> str:
        """Lay the table out as text."""
        return as_text(_HEADINGS, self._cells())

    def _repr_html_(self) -> str:
        return as_html(_HEADINGS, self._cells())


_HEADINGS = ("operation", "module", "calls", "status", "max-pools below", "rule")


def audit(
    model: nn.Module,
    images: Images = None,
    *,
    input_size: int | tuple[int, ...] | None = None,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
    call: Call | None = None,
) -> Audit:
    """List every nonlinearity, pool and normalization that a model runs, and the rule each gets.

    Example:
        >>> import deconvviz, torchvision
        >>> report = deconvviz.audit(torchvision.models.resnet18(weights=None))
        >>> len(report.unsupported), report.rows[1].rule
        (0, 'max(signal, 0), as in the paper')

    The model runs once; what is listed is what ran, functional and in-place calls included. Operations without a
    rule are listed whatever they are; they are unsupported where a signal from the output comes by. These are the
    deconvnet's rules. `rule="backprop"` and `"guided"` take each operation's own gradient, also through gates and
    statistics, but for what "guided" does at rectifiers.

    Args:
        model: The network; it is left as it was.
        images: (N, C, H, W) or anything else `project` takes; the first is used. None: a blank image of
            `input_size`.
        input_size: As `layers` takes it; None: the model's own size.
        rule: "deconvnet", "guided" or "backprop", see `project`.
        lrn: "pass" or "gradient", see `project`.
        allow_gradient: Say what operations without a rule get where their plain gradient is allowed.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        `Audit`.

    Raises:
        ModelError: The operations of the model cannot be seen.
    """
    model = called(model, call)
    saving = Saving(rule, lrn, allow_gradient)
    device, dtype = placement(model)
    if images is None:
        image = torch.zeros(1, *find_input_size(model, input_size))
    else:
        image = open_images(model, images, preprocess).take([0])
    with untouched(model) as network, names_input_size(input_size if images is None else image):
        tape = record(network, image.to(device, dtype), saver=saving, gradient=saving.gradient)
    counts: dict[AuditRow, int] = {}
    deepest: dict[AuditRow, int] = {}
    carried, switches = _carried(tape), switches_below(tape)
    for op in tape.ops:
        row = _row(op, not carried.isdisjoint(op.outputs), saving.rectifier)
        if row.kind in (*AUDITED, Kind.GRADIENT) or not row.kind:
            counts[row] = counts.get(row, 0) + 1
            deepest[row] = max(deepest.get(row, 0), *(switches[value] for value in op.outputs))
    return Audit(tuple(replace(row, calls=n, switches=deepest[row]) for row, n in counts.items()))


def _carried(tape: Tape) -> set[int]:
    """Return the values that a signal at the output comes by; it does not enter a gate's own branch."""
    if tape.output is None:
        return set(range(len(tape.shapes)))
    values = {tape.output}
    for op in reversed(tape.ops):
        if op.cut is None and not values.isdisjoint(op.outputs):
            if op.whole:
                values -= set(op.outputs)
            values |= {v for slot, v in enumerate(op.inputs) if slot != op.saved.gate_slot}
    return values


# What the gradient rules do at a rectifier, whose own note says what the deconvnet does.
_AT_RECTIFIERS = {"backprop": "times its derivative", "guided": "times its derivative, negative parts cut off"}


def _row(op: Op, carries: bool, rectifier: str) -> AuditRow:
    if op.cut is not None:
        return AuditRow(op.name, op.module, 0, str(kind_of(op) or ""), "none: autograd passes nothing back", "exact")
    gated = AuditRow(op.name, op.module, 0, "", "none needed: only in a gate, which is a constant", "extension")
    try:
        rule = find(op)
    except UnsupportedOp as error:
        if carries:
            return AuditRow(op.name, op.module, 0, "", str(error), "unsupported")
        return gated
    if rule.kind is Kind.SQUASHING and not carries:
        return gated
    note, exact = rule.note, rule.exact
    if rectifier != "deconvnet" and rule.kind is Kind.RECTIFIER:
        note, exact = _AT_RECTIFIERS[rectifier], True
    return AuditRow(op.name, op.module, 0, rule.kind.value, note, "exact" if exact else "extension")
