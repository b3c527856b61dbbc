"""The one loop of the deconvnet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..devices import sent
from ..errors import UnsupportedOp
from ..model.table import Layer
from ..rules import table as rules
from ..rules.signals import Grid, Items, Signal, Signals, Walk
from ..tape.operations import Op, Tape

Watch = Callable[[Op, Mapping[int, Signal]], None]


def carry(
    tape: Tape, layer: Layer, start: Signal, items: Items, rectifier: str = "deconvnet", watch: Watch | None = None
) -> Signal:
    """Carry signals from a layer back to the images: the one loop of the deconvnet.

    The signal stays on windows, one position's receptive field, as long as the rules can and it pays. `watch` is called
    after each operation, with all signals on their way.
    """
    if tape.hidden:
        raise UnsupportedOp(
            f"{tape.hidden[0].where} cannot be followed: part of the signal would be lost. Choose a layer before it, or "
            "write the model without it."
        )
    walk = Walk(tape, items, rectifier)
    signals: dict[int, Signal] = {rules.entry(tape, layer.value, rectifier): start}
    ended: list[Op] = []
    for op in reversed(tape.ops):
        outs: Signals = [signals.pop(v, None) for v in op.outputs]
        if all(s is None for s in outs):
            continue
        if op.cut is not None:
            ended.append(op)
        for value, signal in _below(op, outs, walk):
            if signal is not None:
                before = signals.get(value)
                signals[value] = signal if before is None else items.sum(before, signal, tape.shapes[value])
        if watch is not None:
            watch(op, signals)
    if 0 in signals:
        return signals[0]
    if rectifier != "deconvnet":
        where = f" through {ended[-1].where}, which detaches or runs where gradients are off" if ended else ""
        raise UnsupportedOp(
            f"no gradient of layer {layer.name!r} reaches the images: autograd passes nothing back{where}. "
            "rule='deconvnet' goes by what ran forward."
        )
    # Every path was a gate's.
    return Signal(start.data.new_zeros(len(items.images), *tape.shapes[0][1:]))


def _below(op: Op, outs: Signals, walk: Walk) -> Iterator[tuple[int, Signal | None]]:
    """Carry signals from an operation's results to its inputs."""
    if op.cut is not None:
        yield from ((op.inputs[i], s) for i, s in zip(op.cut, outs, strict=True) if i is not None)
        return
    rule = rules.find(op)
    back = rule.back
    if not (rule.local(op, walk.tape) and all(s is None or s.grid is not None for s in outs)):
        outs = [s and walk.items.whole(s, walk.tape.shapes[v]) for s, v in zip(outs, op.outputs, strict=True)]
        back = rule.whole or rule.back
    yield from zip(op.inputs, back(op, outs, walk), strict=True)


def trace_loss(tape: Tape, layer: Layer, start: Signal, items: Items, rectifier: str) -> list[str]:
    """Return for each item the module at which nothing was left of its signal, "" for the network itself."""
    alive = torch.ones(len(items.images), dtype=torch.bool)
    lost = [""] * len(alive)

    def look(op: Op, signals: Mapping[int, Signal]) -> None:
        left = torch.zeros_like(alive)
        for signal in signals.values():
            left |= signal.data.flatten(1).any(1).cpu()
        for item in (alive & ~left).nonzero().flatten().tolist():
            lost[item] = op.module
        alive.copy_(alive & left)

    carry(tape, layer, start, items, rectifier, look)
    return lost


def begin(tape: Tape, layer: Layer, amounts: Tensor, units: Tensor, positions: Tensor) -> Signal:
    """Return the signal at the layer: amounts (B,) of units (B,) at positions (B, 2), all else zero."""
    response = layer.response_in(tape)
    amounts = amounts.to(response.device, response.dtype, non_blocking=response.device.type == "cuda")
    if layer.reach.dims != (2, 3) or response.dim() != 4:
        return Signal(layer.spread(amounts, units, positions, response.shape))
    units = sent(units, response.device)
    data = amounts.new_zeros(len(units), layer.units).scatter_(1, units[:, None], amounts[:, None])
    return Signal(data[:, :, None, None], Grid((1, 1), (0, 0)), units)
