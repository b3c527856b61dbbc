"""What the network itself makes of images: its output, and the response of the layer that is followed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import LayerError, ModelError
from ..model.output import ASK
from ..model.table import Layer
from ..tape.operations import Op, Tape
from ..tape.record import record


@dataclass(frozen=True, eq=False)
class Answer:
    """The output (b, classes) for b images, and a layer's response (b, units, h, w) or None."""

    output: Tensor
    response: Tensor | None

    def row(self, i: int) -> Answer:
        """The answer for one of the images."""
        return Answer(self.output[i : i + 1], None if self.response is None else self.response[i : i + 1])


def recorded_answer(tape: Tape, layer: Layer | None) -> Answer:
    """Return the answer of a pass that was recorded with the output and the layer's response."""
    if tape.output is None:
        hint = ASK
        if tape.reads:
            hint = f"{tape.reads[0].where} takes the values where they cannot be followed."
        raise ModelError(
            f"the model's output is {tape.returned}, not a tensor that can be followed, (N, classes). {hint}"
        )
    return Answer(tape.kept[tape.output], None if layer is None else layer.as_maps(tape.kept[layer.value]))


class Pass:
    """Asks the network about images (b, C, H, W); `tape` is one image's pass, with all its tensors.

    `bytes` and `elements` are about what one image of a batch needs, and the largest tensor's size.
    """

    def __init__(self, network: nn.Module, tape: Tape, layer: Layer | None, dtype: torch.dtype | None) -> None:
        assert tape.output is not None
        self.network, self.tape, self.layer, self.output = network, tape, layer, tape.output
        image = tape.kept[0]
        self.device, self.dtype = image.device, dtype
        # The memory order that the model is known to take, the recorded image's.
        fast = image.is_contiguous(memory_format=torch.channels_last)
        self.order = torch.channels_last if fast else torch.contiguous_format
        self.elements = max(shape.numel() for shape in tape.shapes)
        # An operation's input and output, a skip connection, and what a convolution sets aside.
        self.bytes = 4 * self.elements * image.element_size()

    def __call__(self, images: Tensor) -> Answer:
        """Return the answer for a batch."""
        images = images.contiguous(memory_format=self.order)
        with self._precision():
            if self.layer is None:
                return Answer(self.network(images), None)
            tape = record(self.network, images, keep={self.output, self.layer.value})
            if tape.output == self.output and self.layer.value in tape.kept and self._is_layer(tape):
                return Answer(tape.kept[self.output], self.layer.as_maps(tape.kept[self.layer.value]))
            # The values have other numbers: the model took another path for these images.
            tape = record(self.network, images, keep=None)
        if tape.output is None:
            raise ModelError("the model takes another path for the occluded image; its output cannot be followed.")
        return Answer(tape.kept[tape.output], self.layer.as_maps(tape.kept[self._counted(tape)]))

    def usual(self) -> Answer:
        """Return the answer for the image as it is, alone, in the precision of this pass."""
        return recorded_answer(self.tape, self.layer) if self.dtype is None else self(self.tape.kept[0])

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _is_layer(self, tape: Tape) -> bool:
        assert self.layer is not None
        maker = tape.producer().get(self.layer.value)
        return self.layer.maker in ("", "the input" if maker is None else maker.where)

    def _counted(self, tape: Tape) -> int:
        """Find the layer where other operations run besides: the one that comes as the same call of its kind."""
        assert self.layer is not None
        value = self.layer.value
        if value == 0:
            return 0
        maker = self.tape.producer()[value]
        before, now = ([op for op in t.ops if _alike(op, maker)] for t in (self.tape, tape))
        if len(before) != len(now):
            raise LayerError(
                f"layer {self.layer.name!r} did not run as on the unoccluded image: the model takes another path for an "
                "occluded one. Choose another layer."
            )
        return now[before.index(maker)].outputs[maker.outputs.index(value)]


def _alike(a: Op, b: Op) -> bool:
    return a.where == b.where
