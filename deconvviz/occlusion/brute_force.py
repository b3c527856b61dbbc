"""Brute force: the whole network on every occluded image. The oracle of the fast path, and the way of free masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..devices import Portions
from ..model.table import Layer
from ..tape.operations import Tape
from .answer import Pass
from .confirm import Confirmation, sees_its_batch
from .memory import MOST_ELEMENTS
from .plan import Unbatched

# receive(positions, output (b, classes), response (b, U, h, w) or None)
Receive = Callable[["slice | Tensor", Tensor, "Tensor | None"], None]

# Images in a batch, at most: an accelerator wants many, a CPU as many as stay near its caches.
MOST_ON_CPU, MOST = 16, 256


def run_boxes(
    network: nn.Module,
    tape: Tape,
    fill: Tensor,
    boxes: Tensor,
    layer: Layer | None,
    receive: Receive,
    *,
    memory: int,
    dtype: torch.dtype | None = None,
) -> str:
    """Run the network on the recorded image (1, C, H, W) with each of `boxes` (P, 4) covered by `fill` (C, H, W).

    Must be called inside `untouched`. `receive` gets every position once, in batches; where images of a batch see each
    other, they run one by one, and what is returned says why.
    """
    image = tape.kept[0]
    edges = boxes.to(image.device)
    y = torch.arange(image.shape[2], device=image.device)
    x = torch.arange(image.shape[3], device=image.device)

    def occluded(where: slice) -> Tensor:
        top, left, bottom, right = (edge[:, None] for edge in edges[where].unbind(1))
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
        return torch.where(inside, fill, image)

    return _run(Pass(network, tape, layer, dtype), occluded, len(boxes), receive, memory)


def run_masks(
    network: nn.Module,
    tape: Tape,
    fill: Tensor,
    masks: Tensor,
    layer: Layer | None,
    receive: Receive,
    *,
    memory: int,
    dtype: torch.dtype | None = None,
) -> str:
    """Do what `run_boxes` does for masks (P, H, W), bool or from 0 (seen) to 1 (covered)."""
    image = tape.kept[0]

    def occluded(where: slice) -> Tensor:
        share = masks[where, None].to(image.device)
        if share.dtype == torch.bool:
            return torch.where(share, fill, image)
        share = share.to(image)
        return image * (1 - share) + fill * share

    return _run(Pass(network, tape, layer, dtype), occluded, len(masks), receive, memory)


def _run(ask: Pass, occluded: Callable[[slice], Tensor], count: int, receive: Receive, memory: int) -> str:
    most = min(memory // ask.bytes, MOST_ELEMENTS // ask.elements, MOST_ON_CPU if ask.device.type == "cpu" else MOST)
    if min(most, count) <= 1:
        _go(ask, occluded, count, receive, 1)
        return ""
    usual = ask.usual()
    why = sees_its_batch(ask, usual)
    if not why:
        confirmation = Confirmation(ask, usual, ask.dtype)
        _go(ask, occluded, count, receive, most, confirmation)
        try:
            changed, found = confirmation.most_changed()
            for i, position in enumerate(changed.tolist()):
                confirmation.check(found.row(i), occluded(slice(position, position + 1)))
            return ""
        except Unbatched:
            why = "the model's answer for an image depends on the other images of its batch"
    _go(ask, occluded, count, receive, 1)
    return why


def _go(
    ask: Pass,
    occluded: Callable[[slice], Tensor],
    count: int,
    receive: Receive,
    most: int,
    confirmation: Confirmation | None = None,
) -> None:
    def measure(positions: Tensor) -> None:
        where = slice(int(positions[0]), int(positions[-1]) + 1)
        answer = ask(occluded(where))
        if confirmation is not None:
            confirmation.watch(positions, answer)
        receive(where, answer.output, answer.response)

    for _ in Portions(most).run(measure, torch.arange(count)):
        pass
