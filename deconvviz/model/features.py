"""The responses of several layers to images, batch by batch: what the studies read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole
from ..devices import doubled
from ..errors import ImageError, LayerError, ModelError, OptionError
from ..guard import check_weights, placement, untouched
from ..images import ImageSet
from ..rules.kinds import WEIGHTED
from ..tape.operations import Tape
from ..tape.record import record
from .survey import survey
from .table import Layer, Layers, find_all


class Reader:
    """Reads layers of a network that is inside `untouched`; made by `reading`."""

    def __init__(self, network: nn.Module, images: ImageSet, layers: Sequence[Layer]) -> None:
        self.network, self.images, self.layers = network, images, layers
        self.device, self.dtype = placement(network)
        self._output: int | None = None

    def read(self, batch: Tensor, *, fixed: bool = True) -> list[Tensor]:
        """Return each layer's response (n, units, height, width); `fixed` refuses another size than image 0's."""
        values = {layer.value for layer in self.layers}
        return self._checked(batch, record(self.network, batch, until=max(values), keep=values), fixed)

    def read_with_output(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return each layer's response and the model's output (n, classes)."""
        if self._output is None:
            self._output = record(self.network, batch[:1]).output
        values = [layer.value for layer in self.layers]
        tape = record(self.network, batch, keep=values if self._output is None else [*values, self._output])
        output = None if tape.output is None else tape.kept.get(tape.output)
        if output is None or output.dim() != 2:
            given = "no tensor" if output is None else f"of shape {tuple(output.shape)}"
            raise ModelError(f"the model's output is {given}, expected (N, classes): one number per class.")
        if not torch.isfinite(output).all():
            raise ModelError("the model's output is not finite. Look for a division by zero or an overflow.")
        return self._checked(batch, tape, True), output

    def _checked(self, batch: Tensor, tape: Tape, fixed: bool) -> list[Tensor]:
        return [self._response(batch, layer.response_in(tape), layer, fixed) for layer in self.layers]

    def _response(self, batch: Tensor, recorded: Tensor, layer: Layer, fixed: bool) -> Tensor:
        """Give one recorded tensor its form and refuse what is not finite or not as for image 0."""
        usual = (layer.units, layer.height, layer.width)
        flat = layer.reach.dims is None
        response = recorded if flat and recorded[0].numel() != math.prod(usual) else layer.as_maps(recorded)
        if (fixed or flat) and response.shape[1:] != usual:
            raise ImageError(
                f"images of {tuple(batch.shape[2:])} pixels give layer {layer.name!r} {tuple(response.shape[1:])}, "
                f"image 0 gives {usual}. Let preprocess bring all images to one size."
            )
        if torch.isfinite(response).all():
            return response
        if not torch.isfinite(batch).all():
            raise ImageError("an image holds NaN or infinity, expected finite values. Clean it or leave it out.")
        raise ModelError(
            f"layer {layer.name!r} gives NaN or infinity for finite images. Look for a division by zero, or an "
            "overflow in half precision."
        )


@contextlib.contextmanager
def reading(model: nn.Module, images: ImageSet, layers: Layers | None, *, usual: str = "all") -> Iterator[Reader]:
    """Open `layers` of `model`, which stays untouched meanwhile; for `usual` see `choose`."""
    with untouched(model) as network:
        check_weights(network)
        device, dtype = placement(network)
        rows = survey(network, images.take([0]).to(device, dtype))
        yield Reader(network, images, choose(rows, layers, usual))


def choose(rows: Sequence[Layer], layers: Layers | None, usual: str = "all") -> list[Layer]:
    """Pick layers by number or name.

    None gives the features before the last linear layer and, by `usual`, "all" the numbered layers before them, the
    "first", the "top" (the 5th, or the last if there are fewer) or "none".
    """
    if layers is None:
        numbered = sorted((r for r in rows if r.number is not None), key=lambda r: r.number or 0)[:5]
        some = {"all": numbered, "first": numbered[:1], "top": numbered[-1:], "none": []}[usual]
        found = [*some, last_features(rows)]
    else:
        found = find_all(rows, layers)
    if not found:
        raise OptionError("layers is empty, expected numbers or module paths, or None for the usual ones.")
    return list({row.key: row for row in found}.values())


def last_features(rows: Sequence[Layer]) -> Layer:
    """Return what the last linear layer or convolution reads: the features that the classes are computed from."""
    for place in range(len(rows) - 1, 0, -1):
        if rows[place].kind in WEIGHTED:
            return rows[place - 1]
    raise LayerError(
        "this model has no layer before its last linear one. Name the layers; deconvviz.layers lists them."
    )


def title(layer: Layer) -> str:
    """Return how a result names a layer: its module path, behind its number if it has one."""
    return layer.name if layer.number is None else f"{layer.number}: {layer.name}"


def flat(response: Tensor) -> Tensor:
    """Return one row of float64 numbers per image: (n, units · height · width)."""
    return doubled(response.flatten(1))


def fill_of(images: object, opened: ImageSet, fill: float | None) -> Tensor:
    """Return the border's or mask's colour (C or 1, 1, 1) in the model's input space.

    None is 0 there, which is the mean colour wherever the mean is subtracted. A number is in the images' own space:
    the model's for a tensor, 0–1 pixels for pictures.
    """
    known = opened.preprocess
    if fill is None or isinstance(images, Tensor):
        return torch.tensor([float(fill or 0.0)])[:, None, None]
    if known.mean is None or known.std is None:
        raise OptionError(
            f"fill={fill} is a pixel value, but how this model's preprocessing maps pixels is not known. Give the "
            "images as a tensor in the model's input space, or leave fill out."
        )
    pixels = torch.full((len(known.mean),), float(fill))
    return ((pixels - torch.tensor(known.mean)) / torch.tensor(known.std))[:, None, None]


def labels_of(model: nn.Module, images: ImageSet, labels: object) -> list[Any]:
    """Return one label per image: the given ones, else those that came with the images."""
    found = images.labels if labels is None else labels
    if found is None:
        raise OptionError(
            "the images come without labels. Give labels=, one per image, or a folder with one subfolder per class."
        )
    if isinstance(found, Tensor):
        found = found.tolist()
    found = list(found)  # type: ignore[call-overload]
    if len(found) != len(images):
        raise OptionError(f"there are {len(found)} labels for {len(images)} images, expected one per image.")
    return found


def class_numbers(model: nn.Module, labels: Sequence[Any], classes: int | None = None) -> list[int]:
    """Return labels as class numbers: names are looked for on the model's card, then among the labels themselves.

    Names that the card lacks are numbered in alphabetical order where there are as many of them as `classes`.

    Raises:
        OptionError: A label is no number, a name that is not known, or a number beyond the classes.
    """
    card = getattr(model, "card", None)
    names = [str(c) for c in getattr(card, "classes", None) or ()]
    folders = [str(f) for f in (getattr(card, "training", None) or {}).get("folders", ())]
    own = sorted({label for label in labels if isinstance(label, str)})
    known = [names, folders, own if len(own) == classes else []]
    numbers = []
    for label in labels:
        if isinstance(label, str):
            found = next((listed.index(label) for listed in known if label in listed), None)
            if found is None:
                raise OptionError(f"label {label!r} is no class on the model's card. Give class indices.")
            label = found
        number = whole(label, "label", 0)
        if classes is not None and number >= classes:
            raise OptionError(f"label {number} is beyond the model's {classes} classes, 0 to {classes - 1}.")
        numbers.append(number)
    return numbers
