"""A network read with gradients: the responses of some layers, and no layer after them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError, ModelError
from ..guard import check_weights, placement, untouched
from ..images.preprocess import Preprocess
from ..model.output import ASK
from ..model.survey import describe
from ..model.table import Layer, find
from ..rules import table as rules
from ..rules.kinds import ACTIVATIONS
from ..rules.table import kind_of
from ..tape.operations import Op, Tape
from ..tape.record import record
from ..topk.saturation import Before, before_activation
from .pictures import shape_of


@dataclass(frozen=True)
class Source:
    """Where a layer's response comes from: the layer, and what went into its activation, if it has one."""

    layer: Layer
    before: Before | None


class Network:
    """A network inside `untouched`, whose weights take no gradient; made by `reading`."""

    def __init__(self, network: nn.Module, preprocess: Preprocess | None, example: Tensor) -> None:
        self.network = network
        self.device, self.dtype = placement(network)
        self.tape = record(network, example, saver=rules.Saving())
        self.rows = describe(self.tape, network)
        self.shape = shape_of(example[0])
        self._scale: tuple[Tensor, Tensor] | None = None  # mean and std, made once: a copy to a GPU makes a step wait
        if preprocess is not None and preprocess.mean is not None and preprocess.std is not None:
            mean, std = (torch.tensor(x, device=self.device).view(-1, 1, 1) for x in (preprocess.mean, preprocess.std))
            self._scale = mean, std

    def find(self, layer: int | str) -> Source:
        """Find a layer and what goes into its activation."""
        found = find(self.rows, layer)
        return Source(found, before_activation(self.tape, found, _is_activation))

    def deepest_map(self) -> Source:
        """Return the last layer whose response has places, of those with a number if one of them has."""
        maps = [row for row in self.rows if row.units and row.height * row.width > 1]
        if not maps:
            raise LayerError("no layer of this model has a map, in which images could be kept apart. Give diversity=0.")
        return self.find(([row for row in maps if row.number is not None] or maps)[-1].name)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Bring images (B, C, H, W) from 0–1 pixels into the network's input space."""
        if self._scale is None:
            return pixels
        mean, std = self._scale
        return (pixels - mean) / std

    def read(self, pixels: Tensor, sources: Sequence[Source], output: bool = False) -> Readings:
        """Run the network on images (B, C, H, W) of 0–1 pixels as far as the deepest of `sources`."""
        inner = [layer for source in sources if source.before is not None for layer in source.before.layers]
        values = {layer.value for layer in (*inner, *(source.layer for source in sources))}
        batch = self.normalize(pixels).to(self.dtype)
        if output:
            values.add(self._output())
        memory = torch.channels_last if batch.shape[1] > 1 else torch.contiguous_format
        tape = record(self.network, batch.contiguous(memory_format=memory), until=max(values), keep=values)
        return Readings(tape, self._output() if output else None)

    def classes(self) -> int:
        """Return how many classes the output (N, classes) has."""
        return int(self.tape.shapes[self._output()][1])

    def wanted(self, layers: Any) -> list[int | str]:
        """Return what `layer=` means: one, several, or None for all that have a number."""
        if layers is None:
            return [row.name for row in self.rows if row.number is not None]
        return list(layers) if isinstance(layers, (list, tuple)) else [layers]

    def _output(self) -> int:
        value = self.tape.output
        if value is None or len(self.tape.shapes[value]) != 2:
            raise ModelError(f"the model's output is not (N, classes). Choose a layer. {ASK}")
        return value


@dataclass(frozen=True)
class Readings:
    """What one pass gave."""

    tape: Tape
    value: int | None

    def response(self, source: Source) -> Tensor:
        """Return the layer's response (B, units, rows, cols) after its activation."""
        return source.layer.as_maps(self.tape.kept[source.layer.value])

    def before(self, source: Source) -> Tensor:
        """Return what went into the layer's activation (B, units, rows, cols)."""
        if source.before is None:
            return self.response(source)
        return source.layer.as_maps(source.before.build(self.tape.kept))

    def take(self, source: Source | None, how: str) -> Tensor:
        """Return the output, or a layer as `Term.reads` names it, for all images."""
        if source is None:
            return self.output()
        if how == "response":
            return self.response(source)
        before = self.before(source)
        if how == "before":
            return before
        response = self.response(source)
        return torch.where((response <= 0) & (before < 0), before, response)

    def output(self) -> Tensor:
        """Return the model's output (B, classes)."""
        assert self.value is not None
        return self.tape.kept[self.value]


def _is_activation(op: Op) -> bool:
    return kind_of(op) in ACTIVATIONS and len(op.inputs) == 1


@contextlib.contextmanager
def reading(model: nn.Module, preprocess: Preprocess | None, shape: tuple[int, int, int]) -> Iterator[Network]:
    """Open a network for images (C, H, W); its weights take no gradient meanwhile, and it is left as it was."""
    with untouched(model) as network:
        check_weights(network)
        wanted = [p for p in network.parameters() if p.requires_grad]
        device, dtype = placement(network)
        try:
            for parameter in wanted:
                parameter.requires_grad_(False)
            yield Network(network, preprocess, torch.zeros(1, *shape, device=device, dtype=dtype))
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
