"""What a network costs, layer by layer: parameters, multiply-adds, outputs, connections, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..calls import Call, called
from ..errors import LayerError
from ..guard import placement, untouched
from ..images.preprocess import input_size as find_input_size
from ..results.base import Result, Stored
from ..results.text import as_html, as_text
from ..rules.kinds import WEIGHTED, Kind
from ..rules.table import Saving, kind_of, reach_all
from ..tape.operations import Op, Tape
from ..tape.record import record
from .survey import names_input_size
from .work import Counting, biases, is_layer, owners, pooled

_HEADINGS = (
    *("name", "kind", "map", "receptive field", "stride"),
    *("parameters", "multiply-adds", "outputs", "connections"),
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerCost(Stored):
    """What one layer costs for one image.

    Attributes:
        name: path of the module; "path#2" for its second call, "path:relu" for one of several operations in it.
        kind: what it does: "convolution", "linear", "max-pool", …
        shape: of its result for one image, (units, height, width) or as it comes.
        receptive_field: (vertical, horizontal) input pixels.
        stride: the same, None for a layer without rows and columns.
        parameters: numbers that training changes, biases included; shared ones count where they are used first.
        macs: multiply-adds: products with weights or, in an attention, of responses. No FLOPs, which are two each.
        outputs: numbers that it makes; 0 for a normalization, which changes those there are.
        connections: what its outputs read: multiply-adds and biases; of a pool, the taps of its windows.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    receptive_field: tuple[int, int]
    stride: tuple[int, int] | None
    parameters: int
    macs: int
    outputs: int
    connections: int

    def describe(self) -> str:
        """Say which layer."""
        return f"{self.name}: {self.macs:,} multiply-adds, {self.parameters:,} parameters"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cost(Result):
    """What a network costs for one image; iterates over its layers, `cost["features.0"]` picks one.

    Attributes:
        layers: a `LayerCost` for each convolution, matrix, pool and whatever else has parameters, as they run.
        input_size: (channels, height, width) of the image.
        idle: parameters that nothing which ran uses, such as those of auxiliary heads.
        depth: layers with weights on the longest way from the image to the output.
        bytes_each: size of one number.
    """

    layers: tuple[LayerCost, ...]
    input_size: tuple[int, int, int]
    idle: int
    depth: int
    bytes_each: int
    drawn_by = "cost"
    holds = (LayerCost,)

    def __iter__(self) -> Iterator[LayerCost]:
        """Go through the layers."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Count the layers."""
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerCost:
        """Pick a layer by name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise LayerError(f"no layer {name!r} in this result, it has {', '.join(layer.name for layer in self)}.")

    @property
    def parameters(self) -> int:
        """All parameters, idle ones included."""
        return sum(layer.parameters for layer in self) + self.idle

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.macs for layer in self)

    @property
    def connections(self) -> int:
        """Connections of all layers."""
        return sum(layer.connections for layer in self)

    @property
    def neurons(self) -> int:
        """Outputs of convolutions and matrices, as the papers count units; pools make none."""
        return sum(layer.outputs for layer in self if layer.kind not in _POOLS)

    @property
    def outputs(self) -> int:
        """The image's numbers and all layers' outputs: what a step of training has to keep."""
        channels, height, width = self.input_size
        return channels * height * width + sum(layer.outputs for layer in self)

    @property
    def memory(self) -> int:
        """Bytes of `outputs` for one image."""
        return self.outputs * self.bytes_each

    def share(self, what: str, kind: str) -> float:
        """Return the share, 0 to 1, of the layers of a kind ("convolution", "linear") in the sum of a column.

        Raises:
            LayerError: `what` is no column of numbers.
        """
        if what not in ("parameters", "macs", "outputs", "connections"):
            raise LayerError(f"what={what!r}: expected 'parameters', 'macs', 'outputs' or 'connections'.")
        whole = sum(getattr(layer, what) for layer in self)
        return sum(getattr(layer, what) for layer in self if layer.kind == kind) / max(1, whole)

    def plot(
        self,
        figure: Any = None,
        *,
        name: str = "this network",
        others: Mapping[str, Cost] | None = None,
        accuracy: Mapping[str, float] | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the layers, or several networks as circles; see `deconvviz.plotting.cost.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, name=name, others=others, accuracy=accuracy, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer."""
        names = ("name", "kind", "parameters", "macs", "outputs", "connections")
        found: dict[str, Any] = {name: [getattr(layer, name) for layer in self] for name in names}
        return found | {"shape": ["×".join(map(str, layer.shape)) for layer in self]}

    def describe(self) -> str:
        """Say how much in sum."""
        return f"{len(self)} layers: {self.parameters:,} parameters, {self.macs:,} multiply-adds for one image"

    def table(self) -> str:
        """Return one line per layer, then the sums and the shares of convolutions and matrices."""
        return "\n".join([as_text(_HEADINGS, [_line(layer) for layer in self]), "", *self._sums()])

    def _sums(self) -> list[str]:
        lines = [f"for one image of {'×'.join(map(str, self.input_size))}; k = 1,000, M = 1,000 k, G = 1,000 M"]
        for what, said in (("parameters", "parameters"), ("macs", "multiply-adds")):
            of = ", ".join(f"{_PLURAL[k]} {100 * self.share(what, k):.1f} %" for k in _PLURAL if self.share(what, k))
            lines.append(f"{said}: {getattr(self, what):,} ({short_number(getattr(self, what))}); {of}")
        if self.idle:
            lines.append(f"of the parameters, nothing that ran uses {self.idle:,}")
        lines.append(f"outputs: {self.outputs:,} with the image; {self.neurons:,} of layers with weights")
        lines.append(f"connections: {self.connections:,} ({short_number(self.connections)})")
        lines.append(f"memory of the outputs: {short_number(self.memory)}B, {self.bytes_each} bytes each")
        return [*lines, f"depth: {self.depth} layers with weights"]

    def _repr_html_(self) -> str:
        return as_html(_HEADINGS, [_line(layer) for layer in self]) + "<br>".join(self._sums())


_POOLS = (Kind.MAX_POOL.value, Kind.AVERAGE_POOL.value)
_PLURAL = {Kind.CONVOLUTION.value: "convolutions", Kind.LINEAR.value: "fully connected"}


def short_number(number: float) -> str:
    """Return a number in k, M or G, thousands of each other.

    Example:
        >>> short_number(724_406_816)
        '724.4 M'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.4g} "


def _line(layer: LayerCost) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "×".join(map(str, layer.shape)),
        "×".join(map(str, layer.receptive_field)),
        "" if layer.stride is None else "×".join(map(str, layer.stride)),
        *(f"{n:,}" if n else "" for n in (layer.parameters, layer.macs, layer.outputs, layer.connections)),
    )


def cost(model: nn.Module, *, input_size: int | tuple[int, ...] | None = None, call: Call | None = None) -> Cost:
    """Count what a network costs for one image: parameters, multiply-adds, outputs, connections, memory.

    Example:
        >>> import deconvviz, torchvision
        >>> cost = deconvviz.cost(torchvision.models.alexnet(weights=None))
        >>> cost.parameters, cost.macs, cost["features.0"].receptive_field
        (61100840, 714188480, (11, 11))

    The network runs once on a blank image, in eval mode; what is counted is what runs, functions and attentions
    included. A layer is a call of a module that multiplies with weights, pools, or has parameters. Multiply-adds are
    those of convolutions and products of matrices, taps in a padding included, as the papers count; norms, activations
    and sums have none. A network on the meta device, `torch.device("meta")`, needs neither memory nor time.

    Args:
        model: The network; left as it was found.
        input_size: Side, (height, width) or (channels, height, width) in pixels; None takes the model's own.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        A `Cost`: `layers`, `parameters`, `macs`, `outputs`, `neurons`, `connections`, `memory`, `depth`, `share(…)`;
        `plot(others={…}, accuracy={…})` draws several networks.

    Raises:
        ModelError: The operations of the model cannot be seen.
        UnsupportedOp: It multiplies in a way that is not counted, such as a recurrent layer.

    Source: the numbers are those that Krizhevsky et al. 2012, Simonyan & Zisserman 2015, Szegedy et al. 2015 and He et
    al. 2016 argue with.
    """
    model = called(model, call)
    size = find_input_size(model, input_size)
    device, dtype = placement(model)
    counting = Counting(Saving())
    with untouched(model) as network, names_input_size(input_size):
        tape = record(network, torch.zeros(1, *size, device=device, dtype=dtype), saver=counting)
        layers, idle = _layers(tape, network, counting)
    return Cost(layers, size, idle, _depth(tape, counting.macs), dtype.itemsize)


def _layers(tape: Tape, network: nn.Module, counting: Counting) -> tuple[tuple[LayerCost, ...], int]:
    reaches = reach_all(tape)
    macs = counting.corrected(tape, network)
    parameters, idle = owners(tape, network, macs)
    groups = _groups(tape, counting.macs, parameters)
    layers = []
    for name, (main, group) in zip(_names(groups), groups, strict=True):
        reach, kind = reaches[main.outputs[0]], kind_of(main)
        own = is_layer(main, macs)
        work = sum(macs.get(op, 0) for op in group)
        read = pooled(tape, main) if own and main not in macs else work
        layers.append(
            LayerCost(
                name,
                main.short if kind is None else kind.value,
                tuple(tape.shapes[group[-1].outputs[0]][1:]),
                reach.field(),
                (reach.rows.stride, reach.cols.stride) if reach.dims else None,
                sum(parameters.get(op, 0) for op in group),
                work,
                tape.shapes[main.outputs[0]][1:].numel() if own else 0,
                read + sum(biases(tape, op, counting) for op in group) if own else 0,
            )
        )
    return tuple(layers), idle


# The operation that makes a layer what it is, and all that belong to it.
_Group = tuple[Op, list[Op]]


def _groups(tape: Tape, macs: Mapping[Op, int], parameters: Mapping[Op, int]) -> list[_Group]:
    """Put operations that follow each other in one module together, as a subsampling's mean, weight and bias."""
    groups: list[_Group] = []
    before: Op | None = None
    for op in tape.ops:
        own = is_layer(op, macs)
        follows = before is not None and before.module == op.module and not own
        if follows and groups and before in groups[-1][1]:
            if op in parameters or op.short in ("add", "mul"):
                groups[-1][1].append(op)
        elif own or op in parameters:
            groups.append((op, [op]))
        before = op
    return groups


def _names(groups: Sequence[_Group]) -> list[str]:
    """Name each layer by its module, with the number of the call or the operation where it has several."""
    calls: dict[str, list[Op]] = {}
    for main, _ in groups:
        calls.setdefault(main.module, []).append(main)
    names = []
    for main, _ in groups:
        same = calls[main.module]
        alike = [op for op in same if op.short == main.short]
        name = main.module
        if len(alike) < len(same) or not name:
            name = f"{name}:{main.short}"
        names.append(name if len(alike) == 1 else f"{name}#{alike.index(main) + 1}")
    return names


def _depth(tape: Tape, macs: Mapping[Op, int]) -> int:
    """Count the layers with weights on the longest way to the output, or to whatever comes last."""
    longest = {0: 0}
    for op in tape.ops:
        weighted = op in macs and kind_of(op) in WEIGHTED
        steps = max((longest.get(v, 0) for v in op.inputs), default=0) + weighted
        longest.update(dict.fromkeys(op.outputs, steps))
    return longest[tape.output] if tape.output is not None else max(longest.values())
