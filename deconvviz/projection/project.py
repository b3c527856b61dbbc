"""Projections: activations carried back to pixels by the deconvnet, one at a time or the strongest of many units."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ImageError, OptionError, UnitError
from ..guard import check_weights, placement, untouched
from ..images.opening import open_images
from ..model.survey import Layer, held, resolve
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.record import Tape, record
from ..topk.scan import TopK
from ..topk.scan import top as scan_top
from .bulk import Frames, fill, painted
from .deconvnet import begin, carry
from .result import Projections as Projections


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
        Tensor (N, C, H, W) on the images' device, seeded with the activation itself.

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
        _check_unit(found, unit)
        tape = record(network, batch, until=found.value, keep=[found.value], saver=saving)
        return carried(tape, found, unit, position, rule)


def carried(
    tape: Tape, layer: Layer, unit: int, position: tuple[int, int] | None = None, rule: str = "deconvnet"
) -> Tensor:
    """Carry one unit's activation in each recorded image back to pixels (N, C, H, W)."""
    maps = layer.maps(held(tape, layer))[:, unit]
    places = _positions(layer, maps, position)
    n = torch.arange(len(maps))
    amounts = maps[n, places[:, 0], places[:, 1]]
    start = begin(tape, layer, amounts, torch.full((len(maps),), unit), places)
    items = Items(n, places)
    return items.whole(carry(tape, layer, start, items, rule), tape.shapes[0]).data.contiguous()


def _positions(layer: Layer, maps: Tensor, position: tuple[int, int] | None) -> Tensor:
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


def _check_unit(layer: Layer, unit: int) -> None:
    if not isinstance(unit, Integral) or isinstance(unit, bool) or not 0 <= unit < layer.units:
        raise UnitError(f"unit {unit!r} is out of range: layer {layer.name!r} has units 0 to {layer.units - 1}.")


def project(
    model: nn.Module,
    images: Any = None,
    *,
    layer: int | str,
    units: Sequence[int] | str | None = None,
    top: int | TopK = 9,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
    batch_size: int = 32,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Projections:
    """Find each unit's strongest images and carry those activations back to pixels.

    Example:
        >>> import deconvviz, torch, torchvision
        >>> model = torchvision.models.alexnet(weights=None)
        >>> images = torch.randn(20, 3, 224, 224)
        >>> result = deconvviz.project(model, images, layer=5, units=[0, 1], top=3, progress=False)
        >>> result.projections.shape
        torch.Size([2, 3, 3, 163, 163])

    One scan finds the top images; each image that is needed runs once more with its switches recorded; all
    projections of a batch of images are then carried back together, each on its own receptive field.

    Args:
        model: Any network whose path to the layer has rules, see `audit`; it is left as it was.
        images: Tensor (N, C, H, W) in the model's input space, a PIL image or a list, a folder, a `Dataset` or
            `DataLoader`, or None for the sample photos.
        layer: Number or module path, see `deconvviz.layers`.
        units: A list, "all", or None for 16 spread evenly over the layer.
        top: How many images per unit, or a `TopK` that holds this layer, from a scan of the same images.
        rule: "deconvnet", "guided" or "backprop"; they differ at the rectifiers alone.
        lrn: "pass" as in the paper, or "gradient", for local response normalization.
        allow_gradient: Give operations without a rule their plain gradient instead of refusing.
        preprocess: How a picture becomes the model's input, where the model does not say.
        batch_size: Images per forward pass.
        workers: Processes that read images.
        out: File to stream the result to; a result over 1.5 GiB goes to a temporary file without it.
        progress: Whether to show progress bars.

    Returns:
        `Projections`.

    Raises:
        UnsupportedOp: An operation on the path has no rule.
        LayerError, UnitError, ImageError, ModelError, StoreError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1, Fig. 2.
    """
    saving = rules.Saving(rule, lrn, allow_gradient)
    if not isinstance(top, TopK) and top < 1:
        raise OptionError(f"top={top}: give the number of images per unit, 1 or more.")
    source = open_images(model, images, preprocess)
    device, dtype = placement(model)
    example = source.take([0]).to(device, dtype)
    with untouched(model) as network:
        check_weights(network)
        found = resolve(network, layer, example)
        # Before the long scan: refuse an operation without a rule now.
        _rehearse(network, found, example, saving)
    chosen = _choose_units(found, units)
    if not isinstance(top, TopK):
        top = scan_top(
            model, source, layers=[found.name], k=top, batch_size=batch_size, workers=workers, progress=progress
        )
    best = top[found.name]
    if int(best.image_ids.max()) >= len(source):
        raise ImageError(f"the scan counted other images: it names image {int(best.image_ids.max())} of {len(source)}.")
    frames = Frames(
        found, chosen, best.values[chosen], best.image_ids[chosen], best.positions[chosen], example.shape[1]
    )
    mean, std = source.preprocess.mean, source.preprocess.std
    details = {
        "layer": found.name,
        "number": found.number,
        "rule": rule,
        "mean": mean and tuple(mean),
        "std": std and tuple(std),
    }

    def run(patches: Tensor, projections: Tensor) -> None:
        with untouched(model) as network:
            fill(network, source, frames, patches, projections, saving, batch_size, progress)

    return painted(frames, details, out, run)


def _rehearse(network: nn.Module, layer: Layer, example: Tensor, saving: rules.Saving) -> None:
    """Go all the way once, with the first image as a batch of two: an operation that mixes images shows there."""
    tape = record(network, example.repeat(2, 1, 1, 1), until=layer.value, keep=[layer.value], saver=saving)
    zero = torch.zeros(1, dtype=torch.long)
    start = begin(tape, layer, torch.ones(1), zero, torch.zeros(1, 2, dtype=torch.long))
    carry(tape, layer, start, Items(zero, torch.zeros(1, 2, dtype=torch.long)), saving.rule)


def _choose_units(layer: Layer, units: Sequence[int] | str | None) -> Tensor:
    if units is None:
        count = min(16, layer.units)
        return torch.tensor([i * layer.units // count for i in range(count)])
    if isinstance(units, str):
        if units != "all":
            raise UnitError(f"units={units!r} is not known; give a list of numbers, 'all' or None.")
        return torch.arange(layer.units)
    try:
        numbers = [operator.index(u) for u in units]
    except TypeError as error:
        raise UnitError(f"units={units!r} is not known; give a list of numbers, 'all' or None.") from error
    if not numbers:
        raise UnitError("units is an empty list; give some numbers, 'all' or None.")
    for unit in numbers:
        _check_unit(layer, unit)
    return torch.tensor(numbers)
