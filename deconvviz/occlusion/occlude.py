"""Occlusion: cover parts of an image and see what the network's answer depends on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch
from PIL import Image
from torch import Tensor, nn

from ..calls import Call, Called, called
from ..errors import OptionError, UnsupportedOp
from ..guard import check_weights, placement, untouched, unwrapped
from ..images import ImageSet, open_one
from ..model.output import check_output, class_names, known_names
from ..model.survey import describe
from ..model.table import Layer, LayerTable, find
from ..rules import table as rules
from ..tape.operations import Tape
from ..tape.record import record_fast
from ..targets import named
from .answer import Answer, Pass, recorded_answer
from .confirm import TRIALS, Dice, check_repeats
from .fill import Filling
from .meter import Meter, Targets
from .occluder import Occluder, grid, of_masks
from .result import Occlusion
from .scan import Scan, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

TOP = 4  # patches from other images


class Options(TypedDict, total=False):
    """What `occlude` takes beside the model and the image, for type checkers."""

    target: Any
    layer: int | str | None
    size: int | tuple[int, int] | None
    stride: int | tuple[int, int] | None
    fill: Any
    masks: Any
    edge: str
    method: str | None
    preprocess: Any
    call: Call | None
    memory: int | None
    dtype: torch.dtype | None
    refine: int | None
    others: Any
    class_names: Sequence[str] | None
    rule: str
    lrn: str
    allow_gradient: bool
    batch_size: int | None
    workers: int
    progress: bool
    seed: int


@overload
def occlude(model: nn.Module, image: Image.Image, **options: Unpack[Options]) -> Occlusion: ...
@overload
def occlude(model: nn.Module, image: list[Any], **options: Unpack[Options]) -> list[Occlusion]: ...
@overload
def occlude(model: nn.Module, image: Any, **options: Unpack[Options]) -> Any: ...
def occlude(
    model: nn.Module,
    image: Any,
    *,
    target: Any = None,
    layer: int | str | None = None,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: Any = "gray",
    masks: Any = None,
    edge: str = "clip",
    method: str | None = None,
    preprocess: Any = None,
    call: Call | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    refine: int | None = None,
    others: Any = None,
    class_names: Sequence[str] | None = None,
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = True,
    seed: int = 0,
) -> Any:
    """Slide an occluder over an image and measure at each position what the network makes of the rest.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64")
        >>> result = deconvviz.occlude(model, torch.randn(3, 64, 64), size=16, stride=8, progress=False)
        >>> result.probability.shape, result.label.shape, result.attribution().shape
        (torch.Size([7, 7]), torch.Size([7, 7]), torch.Size([64, 64]))

    One scan gives all maps. Only what the occluder can reach is computed again (`method="incremental"`, exact);
    `method="full"` runs the whole network on every occluded image. Both are compared with the network itself, where the
    answer changed most among others: what the fast way cannot do runs in full, and images that see each other in a
    batch run one by one; the result's `note` says why. The model is left as it was, also after Ctrl-C.

    Args:
        model: Any network that returns (N, classes), or anything that a `target` function takes.
        image: (C, H, W) or (N, C, H, W) in the model's input space, a PIL image, a file, a folder, or anything else
            `deconvviz.project` takes.
        target: A class, by number or name; a function of the output, (b, classes) to (b,), or of whatever else the
            model returns (see `deconvviz.targets`; there are no classes then, and `label` is -1); (layer, unit)
            for a unit's summed map; (layer, function of its response (b, units, h, w)); a list of these, measured at
            once; or None, the class that is most probable in the unoccluded image.
        layer: Number or module path of the layer whose strongest map is followed, strongest by its sum over the
            unoccluded image; None takes the deepest that has a number.
        size: Pixels, or (height, width); None: a seventh of the short side, 32 px of 224.
        stride: Pixels between positions, or (down, right); None: half the size. Pixels in no window get no
            attribution.
        fill: "gray": mid-gray in pixel space, whatever the normalization (0 for a tensor if the model's
            preprocessing is not known; `fill_name` says so); a number or one per channel, on the 0–1 scale for
            pictures and in input space for tensors; "mean" of the image; "blur" by half the occluder; "noise" with
            the image's mean and spread; or another image.
        masks: (P, H, W) bool, or 0 (seen) to 1 (covered), in place of a sliding window: superpixels, parts.
        edge: "clip" cuts the last window off at the image's edge: captum's grid, so numbers can be compared.
            "align" moves it back inside, so that every window has the full size.
        method: "incremental", "full", or None: incremental unless a mask is no box, or the network (a transformer)
            cannot be followed for several images at once; the result's `method` says which.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        memory: Bytes for a batch; None: 1 GB on a CPU, half of what is free on a GPU.
        dtype: torch.bfloat16 or float16 to trade accuracy for time; `deviation` reports what it costs.
        refine: Measure every `refine`th position, then all only where the maps change by more than a fifth of their
            range or in label; the rest is interpolated, `measured` is False there.
        others: Images whose top patches for the same unit are shown beside its projection.
        class_names: One per class; None takes those of the zoo's card or torchvision's weights.
        rule: "deconvnet", "guided" or "backprop", of the projections beside the maps; see `project`.
        lrn: "pass" or "gradient", see `project`.
        allow_gradient: Project through operations without a rule as well.
        batch_size: How many of the `others` go through at once; None: see `project`. Occluded images: see `memory`.
        workers: Processes that read the `others`.
        progress: Whether to show a bar with the rate.
        seed: Of the noise.

    Returns:
        An `Occlusion` for one image; a list of them for a batch, a list or a folder.

    Raises:
        OptionError: An occluder larger than the image, a stride of 0, a target out of range, unfit masks …
        ModelError: The output is not (N, classes) and no function of it was given, or not finite; or the same image
            gets another answer each time.
        ImageError, LayerError, UnitError, UnsupportedOp: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.3 and Fig. 7.
        The paper states neither size nor stride.
    """
    settings = Settings(method, memory, dtype, refine, progress)
    targets = Targets.read(target, layer)
    model = called(model, call)
    check_weights(unwrapped(model))
    source, single = _open(model, image, preprocess)
    filling = Filling(fill, model, source, preprocess, seed)
    rules.Saving(rule, lrn, allow_gradient)  # what has no meaning is refused before the scan
    how = {"rule": rule, "lrn": lrn, "allow_gradient": allow_gradient, "batch_size": batch_size, "workers": workers}
    results = []
    for i in range(len(source)):
        taken = source.take([i])
        occluder = _place(masks, taken, size, stride, edge)
        task = _Task(model, taken, occluder, filling, targets, settings, class_names, others, preprocess, how)
        results.append(task.run("occlude" if len(source) == 1 else f"occlude {i + 1}/{len(source)}"))
    return results[0] if single else results


def _open(model: nn.Module, image: Any, preprocess: Any) -> tuple[ImageSet, bool]:
    source = open_one(model, image, preprocess)
    file = isinstance(image, (str, os.PathLike)) and os.path.isfile(image)
    one = isinstance(image, Tensor) and (image.dim() == 3 or len(image) == 1)
    return source, file or one or isinstance(image, Image.Image)


def _place(masks: Any, image: Tensor, size: Any, stride: Any, edge: str) -> Occluder:
    height, width = image.shape[2:]
    if masks is None:
        return grid((height, width), size, stride, edge)
    if size is not None or stride is not None:
        raise OptionError("masks take the place of the window: leave size= and stride= out.")
    return of_masks(masks, (height, width))


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor for a result: on the CPU, float32 or float64."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class _Task:
    """One image (1, C, H, W) and everything that was asked about it."""

    model: nn.Module
    taken: Tensor
    occluder: Occluder
    filling: Filling
    targets: Targets
    settings: Settings
    names: Sequence[str] | None
    others: Any
    preprocess: Any
    how: dict[str, Any]  # of the projections

    def run(self, title: str) -> Occlusion:
        """Scan the image."""
        image = self.taken.to(*placement(self.model))
        fill, fill_name = self.filling.on(self.taken[0], self.occluder.size)
        self.settings.check(self.occluder)
        with untouched(self.model) as network:
            # One pass for all: layers and output now, switches for panel (c), what windows are pasted into.
            dice = Dice(image.device)
            tape = record_fast(network, image, keep=None, saver=rules.Saving())
            if (other := self._other_output(network, tape)) is not None:
                return other.run(title)
            layer = self._layer(tape)
            usual = recorded_answer(tape, layer)
            classes = check_output(usual.output).shape[1]
            names = None if self.targets.measured else class_names(self.model, self.preprocess, self.names, classes)
            meter = exact = self._meter(usual, layer, names)
            if dice.rolled():
                check_repeats(Pass(network, tape, layer, None), usual, TRIALS)
            if self.settings.dtype is not None:
                meter = self._meter(Pass(network, tape, layer, self.settings.dtype).usual(), layer, names)
            shown = self._projections(tape, layer, meter.unit)  # it may refuse, and the scan is long
            scan = Scan(network, tape, fill.to(image), self.occluder, layer, self.settings)
            found = scan.run(meter, title)
            deviation = scan.deviation(found, exact)
        facts: dict[str, Any] = {"fill_name": fill_name, "deviation": deviation, "class_names": names}
        facts |= {"measured": found.measured, "method": found.method, "note": found.note}
        return self._result(meter, layer, found.maps, fill=_on_cpu(fill), **facts, **shown)

    def _other_output(self, network: nn.Module, tape: Tape) -> _Task | None:
        """Return the task for a network whose output is the targets' numbers, where its own is no (1, classes)."""
        if self.targets.measured:
            return None
        scores = tape.output is not None and len(tape.shapes[tape.output]) == 2
        if scores and not (isinstance(network, Called) and network.picked):
            return None
        names = known_names(self.model, self.preprocess, self.names)
        targets = self.targets.of_any_output()
        if targets is None:
            return None
        functions = [named(function, names) for function in self.targets.functions]
        return replace(self, model=called(self.model, None, functions), targets=targets)

    def _layer(self, tape: Tape) -> Layer | None:
        """Return the layer asked for, or the deepest numbered one that comes before the output."""
        rows = describe(tape, unwrapped(self.model))
        if self.targets.layer is not None:
            return find(rows, self.targets.layer)
        numbered = LayerTable(rows, (0, 0, 0)).numbered
        return numbered[-1] if numbered else None

    def _meter(self, usual: Answer, layer: Layer | None, names: Sequence[str] | None) -> Meter:
        targets = self.targets.resolved(check_output(usual.output), layer, names)
        unit = None if usual.response is None else int(usual.response[0].sum((1, 2)).argmax())
        return Meter(targets, unit, usual.output, usual.response, self.targets.measured)

    def _projections(self, tape: Tape, layer: Layer | None, unit: int | None) -> dict[str, Any]:
        """Return the fields for panel (c)."""
        if layer is None or unit is None:
            return {}
        from ..projection.deconv import carry_back, deconv
        from ..projection.project import project

        how = {"layer": layer.name, "preprocess": self.preprocess, "progress": self.settings.progress, **self.how}
        shown: dict[str, Any] = {}
        with contextlib.suppress(UnsupportedOp):  # the maps do not need it
            if (how["rule"], how["lrn"], how["allow_gradient"]) == ("deconvnet", "pass", False):  # as it was recorded
                projection = carry_back(tape, layer, unit)
            else:
                projection = deconv(self.model, self.taken, unit=unit, **how)
            shown["projection"] = _on_cpu(projection[0])
        if self.others is not None:
            found = project(self.model, self.others, units=[unit], k=TOP, **how)
            shown |= {"other_patches": found.patches[0], "other_projections": found.projections[0]}
        return shown

    def _result(self, meter: Meter, layer: Layer | None, maps: dict[str, Tensor], **facts: Any) -> Occlusion:
        names = [target.name for target in meter.targets]
        base = dict(meter.unoccluded)
        if not self.targets.several:
            base |= {name: base[name][0] for name in ("probability", "logit")}
            maps |= {name: maps[name][0] for name in ("probability", "logit")}
        occluder, seen = self.occluder, self.filling.source.preprocess.inverse
        return Occlusion(
            image=_on_cpu(self.taken[0]).clone(),
            rows=occluder.rows,
            cols=occluder.cols,
            size=occluder.size,
            stride=occluder.stride,
            masks=occluder.masks,
            target=tuple(names) if self.targets.several else names[0],
            probability=maps["probability"],
            logit=maps["logit"],
            label=maps["label"],
            activation=maps.get("activation"),
            unoccluded=base,
            layer=None if layer is None else layer.name,
            number=None if layer is None else layer.number,
            unit=meter.unit,
            mean=seen.mean,
            std=seen.std,
            order=seen.order,
            **facts,
        )
