"""Layers by number, as the papers count them, or by module path; the table of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from ..errors import ImageError, LayerError
from ..guard import check_weights, placement, untouched
from ..rules import table as rules
from ..tape.receptive_field import Reach, Span
from ..tape.record import Op, Tape, record
from .table import Layer as Layer
from .table import LayerTable as LayerTable
from .table import find as find

# Networks with at most this many convolutions are counted by convolution, deeper ones by stride (AlexNet has 5,
# OverFeat 5 or 6, the smallest VGG 8).
FEW = 7


def layers(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> LayerTable:
    """List a model's layers: number, name, kind, units, map size, receptive field, stride.

    Example:
        >>> import deconvviz, torchvision
        >>> table = deconvviz.layers(torchvision.models.alexnet(weights=None))
        >>> table[5].name, table[5].units, table[5].receptive_field
        ('features.11', 256, (163, 163))

    The number n counts as the papers do: in a network of at most 7 convolutions the n-th convolution, its response
    taken after its ReLU; in a deeper one the last activation at the n-th cumulative stride. A
    network of the zoo may name its own: `Card.layers`.

    Args:
        model: The network; it is run once on a blank image and left as it was.
        input_size: Side, (height, width) or (channels, height, width) in pixels; None takes the model's own.

    Returns:
        A `LayerTable`, whose rows are `Layer`s; `table[5]` and `table["features.11"]` pick one.

    Raises:
        ModelError: The operations of the model cannot be seen, or its weights are not finite.
    """
    size = _input_size(model, input_size)
    device, dtype = placement(model)
    with untouched(model) as network:
        check_weights(network)
        return LayerTable(survey(network, torch.zeros(1, *size, device=device, dtype=dtype)), size)


def resolve(model: nn.Module, layer: int | str, images: Tensor) -> Layer:
    """Find one layer of `model` on images (N, C, H, W) by number or module path."""
    return resolve_all(model, [layer], images)[0]


def resolve_all(model: nn.Module, wanted: Sequence[int | str] | None, images: Tensor) -> list[Layer]:
    """Find several layers in one pass over the first image; None gives those that have a number."""
    with untouched(model) as network:
        rows = survey(network, images[:1])
    if wanted is None:
        return list(LayerTable(rows, (0, 0, 0)).numbered)
    return [find(rows, layer) for layer in wanted]


def observe(network: nn.Module, batch: Tensor, wanted: Sequence[Layer]) -> list[Tensor]:
    """Return each layer's response (N, units, height, width); the pass stops after the deepest.

    Must be called inside `untouched`.
    """
    tape = record(network, batch, until=max(x.value for x in wanted), keep={x.value for x in wanted})
    return [layer.maps(held(tape, layer)) for layer in wanted]


def held(tape: Tape, layer: Layer) -> Tensor:
    """Return the recorded response of a layer as the network made it."""
    # Values are numbered in the order of execution, which a model may change from one batch to the next.
    if layer.value not in tape.kept or layer.maker not in ("", _maker(tape, layer.value)):
        raise LayerError(
            f"layer {layer.name!r} did not run as on the first image: the model takes another path for these images."
        )
    return tape.kept[layer.value]


def survey(network: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Run the network on one image and describe each layer."""
    return described(record(network, image, saver=rules.Saving()), network)


def described(tape: Tape, network: nn.Module) -> tuple[Layer, ...]:
    """Describe each layer of a tape of `network` that was recorded with `rules.Saving`."""
    reaches = reach_all(tape)
    rows = []
    chosen = _chosen(tape, network)
    numbers = {value: n for n, value in enumerate(chosen.values(), 1)} or _numbers(tape, reaches)
    names: dict[int, list[str]] = {}
    for name, value in _names(tape, numbers).items():
        names.setdefault(value, []).append(name)
    for value, aliases in names.items():
        shape, reach = tape.shapes[value], reaches[value]
        if len(shape) < 2:
            continue
        dims = reach.dims
        if len(shape) == 4 and dims is None:
            dims = (2, 3)  # all positions see everything, yet they are positions
            reach = Reach(reach.rows.whole(shape[2]), reach.cols.whole(shape[3]), dims)
        height, width = (shape[dims[0]], shape[dims[1]]) if dims else (1, 1)
        rows.append(
            Layer(
                next((name for name in aliases if name in chosen), min(aliases, key=len)),
                numbers.get(value),
                _kind(tape, value),
                shape[1:].numel() // (height * width),
                height,
                width,
                _field(reach),
                (reach.rows.stride, reach.cols.stride) if dims else None,
                tuple(aliases),
                value,
                reach,
                _maker(tape, value),
            )
        )
    return tuple(rows)


def reach_all(tape: Tape) -> dict[int, Reach]:
    """Return what every value of a tape sees of the images."""
    height, width = tape.shapes[0][-2:]
    reaches = {0: Reach(Span.of_input(height), Span.of_input(width), (2, 3))}
    for op in tape.ops:
        reaches.update(zip(op.outputs, rules.reach_of(op, [reaches[v] for v in op.inputs], tape), strict=True))
    return reaches


def _names(tape: Tape, numbers: Collection[int]) -> dict[str, int]:
    """Map names to values: modules by path, "path#2" for the second of several calls, functions as "path:relu"."""
    total: dict[str, int] = {}
    for path, _ in tape.calls:
        total[path] = total.get(path, 0) + 1
    named = {path if total[path] == 1 else f"{path}#{n}": value for (path, n), value in tape.calls.items()}
    returned = set(named.values())
    # What has a number has a name, too.
    loose = [op for op in tape.ops if op.outputs[0] not in returned and (_shown(op) or op.outputs[0] in numbers)]
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


def _shown(op: Op) -> bool:
    rule = rules.RULES.get(op.short)
    return rule is not None and rule.kind in ("rectifier", "convolution", "max-pool", "average pool", "sum")


def _maker(tape: Tape, value: int) -> str:
    for op in reversed(tape.ops):
        if value in op.outputs:
            return op.where
    return "the input"


def _kind(tape: Tape, value: int) -> str:
    maker = tape.producer().get(value)
    rule = rules.RULES.get(maker.short) if maker is not None else None
    return rule.kind if rule is not None else maker.short if maker is not None else "input"


def _field(reach: Reach) -> tuple[int, int]:
    if reach.dims is None:
        return reach.rows.widest(), reach.cols.widest()
    return reach.rows.size, reach.cols.size


def _chosen(tape: Tape, network: nn.Module) -> dict[str, int]:
    """Return the values of the layers that the network's card names; none where one of them did not run."""
    paths = getattr(getattr(network, "card", None), "layers", ())
    values = {path: tape.calls[path, 1] for path in paths if (path, 1) in tape.calls}
    return values if len(values) == len(paths) else {}


def _numbers(tape: Tape, reaches: dict[int, Reach]) -> dict[int, int]:
    """Number the layers as the papers do: value -> number."""
    convolutions = [op for op in tape.ops if op.short == "conv2d" and not _pointwise_on_a_point(op, tape)]
    if 0 < len(convolutions) <= FEW:
        return {_response(op, tape): n for n, op in enumerate(convolutions, 1)}
    last: dict[int, int] = {}
    activations: set[int] = set()
    for op in tape.ops:
        reach, rule = reaches[op.outputs[0]], rules.RULES.get(op.short)
        # An Inception or Fire module's activations are all its branches', side by side.
        joined = rule is not None and rule.kind == "concatenation" and activations.issuperset(op.inputs)
        if rule is None or reach.dims is None or not (rule.kind == "rectifier" or joined):
            continue
        activations.add(op.outputs[0])
        if len(reach.rows.lo) > 1 or len(reach.cols.lo) > 1:
            last[reach.rows.stride] = op.outputs[0]
    return {last[stride]: n for n, stride in enumerate(sorted(last), 1)}


def _pointwise_on_a_point(op: Op, tape: Tape) -> bool:
    # The convolutions inside squeeze-and-excite are fully connected layers in disguise.
    return tape.shapes[op.inputs[0]][-2:] == (1, 1)


def _response(op: Op, tape: Tape) -> int:
    """Follow a convolution's result through its normalization to its rectifier."""
    consumers = tape.consumers()
    value = op.outputs[0]
    while True:
        readers = consumers.get(value, [])
        rule = rules.RULES.get(readers[0].short) if len(readers) == 1 else None
        passing = ("rectifier", "normalization", "identity", "product", "sum")
        if rule is None or rule.kind not in passing or len(readers[0].inputs) > 1:
            return value
        value = readers[0].outputs[0]
        if rule.kind == "rectifier":
            return value


def _input_size(model: nn.Module, size: int | tuple[int, ...] | None) -> tuple[int, int, int]:
    weights = [p for p in model.parameters() if p.dim() == 4]
    channels = int(weights[0].shape[1]) if weights else 3
    if size is None:
        from ..images import preprocess_for

        try:
            known = preprocess_for(model).size
        except ImageError:
            known = None
        return channels, *(known or (224, 224))
    if isinstance(size, int):
        return channels, size, size
    if len(size) == 2:
        return channels, size[0], size[1]
    if len(size) == 3:
        return size[0], size[1], size[2]
    raise LayerError(f"input_size must be a side, (height, width) or (channels, height, width), got {size!r}.")
