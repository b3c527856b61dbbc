"""An operation's own vector-Jacobian product, for whatever has no shorter way back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import of_the_device, sent
from ..errors import UnsupportedOp
from ..tape.operations import Op
from .signals import Signal, Signals, Walk, present


def pullback(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Apply the operation's own vector-Jacobian product, at zero (it is linear) or at its saved inputs.

    The batch size may stand among the operation's arguments (`view(N, …)`), so it runs on N items at a time.
    """
    shapes, n = walk.tape.shapes, walk.tape.shapes[0][0]
    if any(len(shapes[v]) == 0 or shapes[v][0] != n for v in (*op.inputs, *op.outputs)):
        raise UnsupportedOp(f"{op.where} moves or mixes the batch dimension; there is no rule for that.")
    count = len(present(signals)[0].data)
    try:
        _check_separate(op, signals, walk)
        parts = [_pull(op, signals, walk, slice(i, i + n)) for i in range(0, count, n)]
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UnsupportedOp) or of_the_device(error):
            raise
        raise UnsupportedOp(f"{op.where} has no vector-Jacobian product here: {error}") from error
    return [None if g[0] is None else Signal(torch.cat(g)[:count]) for g in zip(*parts, strict=True)]


def _pull(op: Op, signals: Signals, walk: Walk, part: slice) -> list[Tensor | None]:
    n = walk.tape.shapes[0][0]
    which = walk.items.images[part]
    which = F.pad(which, (0, n - len(which)))
    grads = [
        None if s is None else F.pad(s.data[part], (0, 0) * (s.data.dim() - 1) + (0, n - len(s.data[part])))
        for s in signals
    ]
    return _product(op, _inputs(op, present(signals)[0].data, walk, which), grads)


def _inputs(op: Op, example: Tensor, walk: Walk, which: Tensor) -> list[Tensor]:
    if op.saved.at is not None:
        return [x[sent(which, x.device)] for x in op.saved.at]
    return [example.new_zeros(walk.tape.shapes[v]) for v in op.inputs]


def _product(op: Op, inputs: list[Tensor], grads: list[Tensor | None]) -> list[Tensor | None]:
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_(x.is_floating_point() or x.is_complex()) for x in inputs]
        result = op.replay([x.clone() if op.in_place else x for x in leaves])
        outputs = [result] if isinstance(result, Tensor) else list(result)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [x for x in leaves if x.requires_grad]
        if not pairs or not wanted:
            return [None] * len(inputs)
        ys, gs = [y for y, _ in pairs], [g.to(y.dtype) for y, g in pairs]
        found = iter(torch.autograd.grad(ys, wanted, gs, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in leaves]


def _check_separate(op: Op, signals: Signals, walk: Walk) -> None:
    """Refuse an operation that mixes the images of a batch or treats them unequally; once per recorded operation.

    Its items are pulled back n at a time whatever images they come from, which needs each to stand for itself.
    """
    n = walk.tape.shapes[0][0]
    if n == 1 or op.saved.separate:
        return
    inputs = _inputs(op, present(signals)[0].data, walk, torch.zeros(n, dtype=torch.long))
    waves = [None if s is None else _wave(s.data[:1]).expand(n, *s.data.shape[1:]) for s in signals]
    first = [w if w is None else torch.cat([w[:1], torch.zeros_like(w[1:])]) for w in waves]
    every = _product(op, inputs, waves)
    alone = _product(op, inputs, first)
    for whole, one in zip(every, alone, strict=True):
        if whole is None or one is None:
            continue
        # Item 0's signal reaches item 0 alone, the others' do not reach it, and all are treated like it.
        same = torch.allclose(whole, whole[:1].expand_as(whole), 1e-3, 1e-6)
        if one[1:].any() or not same or not torch.allclose(whole[:1], one[:1], 1e-3, 1e-6):
            raise UnsupportedOp(
                f"{op.where} mixes the images of a batch, or treats them unequally; give one at a time."
            )
    op.saved.separate = True


def _wave(like: Tensor) -> Tensor:
    return torch.arange(1, like.numel() + 1, device=like.device).cos().to(like.dtype).view(like.shape)
