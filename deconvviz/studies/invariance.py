"""How features and probabilities change when the image is moved, scaled or rotated."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once
from ..devices import Portions, doubled
from ..errors import OptionError
from ..images import Images, ImageSet, open_images
from ..model.features import Reader, class_numbers, flat, labels_of, reading, title
from ..model.table import Layers
from ..results.base import Result, Stored, as_columns
from ..results.text import amount
from .transforms import IDENTITY, amounts_of, mover

_SHOWN = 5  # examples of each transformation


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Curve(Stored):
    """One kind of transformation of N images, by A amounts, at L layers.

    Attributes:
        kind: "vertical", "horizontal" (pixels, down and right), "scale" (factor, above 1 enlarges) or "rotation"
            (degrees, counterclockwise).
        amounts: (A,) float64.
        distance: (L, N, A) float64, Euclidean distance of the features of the transformed and the original image.
        probability: (N, A) float64, softmax probability of each image's target.
        examples: (E, 3, H, W) uint8 pixels, the first image transformed by amounts spread over the range.
    """

    kind: str
    amounts: Tensor
    distance: Tensor
    probability: Tensor
    examples: Tensor

    def describe(self) -> str:
        """Say which transformation, how many amounts, layers and images."""
        layers, images, amounts = self.distance.shape
        return f"{self.kind}: {amounts} amounts, {amount(layers, 'layer')}, {amount(images, 'image')}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Invariance(Result):
    """How far each layer's features move, and the target's probability, under transformations of N images.

    Attributes:
        layers: the L layers.
        curves: one `Curve` per kind of transformation; `result["scale"]` picks one.
        norms: (L, N) float64, Euclidean norm of the original features.
        targets: (N,) int64, the classes whose probability is followed.
        original: (N,) float64, their probability for the original images.
    """

    layers: tuple[str, ...]
    curves: tuple[Curve, ...]
    norms: Tensor
    targets: Tensor
    original: Tensor
    holds = (Curve,)
    drawn_by = "invariance"

    def __getitem__(self, kind: str) -> Curve:
        """Return the curve of one kind of transformation."""
        for curve in self.curves:
            if curve.kind == kind:
                return curve
        raise OptionError(f"no {kind!r} in this result, it has {', '.join(c.kind for c in self.curves)}.")

    def relative(self, kind: str) -> Tensor:
        """Return (L, N, A): the distance divided by the norm of the original features (0 / 0 is 0)."""
        distance = self[kind].distance
        return torch.where(distance > 0, distance / self.norms[..., None], 0.0)

    def first_step(self, kind: str) -> Tensor:
        """Return (L,): the mean relative distance at the smallest change there is: how fast the curve leaves 0."""
        change = (self[kind].amounts - IDENTITY[kind]).abs()
        least = change[change > 0].min() if (change > 0).any() else change.new_tensor(math.nan)
        return self.relative(kind).mean(1)[:, change == least].mean(1)

    def linearity(self, kind: str) -> Tensor:
        """Return (L,): R² of the best line through the mean relative distance over the size of the change.

        1 is a straight line; what saturates at once, or goes up and down, has less.
        """
        change = (self[kind].amounts - IDENTITY[kind]).abs()
        x, y = change - change.mean(), self.relative(kind).mean(1)
        y = y - y.mean(1, keepdim=True)
        return (y @ x).square() / (x.square().sum() * y.square().sum(1))

    def plot(
        self,
        figure: Any = None,
        *,
        examples: bool = True,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the paper's Fig. 5; see `deconvviz.plotting.invariance.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, examples=examples, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer, image and amount of each transformation."""
        rows = []
        for curve in self.curves:
            layers, images, amounts = curve.distance.shape
            for layer, image, place in itertools.product(range(layers), range(images), range(amounts)):
                row = {"kind": curve.kind, "amount": float(curve.amounts[place]), "layer": self.layers[layer]}
                row |= {"image_id": image, "distance": float(curve.distance[layer, image, place])}
                row |= {"probability": float(curve.probability[image, place])}
                rows.append(row)
        return as_columns(rows)

    def describe(self) -> str:
        """Say how many images and layers, and which transformations."""
        kinds = ", ".join(curve.kind for curve in self.curves)
        return f"{amount(len(self.targets), 'image')}, {amount(len(self.layers), 'layer')}: {kinds}"

    def table(self) -> str:
        """Return, per transformation and layer, the relative distance at the first step and the most, and R²."""
        lines = [f"{len(self.targets)} images; mean relative distance at the smallest change, at most, R² of a line"]
        for curve in self.curves:
            most = self.relative(curve.kind).mean(1).amax(1)
            numbers = [x.tolist() for x in (self.first_step(curve.kind), most, self.linearity(curve.kind))]
            for name, first, top, line in zip(self.layers, *numbers, strict=True):
                lines.append(f"{curve.kind}, layer {name}: {first:.3g}, {top:.3g}, {line:.3g}")
        return "\n".join(lines)


def invariance(
    model: nn.Module,
    images: Images = None,
    *,
    layers: Layers | None = None,
    transforms: Sequence[str] | Mapping[str, Sequence[float]] = ("vertical", "scale", "rotation"),
    targets: object = None,
    fill: float | str | None = None,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    progress: bool = True,
) -> Invariance:
    """Move, scale and rotate images; measure how far features move and how sure the model stays.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64")
        >>> images = torch.randn(2, 3, 64, 64)
        >>> result = deconvviz.invariance(model, images, transforms={"scale": [1, 1.4, 1.8]}, progress=False)
        >>> result["scale"].distance.shape, result["scale"].probability.shape
        (torch.Size([2, 2, 3]), torch.Size([2, 3]))

    The image as the network sees it, after preprocessing, is resampled bilinearly about its centre. A shift by whole
    pixels copies them; everything else blurs a little, which features of fine detail notice as well. Distances are
    taken between whole feature maps, in float64.

    Args:
        model: The network; left as it was found. Its output (N, classes) counts as logits.
        images: (N, C, H, W) in the model's input space, pictures, a folder, a dataset, or None: the largest window
            of each sample photo.
        layers: Numbers or module paths; None: the first numbered one and the features before the last linear layer
            (layers 1 and 7 of the paper).
        transforms: Kinds out of "vertical", "horizontal", "scale", "rotation" for the default amounts: ±60 of 224
            pixels in proportion, in 25 steps of whole pixels; 1 to 1.8 in 17; 0° to 350° in 36. Or kind to amounts.
        targets: Class index per image; "labels" for the labels that come with the images, which must then be class
            indices or names on the model's card; None: the class that the model finds most probable in the original.
        fill: What comes in from outside: None: 0 in the model's input space, the mean colour where the mean is
            subtracted; a number (in the model's space for a tensor, 0–1 pixels for pictures); "edge" or "reflect".
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar.

    Returns:
        An `Invariance`: `layers`, `curves` (each `amounts` (A,), `distance` (L, N, A), `probability` (N, A)), `norms`
        (L, N), `targets` (N,), `original` (N,); `relative(kind)`, `first_step(kind)`, `linearity(kind)`.

    Raises:
        OptionError: Unknown transformations, amounts, targets or fill.
        ModelError: The output is no (N, classes), or something is not finite.
        LayerError, ImageError: As their names say.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4.1 and Fig. 5.
    """
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    ids = list(range(len(opened))) if images is not None else _largest_windows(opened)
    size = tuple(opened.take(ids[:1]).shape[2:])
    wanted = {kind: torch.tensor(list(a), dtype=torch.float64) for kind, a in amounts_of(transforms, size).items()}
    move = mover(fill, images, opened)
    with reading(model, opened, layers, usual="first") as reader:
        known = _known_targets(model, opened, targets, ids)
        state = _Study(reader, wanted, move, at_once(batch_size, opened.batch_size))
        for place, number in enumerate(tqdm(ids, unit=" images", disable=not progress, desc="invariance")):
            state.add(number, None if known is None else known[place])
        return state.result(opened.invert)


class _Study:
    """Collects the numbers of one image after the other."""

    def __init__(
        self, reader: Reader, wanted: Mapping[str, Tensor], move: Callable[..., Tensor], batch_size: int
    ) -> None:
        self.reader, self.wanted, self.move, self.portions = reader, wanted, move, Portions(batch_size)
        self.norms: list[Tensor] = []
        self.targets: list[int] = []
        self.original: list[Tensor] = []
        self.distance: dict[str, list[Tensor]] = {kind: [] for kind in wanted}
        self.probability: dict[str, list[Tensor]] = {kind: [] for kind in wanted}
        self.first: Tensor | None = None

    def add(self, number: int, target: int | None) -> None:
        """Measure one image."""
        image = self.reader.images.take([number]).to(self.reader.device, self.reader.dtype)
        self.first = image if self.first is None else self.first
        features, output = self.reader.read_with_output(image)
        before = [flat(x) for x in features]
        chance = doubled(output).softmax(1)[0]
        chosen = int(chance.argmax()) if target is None else target
        if not 0 <= chosen < len(chance):
            raise OptionError(f"target {chosen} of image {number}: the model has classes 0 to {len(chance) - 1}.")
        self.norms.append(torch.stack([x.norm() for x in before]).cpu())
        self.targets.append(chosen)
        self.original.append(chance[chosen].cpu())
        for kind, amounts in self.wanted.items():
            measure = partial(self._measure, image, before, chosen, kind)
            parts = list(self.portions.run(measure, amounts))
            self.distance[kind].append(torch.cat([d for d, _ in parts], 1))
            self.probability[kind].append(torch.cat([p for _, p in parts]))

    def _measure(
        self, image: Tensor, before: list[Tensor], target: int, kind: str, amounts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return distances (L, a) and probabilities (a,) for some amounts."""
        features, output = self.reader.read_with_output(self.move(image, kind, amounts))
        distance = torch.stack([(flat(x) - y).norm(dim=1) for x, y in zip(features, before, strict=True)])
        return distance.cpu(), doubled(output).softmax(1)[:, target].cpu()

    def result(self, invert: Callable[[Tensor], Tensor]) -> Invariance:
        """Return what was collected."""
        assert self.first is not None
        curves = []
        for kind, amounts in self.wanted.items():
            spread = amounts[torch.linspace(0, len(amounts) - 1, min(_SHOWN, len(amounts))).round().long()]
            seen = invert(self.move(self.first, kind, spread)).mul(255).round().byte()
            distance = torch.stack(self.distance[kind], 1)
            curves.append(Curve(kind, amounts, distance, torch.stack(self.probability[kind]), seen))
        names = tuple(title(layer) for layer in self.reader.layers)
        return Invariance(
            names,
            tuple(curves),
            torch.stack(self.norms, 1),
            torch.tensor(self.targets),
            torch.stack(self.original),
        )


def _known_targets(model: nn.Module, images: ImageSet, targets: object, ids: Sequence[int]) -> list[int] | None:
    """Return the class of each of the images `ids`, or None: the most probable ones."""
    if targets is None:
        return None
    if isinstance(targets, str):
        if targets != "labels":
            raise OptionError(f"targets={targets!r}: expected class indices, 'labels' or None.")
        every = labels_of(model, images, None)
        labels = [every[i] for i in ids]
    else:
        labels = list(targets) if isinstance(targets, Iterable) else [targets]
        if len(labels) != len(ids):
            raise OptionError(f"there are {len(labels)} targets for {len(ids)} images, expected one per image.")
    return class_numbers(model, labels)


def _largest_windows(images: ImageSet) -> list[int]:
    """Return the first window of each sample photo: the photo as a whole."""
    labels = images.labels or []
    return sorted({label: labels.index(label) for label in labels}.values())
