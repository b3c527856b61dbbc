"""deconv: one unit's activation in each image, carried back to pixels at full size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once, is_whole
from ..devices import Portions
from ..errors import ModelError, UnitError
from ..guard import check_weights, placement, untouched
from ..images import open_images
from ..model.survey import resolve
from ..model.table import Layer
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.operations import Tape
from ..tape.record import record
from .deconvnet import begin, carry


def deconv(
    model: nn.Module,
    images: Any,
    *,
    layer: int | str,
    unit: int,
    position: tuple[int, int] | None = None,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
    call: Call | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Tensor:
    """Carry one unit's activation back to pixels, for each image.

    Example:
        >>> import deconvviz, torch, torchvision
        >>> model = torchvision.models.alexnet(weights=None)
        >>> deconvviz.deconv(model, torch.randn(2, 3, 224, 224), layer=5, unit=7).shape
        torch.Size([2, 3, 224, 224])

    All other activations of the layer are set to zero; then again and again the signal is unpooled with the recorded
    switches, rectified and filtered with the transposed filters, down to the input.

    Args:
        model: The network; it is left as it was.
        images: (N, C, H, W) in the model's input space, or anything else that `project` takes.
        layer: Number or module path, see `deconvviz.layers`.
        unit: Which channel of the layer.
        position: (row, column) in the layer's map; None takes each image's strongest.
        rule: "deconvnet"; "backprop", the plain gradient times the activation; or "guided", the gradient with its
            negative parts cut off at each rectifier. The deconvnet keeps gates and statistics of normalizations
            constant, the gradients go through them. They start before an activation that saturates (ReLU6, sigmoid …).
            They are autograd's: nothing goes back through what the model detaches or runs under `no_grad`, and a
            `torch.autograd.Function` has its own backward. The deconvnet goes by what ran forward.
        lrn: "pass" as in the paper, or "gradient", for local response normalization.
        allow_gradient: Give operations without a rule their plain gradient instead of refusing.
        preprocess: For images that are not a tensor, see `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 32.
        workers: Processes that read images.
        progress: Whether to show a bar where there are several batches.

    Returns:
        Tensor (N, C, H, W) on the model's device, seeded with the activation itself.

    Raises:
        UnsupportedOp: An operation on the path has no rule.
        LayerError, UnitError, ImageError, ModelError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1.
    """
    saving = rules.Saving(rule, lrn, allow_gradient)
    model = called(model, call)
    device, dtype = placement(model)
    source = open_images(model, images, preprocess)
    size = at_once(batch_size, source.batch_size, usual=32)
    with untouched(model) as network:
        check_weights(network)
        found = resolve(network, layer, source.take([0]).to(device, dtype), saving)
        unit = found.check_unit(unit)
        parts: list[Tensor] = []
        portions = Portions(size)
        with tqdm(total=len(source), desc="deconv", unit=" images", disable=not progress or len(source) <= size) as bar:
            for first, batch in source.batches(size, workers=workers, device=device, dtype=dtype):

                def go(some: Tensor, first: int = first, batch: Tensor = batch) -> Tensor:
                    images = batch[int(some[0]) : int(some[-1]) + 1]
                    tape = record(
                        network, images, until=found.value, keep=[found.value], saver=saving, gradient=saving.gradient
                    )
                    return carry_back(tape, found, unit, position, rule, first + int(some[0]))

                for part in portions.run(go, torch.arange(len(batch))):
                    parts.append(part)
                    bar.update(len(part))
    carried = torch.cat(parts)
    if not carried.isfinite().all():
        raise ModelError(
            f"layer {found.name!r}, unit {unit}: the projection is not finite. Look for an overflow in "
            f"{str(dtype).removeprefix('torch.')}: very large weights or activations."
        )
    return carried.to(dtype)


def carry_back(
    tape: Tape,
    layer: Layer,
    unit: int,
    position: tuple[int, int] | None = None,
    rule: str = "deconvnet",
    first: int = 0,
) -> Tensor:
    """Carry one unit's activation in each recorded image, numbered from `first`, back to pixels (N, C, H, W)."""
    maps = layer.as_maps(layer.response_in(tape))[:, unit]
    if not maps.isfinite().all():
        image = first + int(maps.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
        raise ModelError(
            f"layer {layer.name!r}, unit {unit} is not finite for image {image}. Look for NaN in the image, a division by "
            "zero, or an overflow in half precision."
        )
    places = choose_positions(layer, maps, position)
    n = torch.arange(len(maps))
    amounts = maps[n, places[:, 0], places[:, 1]]
    start = begin(tape, layer, amounts, torch.full((len(maps),), unit), places)
    items = Items(n, places)
    return items.whole(carry(tape, layer, start, items, rule), tape.shapes[0]).data.contiguous()


def choose_positions(layer: Layer, maps: Tensor, position: tuple[int, int] | None) -> Tensor:
    """Return the place (N, 2) in each map (N, height, width): the one given, or each map's largest value."""
    if position is not None:
        pair = list(position) if isinstance(position, Iterable) and not isinstance(position, str) else []
        if len(pair) != 2 or not all(map(is_whole, pair)):
            raise UnitError(f"position={position!r}: expected (row, column), two whole numbers.")
        row, col = map(int, pair)
        if not (0 <= row < layer.height and 0 <= col < layer.width):
            raise UnitError(
                f"position {(row, col)} is outside the map of layer {layer.name!r}, {layer.height}×{layer.width}."
            )
        return torch.tensor([[row, col]]).expand(len(maps), 2)
    flat = maps.flatten(1)
    first = (flat == flat.amax(1, keepdim=True)).int().cumsum(1).eq(0).sum(1).cpu()  # ties: the first in reading order
    return torch.stack([first // layer.width, first % layer.width], 1)
