"""Brute force: the whole network on every occluded image. The oracle of the fast path, and the way of free masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..model.table import Layer
from ..tape.operations import Tape
from ..tape.record import record

# receive(positions, output (b, classes), response (b, U, h, w) or None)
Receive = Callable[["slice | Tensor", Tensor, "Tensor | None"], None]

# Images in a batch, at most: a GPU wants many, a CPU as many as stay near its caches.
MOST = {"cuda": 256, "cpu": 16}


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
) -> None:
    """Run the network on the recorded image (1, C, H, W) with each of `boxes` (P, 4) covered by `fill` (C, H, W).

    Must be called inside `untouched`. `receive` gets every position once, in batches.
    """
    image = tape.kept[0]
    edges = boxes.to(image.device)
    y = torch.arange(image.shape[2], device=image.device)
    x = torch.arange(image.shape[3], device=image.device)

    def occluded(where: slice) -> Tensor:
        top, left, bottom, right = (edge[:, None] for edge in edges[where].unbind(1))
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
        return torch.where(inside, fill, image)

    _run(Pass(network, tape, layer, dtype), occluded, len(boxes), receive, memory)


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
) -> None:
    """Do what `run_boxes` does for masks (P, H, W), bool or from 0 (seen) to 1 (covered)."""
    image = tape.kept[0]

    def occluded(where: slice) -> Tensor:
        share = masks[where, None].to(image.device)
        if share.dtype == torch.bool:
            return torch.where(share, fill, image)
        share = share.to(image)
        return image * (1 - share) + fill * share

    _run(Pass(network, tape, layer, dtype), occluded, len(masks), receive, memory)


class Pass:
    """A forward pass that gives the output and one layer's response; `tape` is one image's pass, with its tensors.

    `bytes` is about what one image of a batch needs.
    """

    def __init__(self, network: nn.Module, tape: Tape, layer: Layer | None, dtype: torch.dtype | None) -> None:
        assert tape.output is not None
        image = tape.kept[0]
        self.network, self.layer, self.output = network, layer, tape.output
        self.device, self.dtype = image.device, dtype
        self.order = order_of(image)
        # An operation's input and output, a skip connection, and what a convolution sets aside.
        self.bytes = 4 * max(shape.numel() for shape in tape.shapes) * image.element_size()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output (b, classes) and the response (b, U, h, w) or None."""
        with self._precision():
            if self.layer is None:
                return self.network(images), None
            tape = record(self.network, images, keep={self.output, self.layer.value})
        response = self.layer.as_maps(self.layer.response_in(tape))
        if self.output not in tape.kept:
            raise ModelError("the model takes another path for the occluded image; its output cannot be followed.")
        return tape.kept[self.output], response

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def order_of(image: Tensor) -> torch.memory_format:
    """Return the memory order that the model is known to take, the recorded image's."""
    fast = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if fast else torch.contiguous_format


def _run(go: Pass, occluded: Callable[[slice], Tensor], count: int, receive: Receive, memory: int) -> None:
    size, first = min(max(1, memory // go.bytes), MOST.get(go.device.type, MOST["cpu"])), 0
    while first < count:
        where = slice(first, min(first + size, count))
        fits = _attempt(go, occluded, where, receive, last=where.stop - first == 1)
        if fits:
            first = where.stop
        else:  # outside of the handler: the error holds on to the memory that it lacked
            size = (where.stop - first) // 2
            torch.cuda.empty_cache()


def _attempt(go: Pass, occluded: Callable[[slice], Tensor], where: slice, receive: Receive, *, last: bool) -> bool:
    try:
        receive(where, *go(occluded(where).contiguous(memory_format=go.order)))
    except torch.cuda.OutOfMemoryError:
        if last:
            raise
        return False
    return True
