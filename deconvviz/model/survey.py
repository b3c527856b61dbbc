"""Layers by number, as the papers count them, or by module path; the table of all."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import Call, called
from ..calls.detectors import is_detector
from ..errors import ForwardError, ImageError, LayerError, ModelError
from ..guard import check_weights, placement, untouched
from ..images.preprocess import input_size as find_input_size
from ..rules.kinds import ACTIVATIONS, BETWEEN_CONV_AND_RELU, LAYERS, NUMBERED, WEIGHTED, Kind
from ..rules.table import Saving, kind_of, reach_all
from ..tape.operations import Op, Tape
from ..tape.receptive_field import Reach
from ..tape.record import record
from .switches import switches_below
from .table import Layer, Layers, LayerTable, find_all, maker_of, one_by_one
from .tokens import Grid, blocks, grids
from .work import Counting, owners

# Networks with at most this many convolutions are counted by convolution, deeper ones by stride (AlexNet has 5,
# OverFeat 5 or 6, the smallest VGG 8).
FEW = 7


def layers(
    model: nn.Module,
    input_size: int | tuple[int, ...] | None = None,
    *,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    call: Call | None = None,
) -> LayerTable:
    """List a model's layers: number, name, kind, units, map, receptive field, stride, max-pools below, cost.

    Example:
        >>> import deconvviz, torchvision
        >>> table = deconvviz.layers(torchvision.models.alexnet(weights=None))
        >>> table[5].name, table[5].units, table[5].receptive_field
        ('features.11', 256, (163, 163))

    The number n counts as the papers do: in a network of at most 7 convolutions the n-th convolution, its response
    taken after its ReLU; in a deeper one the last activation at the n-th cumulative stride; in a transformer (ViT, DeiT,
    Swin, ConvNeXt …) the n-th block. Tokens are maps of rows and columns; the class token and others before them are
    a layer of their own, "blocks.3:class". A network of the zoo may name its own: `Card.layers`.

    Args:
        model: The network; it is run once on a blank image and left as it was.
        input_size: Side, (height, width) or (channels, height, width) in pixels; None takes the model's own.
        rule: "deconvnet", "guided" or "backprop", see `project`: a gradient goes through gates and statistics of
            normalizations, too, so that a layer behind them sees the whole image.
        lrn: "pass" or "gradient", see `project`.
        allow_gradient: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        A `LayerTable`, whose rows are `Layer`s; `table[5]` and `table["features.11"]` pick one.

    Raises:
        ModelError: The operations of the model cannot be seen, or its weights are not finite.
    """
    saving = Saving(rule, lrn, allow_gradient)
    model = called(model, call)
    size = find_input_size(model, input_size)
    device, dtype = placement(model)
    with untouched(model) as network, names_input_size(input_size):
        if device.type != "meta":  # where a model has shapes and no numbers, which is all that a table needs
            check_weights(network)
        counting = Counting(saving, strict=False)
        tape = record(network, torch.zeros(1, *size, device=device, dtype=dtype), saver=counting)
        return LayerTable(_with_costs(describe(tape, network), tape, network, counting), size)


def _with_costs(rows: Sequence[Layer], tape: Tape, network: nn.Module, counting: Counting) -> tuple[Layer, ...]:
    """Give each row the parameters and multiply-adds of what ran since the row before it; the last takes the rest."""
    macs = counting.corrected(tape, network)
    parameters, _ = owners(tape, network, macs)
    values = [row.value for row in rows]
    sums = [[0, 0] for _ in rows]
    for op in tape.ops if rows else ():
        place = min(bisect.bisect_left(values, op.outputs[0]), len(rows) - 1)
        sums[place][0] += parameters.get(op, 0)
        sums[place][1] += macs.get(op, 0)
    return tuple(replace(row, parameters=p, macs=m) for row, (p, m) in zip(rows, sums, strict=True))


@contextlib.contextmanager
def names_input_size(given: object) -> Iterator[None]:
    """Let a model that fails on a blank image of a size that nobody gave say how to give one."""
    try:
        yield
    except ForwardError as error:
        if given is not None:
            raise
        raise ForwardError(f"{error} Its size was not given: input_size=28, (28, 32) or (1, 28, 32).") from error


def resolve(model: nn.Module, layer: int | str, images: Tensor, saving: Saving | None = None) -> Layer:
    """Find one layer of `model` on images (N, C, H, W) by number or module path.

    What it sees is what the rules of `saving` see: the gradient goes through gates and statistics, too.
    """
    return resolve_all(model, [layer], images, saving)[0]


def resolve_all(model: nn.Module, wanted: Layers | None, images: Tensor, saving: Saving | None = None) -> list[Layer]:
    """Find several layers in one pass over the first image; None gives those that have a number."""
    with untouched(model) as network:
        tape = record(network, images[:1], saver=saving or Saving())
        rows = describe(tape, network)
    if wanted is None:
        return list(LayerTable(rows, (0, 0, 0)).numbered)
    check_seen(tape, wanted)
    return find_all(rows, wanted)


def check_seen(tape: Tape, wanted: Layers) -> None:
    """Refuse layers that ran, but whose result depends on the images in no way that can be seen."""
    for name in one_by_one(wanted):
        if isinstance(name, str) and name.removeprefix("module.") in tape.silent:
            raise LayerError(
                f"module {name!r} did not run, or returned nothing that depends on the images as far as can be seen: "
                "NumPy (.numpy()), .item(), torch.func (vmap, grad) and other libraries cut the connection. Choose a layer "
                "before that."
            )


def survey(network: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Run the network on one image and describe each layer."""
    return describe(record(network, image, saver=Saving()), network)


def describe(tape: Tape, network: nn.Module) -> tuple[Layer, ...]:
    """Describe each layer of a tape of `network` that was recorded with `Saving`."""
    _check_one_pass(tape, network)
    reaches = reach_all(tape)
    _check_order(tape, reaches)
    rows = []
    switches = switches_below(tape)
    chosen = _chosen(tape, network) or blocks(tape, reaches)
    numbers = {value: n for n, value in enumerate(chosen.values(), 1)}
    numbers = numbers or _numbers(tape, reaches, network)
    tokens = grids(tape, reaches)
    insides = tuple(f"{path}{mark}" for path in chosen for mark in ".:") if tokens else ()
    names: dict[int, list[str]] = {}
    for name, value in _names(tape, numbers).items():
        names.setdefault(value, []).append(name)
    for value, aliases in names.items():
        reach = reaches[value]
        if len(tape.shapes[value]) < 2:
            continue
        grid = tokens.get(value)
        if grid is not None and (len(reach.rows.lo), len(reach.cols.lo)) != (grid.rows, grid.cols):
            reach = reach.everywhere(reach.dims, grid.rows, grid.cols)
        units, height, width = _form(tape.shapes[value], reach, grid)
        layer = Layer(
            name=min(aliases, key=lambda name: (name not in chosen, "[" in name, len(name))),
            number=numbers.get(value),
            kind=_kind(tape, value),
            units=units,
            height=height,
            width=width,
            receptive_field=reach.field(),
            stride=(reach.rows.stride, reach.cols.stride) if reach.dims else None,
            aliases=tuple(aliases),
            value=value,
            reach=reach,
            maker=maker_of(tape, value),
            switches=switches[value],
            tokens=None if grid is None or grid.total == height * width else (grid.before, grid.total),
        )
        rows.append(layer)
        if grid is not None and grid.before and not any(name.startswith(insides) for name in aliases):
            rows.append(_apart(layer, grid))
    return tuple(rows)


def _apart(layer: Layer, grid: Grid) -> Layer:
    """Return the layer of the tokens before the grid: the class token, and others of its kind."""
    reach = layer.reach.everywhere(layer.reach.dims, 1, grid.before)
    size: dict[str, Any] = {"height": 1, "width": grid.before, "receptive_field": reach.field(), "reach": reach}
    names = tuple(f"{alias}:class" for alias in layer.aliases)
    return replace(
        layer, name=f"{layer.name}:class", number=None, aliases=names, tokens=(0, grid.total), stride=None, **size
    )


def _form(shape: torch.Size, reach: Reach, grid: Grid | None = None) -> tuple[int, int, int]:
    """Return units, height, width of a tensor (N, ...); all zero where it can't be told what its dimensions are."""
    if grid is not None:
        return shape[1:].numel() // grid.total, grid.rows, grid.cols
    if reach.dims is not None:
        height, width = len(reach.rows.lo), len(reach.cols.lo)
        return shape[1:].numel() // max(1, height * width), height, width
    return (shape[1], 1, 1) if len(shape) == 2 else (0, 0, 0)


def _check_one_pass(tape: Tape, network: nn.Module) -> None:
    """Refuse a detector, which takes the images of its batch apart and makes a new batch of them."""
    trunk = getattr(network, "backbone", None)
    apart = (op for op in tape.ops if 0 in op.inputs and any(tape.shapes[v] == tape.shapes[0][1:] for v in op.outputs))
    if isinstance(trunk, nn.Module) and any(apart):
        name = "model.backbone.body" if isinstance(getattr(trunk, "body", None), nn.Module) else "model.backbone"
        raise ModelError(
            f"{type(network).__name__} takes the images of a batch one by one, as detectors do: its responses cannot be "
            f"followed back to them. Give the network inside it, {name}, and images as it gets them, or say how to call it: "
            "call=lambda model, images: model.backbone(images)."
        )


def _check_order(tape: Tape, reaches: Mapping[int, Reach]) -> None:
    """Refuse a model that takes another dimension of the images than 1 as channels."""
    first = next((op for op in tape.ops if op.short == "conv2d"), None)
    reach = None if first is None else reaches[first.inputs[0]]
    if reach is None or reach.dims is None or reach.sized or 1 not in reach.dims:
        return
    order = ("height", "width")[reach.dims.index(1)]
    raise ImageError(
        f"the model takes the images' {order} as channels: it expects them in another order than (N, C, H, W), such as "
        "(N, H, W, C). Wrap it in a module whose forward is model(x.permute(0, 2, 3, 1))."
    )


def _names(tape: Tape, numbers: Collection[int]) -> dict[str, int]:
    """Map names to values: modules by path, "path#2" for the second of several calls, functions as "path:relu"."""
    total: dict[str, int] = {}
    for path, _ in tape.calls:
        total[path] = total.get(path, 0) + 1
    named = {path if total[path] == 1 else f"{path}#{n}": value for (path, n), value in tape.calls.items()}
    returned = {value for name, value in named.items() if "[" not in name}
    readers = tape.consumers()
    # What has a number has a name, too.
    loose = [
        op for op in tape.ops if op.outputs[0] not in returned and (_shown(op, readers) or op.outputs[0] in numbers)
    ]
    count: dict[str, int] = {}
    for op in loose:
        path = f"{op.module}:{op.short}"
        count[path] = count.get(path, 0) + 1
    seen: dict[str, int] = {}
    for op in loose:
        path = f"{op.module}:{op.short}"
        seen[path] = seen.get(path, 0) + 1
        named[path if count[path] == 1 else f"{path}#{seen[path]}"] = op.outputs[0]
    return dict(sorted(named.items(), key=lambda item: item[1]))


def _shown(op: Op, readers: Mapping[int, Sequence[Op]]) -> bool:
    return kind_of(op) in LAYERS and not _makes_a_gate(op, readers)


def _kind(tape: Tape, value: int) -> str:
    maker = tape.producer().get(value)
    if maker is None:
        return "input"
    kind = kind_of(maker)
    return maker.short if kind is None else kind.value


def _chosen(tape: Tape, network: nn.Module) -> dict[str, int]:
    """Return the values of the layers that the network's card names; none where one of them did not run."""
    paths = getattr(getattr(network, "card", None), "layers", ())
    values = {path: tape.calls[path, 1] for path in paths if (path, 1) in tape.calls}
    return values if len(values) == len(paths) else {}


def _numbers(tape: Tape, reaches: dict[int, Reach], network: nn.Module) -> dict[int, int]:
    """Number the layers as the papers do: value -> number."""
    # A detector's heads work on maps of all strides: its trunk is what is counted. What folds channels or windows into
    # the batch, as a blur of one kernel does, has no responses of single images.
    trunk = "backbone." if is_detector(network) else ""
    ops = [
        op for op in tape.ops if op.module.startswith(trunk) and tape.shapes[op.outputs[0]][:1] == tape.shapes[0][:1]
    ]
    convolutions = [op for op in ops if op.short == "conv2d" and not _after_global_pool(reaches[op.inputs[0]])]
    if 0 < len(convolutions) <= FEW:
        return {_response(op, tape): n for n, op in enumerate(convolutions, 1)}
    last: dict[int, int] = {}
    activations: set[int] = set()
    readers = tape.consumers()
    for op in ops:
        reach, kind = reaches[op.outputs[0]], kind_of(op)
        # An Inception or Fire module's activations are all its branches', side by side.
        joined = kind is Kind.CONCATENATION and activations.issuperset(op.inputs)
        if reach.dims is None or not (kind in NUMBERED or joined) or _makes_a_gate(op, readers):
            continue
        activations.add(op.outputs[0])
        if not reach.sized:  # else another image size would give it another number
            last[reach.rows.stride] = op.outputs[0]
    return {last[stride]: n for n, stride in enumerate(sorted(last), 1)}


def _makes_a_gate(op: Op, readers: Mapping[int, Sequence[Op]]) -> bool:
    """Whether a squashing's result goes into a product of two: it weighs, and is no response."""
    if kind_of(op) is not Kind.SQUASHING:
        return False
    value = op.outputs[0]
    while len(readers.get(value, ())) == 1 and len(readers[value][0].inputs) == 1:  # moved, resized, scaled
        if kind_of(readers[value][0]) in (*WEIGHTED, *NUMBERED):
            return False
        value = readers[value][0].outputs[0]
    return any(kind_of(reader) is Kind.PRODUCT and len(reader.inputs) == 2 for reader in readers.get(value, ()))


def _after_global_pool(reach: Reach) -> bool:
    # The convolutions inside squeeze-and-excite are fully connected layers in disguise.
    return reach.sized and len(reach.rows.lo) == len(reach.cols.lo) == 1


def _response(op: Op, tape: Tape) -> int:
    """Follow a convolution's result through its normalization to its rectifier."""
    consumers = tape.consumers()
    value = op.outputs[0]
    while True:
        readers = consumers.get(value, [])
        kind = kind_of(readers[0]) if len(readers) == 1 and len(readers[0].inputs) == 1 else None
        if kind in ACTIVATIONS and not _makes_a_gate(readers[0], consumers):
            return readers[0].outputs[0]
        if kind not in BETWEEN_CONV_AND_RELU:
            return value
        value = readers[0].outputs[0]
