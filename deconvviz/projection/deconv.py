"""deconv: one unit's activation in each image, carried back to pixels at full size."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnitError
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
    images: Tensor,
    *,
    layer: int | str,
    unit: int,
    position: tuple[int, int] | None = None,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
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
        rule: "deconvnet", "guided" or "backprop"; they differ at the rectifiers alone.
        lrn: "pass" as in the paper, or "gradient", for local response normalization.
        allow_gradient: Give operations without a rule their plain gradient instead of refusing.
        preprocess: For images that are not a tensor, see `project`.

    Returns:
        Tensor (N, C, H, W) on the model's device, seeded with the activation itself.

    Raises:
        UnsupportedOp: An operation on the path has no rule.
        LayerError, UnitError, ImageError, ModelError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1.
    """
    saving = rules.Saving(rule, lrn, allow_gradient)
    device, dtype = placement(model)
    source = open_images(model, images, preprocess)
    batch = source.take(list(range(len(source)))).to(device, dtype)
    with untouched(model) as network:
        check_weights(network)
        found = resolve(network, layer, batch)
        check_unit(found, unit)
        tape = record(network, batch, until=found.value, keep=[found.value], saver=saving)
        return carry_back(tape, found, unit, position, rule)


def carry_back(
    tape: Tape, layer: Layer, unit: int, position: tuple[int, int] | None = None, rule: str = "deconvnet"
) -> Tensor:
    """Carry one unit's activation in each recorded image back to pixels (N, C, H, W)."""
    maps = layer.as_maps(layer.response_in(tape))[:, unit]
    places = choose_positions(layer, maps, position)
    n = torch.arange(len(maps))
    amounts = maps[n, places[:, 0], places[:, 1]]
    start = begin(tape, layer, amounts, torch.full((len(maps),), unit), places)
    items = Items(n, places)
    return items.whole(carry(tape, layer, start, items, rule), tape.shapes[0]).data.contiguous()


def choose_positions(layer: Layer, maps: Tensor, position: tuple[int, int] | None) -> Tensor:
    """Return the place (N, 2) in each map (N, height, width): the one given, or each map's largest value."""
    if position is not None:
        row, col = position
        if not (0 <= row < layer.height and 0 <= col < layer.width):
            raise UnitError(
                f"position {position} is outside the map of layer {layer.name!r}, {layer.height}×{layer.width}."
            )
        return torch.tensor([[row, col]]).expand(len(maps), 2)
    flat = maps.flatten(1)
    first = (flat == flat.amax(1, keepdim=True)).int().cumsum(1).eq(0).sum(1).cpu()  # ties: the first in reading order
    return torch.stack([first // layer.width, first % layer.width], 1)


def check_unit(layer: Layer, unit: int) -> None:
    """Refuse a number that is no unit of the layer."""
    if not isinstance(unit, Integral) or isinstance(unit, bool) or not 0 <= unit < layer.units:
        raise UnitError(f"unit {unit!r} is out of range: layer {layer.name!r} has units 0 to {layer.units - 1}.")
