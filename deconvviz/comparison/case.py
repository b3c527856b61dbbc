"""The number that is explained: of a class or a unit, in one network, for one image."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calls.called import name_of
from ..checks import is_whole
from ..errors import LayerError, ModelError, OptionError, UnitError
from ..model.output import check_output, class_names
from ..model.survey import survey
from ..model.table import Layer, LayerTable, find
from ..rules.kinds import MAPS, Kind
from ..tape.receptive_field import Reach, Span
from ..tape.record import record
from ..targets import class_number

# (the network, the image (1, C, H, W), the explained number of images: (N, C, H, W) -> (N,)) -> (C, H, W) or (H, W)
Own = Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class Start:
    """The number that is explained: one unit of `layer` at one position; a class is a unit of the output."""

    layer: Layer
    unit: int
    position: tuple[int, int]
    module: str | None  # which returns the layer; None: the network itself
    name: str = ""  # of a function of the output

    @property
    def title(self) -> str:
        """How the result names it."""
        if self.name:
            return self.name
        if self.module is None:
            return f"class {self.unit}"
        place = "" if self.layer.reach.dims is None else f" at {self.position[0]}, {self.position[1]}"
        return f"unit {self.unit} of layer {self.layer.name}{place}"

    def pick(self, response: Tensor) -> Tensor:
        """Return the number for each of N recorded responses, or outputs: (N,)."""
        return self.layer.as_maps(response)[:, self.unit, self.position[0], self.position[1]]


@dataclass(frozen=True)
class Case:
    """A network of our own, an image (1, C, H, W) and the number to explain; what single methods need besides."""

    network: nn.Module
    image: Tensor
    start: Start
    cam: str | None = None  # the module whose maps Grad-CAM weighs
    occluder: Mapping[str, Any] | None = None
    steps: int = 50

    def number(self, images: Tensor) -> Tensor:
        """Return the explained number of each image, (N,), through autograd if that is on."""
        images = images.clone()  # a model may change its input in place, which a leaf does not allow
        if self.start.module is None:
            return self.start.pick(self.network(images))
        with _output_of(self.network.get_submodule(self.start.module)) as found:
            self.network(images)
        return self.start.pick(found[-1])

    def leaf(self) -> Tensor:
        """Return the image as captum wants it."""
        return self.image.detach().clone().requires_grad_()


@contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def start_of(network: nn.Module, image: Tensor, target: Any, preprocess: Any = None) -> tuple[Start, tuple[Layer, ...]]:
    """Return the number that `target` names, and the layers that run; must be called inside `untouched`."""
    rows = survey(network, image)
    if isinstance(target, tuple) and len(target) == 2:
        return _unit(network, image, find(rows, target[0]), target[1]), rows
    name = name_of(target) if callable(target) else ""
    target = 0 if name else target
    number = record(network, image).output
    tape = record(network, image, keep=() if number is None else [number])
    output = check_output(tape.kept.get(-1 if number is None else number))
    classes = output.shape[1]
    if target is None:
        target = int(output[0].argmax())
    if isinstance(target, str):
        target = class_number(target, class_names(network, preprocess, None, classes))
    if not is_whole(target):
        raise OptionError(
            f"target={target!r} has no meaning here. Give a class by number or name, (layer, unit), (layer, None), a "
            "function of what the model returns, or None."
        )
    unit = int(target)
    if not 0 <= unit < classes:
        raise OptionError(f"target {unit} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
    assert number is not None
    height, width = image.shape[2:]
    whole = Reach(Span.of_input(height).whole(1), Span.of_input(width).whole(1), None)
    layer = Layer("output", None, "output", classes, 1, 1, (height, width), None, ("output",), number, whole)
    return Start(layer, unit, (0, 0), None, name), rows


def _unit(network: nn.Module, image: Tensor, layer: Layer, wanted: Any) -> Start:
    module = _module(layer)
    if module is None:
        raise LayerError(
            f"layer {layer.name!r} is not what one module returns in its only call, and captum's methods start at "
            "modules. Choose another layer; deconvviz.layers lists them."
        )
    tape = record(network, image, until=layer.value, keep=[layer.value])
    maps = layer.as_maps(tape.kept[layer.value])[0]
    if not torch.isfinite(maps).all():
        raise ModelError(f"the response of layer {layer.name!r} holds NaN or infinity. Look for an overflow.")
    wanted = maps.flatten(1).amax(1).argmax() if wanted is None else wanted
    if not is_whole(wanted) or not 0 <= int(wanted) < layer.units:
        raise UnitError(f"unit {wanted!r} is out of range: layer {layer.name!r} has units 0 to {layer.units - 1}.")
    unit = int(wanted)
    row, col = divmod(int(maps[unit].argmax()), layer.width)
    return Start(layer, unit, (row, col), module)


def _module(layer: Layer) -> str | None:
    """Return a module that runs once and returns the layer."""
    names = [name for name in layer.aliases if not re.search(r"[:#\[]", name)]
    return min(names, key=len, default=None)


def cam_module(rows: Sequence[Layer], start: Start, wanted: int | str | None) -> str:
    """Return the module whose maps Grad-CAM weighs: the layer asked for, or the deepest one with a number.

    Where that is no module's result, such as a functional ReLU's, the last of `MAPS` with several positions takes its
    place.
    """
    fit = [r for r in rows if r.value < start.layer.value and r.reach.dims == (2, 3) and _module(r)]
    if wanted is not None:
        layer = find(rows, wanted)
        if layer not in fit:
            raise LayerError(
                f"Grad-CAM cannot use layer {layer.name!r}: expected a module that runs once, before the target, and "
                f"returns maps (N, units, height, width), such as {', '.join(r.name for r in fit[-5:]) or 'none here'}."
            )
    else:
        numbered = [r for r in LayerTable(tuple(rows), (0, 0, 0)).numbered if r.value < start.layer.value]
        layers = [numbered[-1]] if numbered and numbered[-1] in fit else [r for r in fit if r.kind in MAPS]
        if not any(r.kind == Kind.CONVOLUTION for r in fit):
            raise LayerError(
                "Grad-CAM needs a convolution before the target, and this model has none. Leave it out: "
                "compare_methods(…, methods=[…])."
            )
        layer = ([r for r in layers if r.height * r.width > 1] or layers)[-1]
    name = _module(layer)
    assert name is not None
    return name
