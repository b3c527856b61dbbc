"""An operation's own vector-Jacobian product, for whatever has no shorter way back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import of_the_device, sent
from ..errors import UnsupportedOp
from ..modes import sound_gradients
from ..tape.operations import Op
from .batch import batch_axes
from .signals import Signal, Signals, Walk, present


def pullback(op: Op, signals: Signals, walk: Walk) -> Signals:
    """Apply the operation's own vector-Jacobian product, at zero (it is linear) or at its saved inputs.

    The batch size may stand among the operation's arguments (`view(N, …)`), so it runs on N items at a time.
    """
    n, axes = walk.tape.shapes[0][0], batch_axes(walk.tape)
    if any(axes[v] is None for v in (*op.inputs, *op.outputs)):
        raise UnsupportedOp(
            f"{op.where} mixes the images of a batch, or folds parts of each (heads, windows) into the batch dimension, "
            "as attentions do: there is no way back through it, nor with allow_gradient=True. Choose a layer before it."
        )
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
    return _product(op, _inputs(op, present(signals)[0].data, walk, which), grads, walk)


def _inputs(op: Op, example: Tensor, walk: Walk, which: Tensor) -> list[Tensor]:
    if op.saved.at is not None:
        pairs = zip(op.saved.at, op.inputs, strict=True)
        return [_items_first(x, v, walk)[sent(which, x.device)] for x, v in pairs]
    shapes = [walk.tape.shapes[v] for v in op.inputs]
    return [_items_first(example.new_zeros(s), v, walk) for s, v in zip(shapes, op.inputs, strict=True)]


def _items_first(recorded: Tensor, value: int, walk: Walk) -> Tensor:
    # Signals have their items in front; what ran may have had its images along another dimension.
    return recorded.movedim(walk.tape.axes[value] or 0, 0)


def _as_it_ran(tensor: Tensor, value: int, walk: Walk) -> Tensor:
    return tensor.movedim(0, walk.tape.axes[value] or 0)


def _product(op: Op, inputs: list[Tensor], grads: list[Tensor | None], walk: Walk) -> list[Tensor | None]:
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_(x.is_floating_point() or x.is_complex()) for x in inputs]
        ran = [_as_it_ran(x, v, walk) for x, v in zip(leaves, op.inputs, strict=True)]
        result = op.replay([x.clone() if op.in_place else x for x in ran])
        made = [result] if isinstance(result, Tensor) else [x for x in result if isinstance(x, Tensor)]
        outputs = [_items_first(y, v, walk) for y, v in zip(made, op.outputs, strict=True)]
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [x for x in leaves if x.requires_grad]
        if not pairs or not wanted:
            return [None] * len(inputs)
        ys, gs = [y for y, _ in pairs], [g.to(y.dtype) for y, g in pairs]
        with sound_gradients():
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
    every = _product(op, inputs, waves, walk)
    alone = _product(op, inputs, first, walk)
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
