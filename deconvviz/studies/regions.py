"""The regions of images that excite a unit most, as R-CNN shows them: a unit as a detector of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once, check_on_error, whole, wholes
from ..devices import Portions
from ..errors import ImageError, OptionError, UnitError, UnreadableImage
from ..guard import check_weights, placement, untouched
from ..images import Images, ImageSet, open_images, preprocess_for
from ..images.preprocess import input_size
from ..model.features import Reader
from ..model.survey import survey
from ..model.table import find_all
from ..results.base import Result
from ..results.text import amount, as_text, layer_name, skipped_lines

_CONTEXT = 16 / 227  # R-CNN's pixels around a region, of its input's side
_SIDES = (1.0, 0.7, 0.5, 0.35)  # of the windows, as parts of the image's shorter side
_SHAPES = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopRegions(Result):
    """The k regions that excite each of U units most.

    Attributes:
        layer: module path of the layer.
        number: its number, or None.
        units: (U,) int64.
        values: (U, k) the unit's response to the region, strongest first; NaN where there are fewer.
        image_ids: (U, k) int64, -1 where there are fewer.
        boxes: (U, k, 4) int64, top, left, bottom and right of the region in its image's own pixels.
        patches: (U, k, 3, H, W) uint8, the region and what surrounds it, as the network saw it.
        fields: (U, k, 4) int64, the part of the patch that the response depends on.
        names: of all images.
        count: how many regions were seen.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    layer: str
    number: int | None
    units: Tensor
    values: Tensor
    image_ids: Tensor
    boxes: Tensor
    patches: Tensor
    fields: Tensor
    names: tuple[str, ...]
    count: int
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "regions"

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each region; `rank` starts at 0, the box is in the image's pixels."""
        units, k = self.values.shape
        there = (self.image_ids >= 0).flatten()
        unit, rank = self.units.repeat_interleave(k)[there], torch.arange(k).repeat(units)[there]
        ids = self.image_ids.flatten()[there]
        found: dict[str, Any] = {"unit": unit, "rank": rank, "value": self.values.flatten()[there], "image_id": ids}
        found["name"] = [self.names[i] for i in ids.tolist()]
        sides = ("top", "left", "bottom", "right")
        return found | dict(zip(sides, self.boxes.flatten(0, 1)[there].unbind(1), strict=True))

    def describe(self) -> str:
        """Say of which layer, how many units and regions."""
        units, k = self.values.shape
        return f"{layer_name(self.layer, self.number)}: {amount(units, 'unit')} × {k} of {amount(self.count, 'region')}"

    def table(self) -> str:
        """Return a line per unit: its strongest region."""
        lines = []
        for unit, values, ids, boxes in zip(self.units, self.values, self.image_ids, self.boxes, strict=True):
            if ids[0] >= 0:
                box = ", ".join(map(str, boxes[0].tolist()))
                lines.append((str(int(unit)), f"{float(values[0]):.4g}", self.names[int(ids[0])], box))
        head = "unit", "response", "image", "top, left, bottom, right"
        return "\n".join([self.describe(), as_text(head, lines), *skipped_lines(self.skipped)])


def top_regions(
    model: nn.Module,
    images: Images = None,
    *,
    layer: int | str,
    units: Sequence[int] | str | None = None,
    boxes: Sequence[Any] | None = None,
    position: tuple[int, int] | None = None,
    k: int = 9,
    overlap: float = 0.3,
    context: int | None = None,
    batch_size: int | None = None,
    preprocess: object = None,
    on_error: str = "raise",
    progress: bool = True,
    call: Call | None = None,
) -> TopRegions:
    """Find the regions of images that excite units most, each region warped to the network's input by itself.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64")
        >>> images = torch.randn(2, 3, 96, 128)
        >>> result = deconvviz.top_regions(model, images, layer=5, units=[0, 7], k=3, progress=False)
        >>> result.values.shape, result.boxes.shape, result.patches.shape
        (torch.Size([2, 3]), torch.Size([2, 3, 4]), torch.Size([2, 3, 3, 64, 64]))

    Each region is dilated by some context, brought to the size of the network's input whatever its shape, and run
    by itself; what lies outside of the image is the mean colour. Regions of one image are thinned out for each unit:
    one that overlaps a stronger one is left out. `top` and `project` look at whole images instead.

    Args:
        model: The network; left as it was found.
        images: Pictures, a folder or a dataset, in their own resolution; (N, C, H, W) in the model's input space;
            None: the sample photos.
        layer: Number or module path.
        units: Numbers, "all" or None: 16 spread evenly.
        boxes: For each image the regions (R, 4): top, left, bottom, right in the image's own pixels; None: windows of
            several sizes and shapes, half a window apart.
        position: Row and column in the layer's map, as R-CNN's units have one; None: each region's strongest.
        k: Regions per unit.
        overlap: Intersection over union from which the weaker of two regions is left out.
        context: Pixels of the network's input around a region; None: R-CNN's 16 of 227, in proportion.
        batch_size: Regions per forward pass; None: what a `DataLoader` says, else 64.
        preprocess: How a picture becomes the model's input, where the model does not say.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        A `TopRegions`: `values` (U, k), `image_ids` (U, k), `boxes` (U, k, 4), `patches` (U, k, 3, H, W), `fields`.

    Raises:
        OptionError: Boxes outside of their image, an overlap that is no share, …
        UnitError, LayerError, ImageError, ModelError: As their names say.

    Source: Girshick et al., "Rich Feature Hierarchies for Accurate Object Detection", CVPR 2014, section 3.1, Fig. 4,
    and appendix A for the warping.
    """
    model = called(model, call)
    k = whole(k, "k", 1)
    check_on_error(on_error)
    if not 0 <= overlap <= 1:
        raise OptionError(f"overlap={overlap!r}: expected a share from 0 to 1.")
    opened = _open(model, images, preprocess)
    if boxes is not None and len(boxes) != len(opened):
        raise OptionError(f"boxes holds {len(boxes)} lists for {len(opened)} images, expected one for each.")
    size = input_size(model, opened.preprocess.size if images is None else _usual_size(model, preprocess))
    around = round(_CONTEXT * min(size[1:])) if context is None else whole(context, "context", 0)
    if 2 * around >= min(size[1:]):
        raise OptionError(f"context={around} leaves nothing of an input of {size[1]}×{size[2]} pixels to the region.")
    device, dtype = placement(model)
    with untouched(model) as network:
        check_weights(network)
        rows = survey(network, torch.zeros(1, *size, device=device, dtype=dtype))
        (row,) = find_all(rows, [layer])
        chosen = row.choose(units)
        place = None if position is None else _position(position, row.height, row.width)
        most = at_once(batch_size, opened.batch_size)
        search = _Search(Reader(network, opened, [row]), chosen, place, k, float(overlap), most)
        skipped: list[tuple[int, str]] = []
        for number in tqdm(range(len(opened)), unit=" images", desc="top regions", disable=not progress):
            try:
                image = opened.take([number])[0]
            except UnreadableImage as error:
                if on_error == "raise":
                    raise
                skipped.append((number, str(error)))
                continue
            regions = _windows(*image.shape[1:]) if boxes is None else _checked(boxes[number], image, number)
            search.add(number, image, regions, size[1:], around)
    if len(skipped) == len(opened):
        raise opened.unreadable()
    patches, fields = search.patches(opened, size[1:], around, row)
    return TopRegions(
        row.name,
        row.number,
        torch.tensor(chosen),
        search.values,
        search.ids,
        search.boxes,
        patches,
        fields,
        tuple(opened.names),
        search.count,
        tuple(skipped),
    )


def _open(model: nn.Module, images: Images, preprocess: object) -> ImageSet:
    """Open pictures in their own resolution, where how they are normalized is known."""
    usual = open_images(model, images, preprocess)
    if images is None or isinstance(images, ImageSet) or not usual.are_pictures:
        return usual
    known = preprocess_for(model, preprocess)
    if known.transform is not None:
        raise OptionError(
            "regions need a preprocessing that is known; this one is a function of yours. Give "
            "deconvviz.images.Preprocess(size, resize, mean, std)."
        )
    return open_images(model, images, dataclasses.replace(known, size=None, resize=None))


def _usual_size(model: nn.Module, preprocess: object) -> tuple[int, int] | None:
    try:
        return preprocess_for(model, preprocess).size
    except ImageError:
        return None


def _position(position: Any, height: int, width: int) -> tuple[int, int]:
    numbers = wholes(position, "position") if isinstance(position, (tuple, list)) else []
    if len(numbers) != 2 or not (0 <= numbers[0] < height and 0 <= numbers[1] < width):
        raise UnitError(f"position={position!r}: expected (row, column) within a map of {height}×{width}.")
    return numbers[0], numbers[1]


def _windows(height: int, width: int) -> Tensor:
    """Return boxes (R, 4) of several sizes and shapes that cover an image, half a window apart."""
    found = []
    for side in _SIDES:
        for tall, wide in _SHAPES:
            h, w = (max(1, round(side * part * min(height, width))) for part in (tall, wide))
            starts = [
                torch.linspace(0, length - own, 1 + math.ceil(2 * (length - own) / own)).round().long().tolist()
                for length, own in ((height, h), (width, w))
            ]
            found += [(top, left, top + h, left + w) for top in starts[0] for left in starts[1]]
    return torch.tensor(list(dict.fromkeys(found)))


def _checked(boxes: Any, image: Tensor, number: int) -> Tensor:
    regions = torch.as_tensor(boxes)
    if regions.numel() == 0:
        return torch.zeros(0, 4, dtype=torch.int64)
    height, width = image.shape[1:]
    good = regions.dim() == 2 and regions.shape[1] == 4 and not regions.is_floating_point()
    if good:
        top, left, bottom, right = regions.long().unbind(1)
        good = bool(
            ((top >= 0) & (left >= 0) & (top < bottom) & (left < right) & (bottom <= height) & (right <= width)).all()
        )
    if not good:
        raise OptionError(
            f"the boxes of image {number}: expected whole numbers (R, 4), top, left, bottom, right, within its "
            f"{height}×{width} pixels."
        )
    return regions.long()


def warped(image: Tensor, box: Tensor, size: tuple[int, int], around: int) -> Tensor:
    """Bring a box of an image (C, H, W), with `around` pixels of the result beside it, to (C, *size).

    What lies outside of the image is 0, the mean colour of the model's input space.
    """
    (top, left, bottom, right), (height, width) = box.tolist(), size
    down = around * (bottom - top) / (height - 2 * around)
    across = around * (right - left) / (width - 2 * around)
    up, down = round(top - down), round(bottom + down)
    start, end = round(left - across), round(right + across)
    frame = image.new_zeros(image.shape[0], max(1, down - up), max(1, end - start))
    rows = slice(max(up, 0), min(down, image.shape[1]))
    cols = slice(max(start, 0), min(end, image.shape[2]))
    inside = image[:, rows, cols]
    frame[:, rows.start - up :, cols.start - start :][:, : inside.shape[1], : inside.shape[2]] = inside
    return F.interpolate(frame[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


class _Search:
    """Keeps the strongest regions of each unit, image by image."""

    def __init__(
        self,
        reader: Reader,
        units: list[int],
        place: tuple[int, int] | None,
        k: int,
        overlap: float,
        most: int,
    ) -> None:
        self.reader, self.units, self.place, self.k, self.overlap = reader, units, place, k, overlap
        self.portions = Portions(most)
        shape = (len(units), k)
        self.values = torch.full(shape, math.nan, dtype=torch.float64)
        self.ids = torch.full(shape, -1)
        self.boxes = torch.zeros(*shape, 4, dtype=torch.int64)
        self.places = torch.zeros(*shape, 2, dtype=torch.int64)
        self.count = 0

    def add(self, number: int, image: Tensor, regions: Tensor, size: tuple[int, int], around: int) -> None:
        """Take in one image's regions (R, 4)."""
        from torchvision.ops import nms

        if not len(regions):
            return
        self.count += len(regions)

        def ask(some: Tensor) -> tuple[Tensor, Tensor]:
            batch = torch.stack([warped(image, box, size, around) for box in some])
            (maps,) = self.reader.read(batch.to(self.reader.device, self.reader.dtype))
            maps = maps[:, self.units].cpu().double()
            flat = maps.flatten(2)
            where = flat.argmax(2) if self.place is None else torch.full(flat.shape[:2], self._flat(maps.shape[3]))
            strongest = flat.gather(2, where[..., None])[..., 0]
            return strongest, torch.stack([where // maps.shape[3], where % maps.shape[3]], -1)

        value, place = map(torch.cat, zip(*self.portions.run(ask, regions), strict=True))
        corners = regions[:, [1, 0, 3, 2]].double()
        for unit in range(len(self.units)):
            kept = nms(corners, value[:, unit], self.overlap)[: self.k]
            self._merge(unit, value[kept, unit], number, regions[kept], place[kept, unit])

    def _flat(self, width: int) -> int:
        assert self.place is not None
        return self.place[0] * width + self.place[1]

    def _merge(self, unit: int, values: Tensor, number: int, boxes: Tensor, places: Tensor) -> None:
        """Put an image's survivors among a unit's strongest; of equal ones the earlier image's come first."""
        all_values = torch.cat([self.values[unit], values])
        order = all_values.nan_to_num(-math.inf).argsort(descending=True, stable=True)[: self.k]
        self.values[unit] = all_values[order]
        self.ids[unit] = torch.cat([self.ids[unit], torch.full((len(values),), number)])[order]
        self.boxes[unit] = torch.cat([self.boxes[unit], boxes])[order]
        self.places[unit] = torch.cat([self.places[unit], places])[order]

    def patches(self, images: ImageSet, size: tuple[int, int], around: int, row: Any) -> tuple[Tensor, Tensor]:
        """Return what the network saw of each region, as pixels, and the part of it that the response depends on."""
        patches = torch.full((*self.ids.shape, 3, *size), 255, dtype=torch.uint8)
        for number in self.ids[self.ids >= 0].unique().tolist():
            image = images.take([number])[0]
            for unit, rank in (self.ids == number).nonzero().tolist():
                seen = images.invert(warped(image, self.boxes[unit, rank], size, around)[None])[0]
                patches[unit, rank] = seen.clamp(0, 1).mul(255).round().byte()
        fields = torch.from_numpy(row.reach.boxes(self.places.numpy()))
        return patches, torch.where(self.ids[..., None] >= 0, fields, 0)
