"""Whether a network relates the same part in different images: the ZFNet paper's Table 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once, whole
from ..devices import Portions, doubled
from ..errors import ImageError, OptionError
from ..images import Images, open_images
from ..model.features import Reader, fill_of, reading, title
from ..model.table import Layers
from ..results.base import Result
from ..results.text import amount, as_text

ROUNDING = 1e-6  # of an image's largest feature: a smaller change is no change


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Correspondence(Result):
    """How differently masking a part changes the features of N images, for L layers and P parts.

    Each number is a share of a layer's elements: how many signs of the change differ between two images. The smaller,
    the more the part means the same to the network in both images.

    Attributes:
        layers: the L layers.
        parts: the P parts' names.
        count: N.
        pairs: (L, P, N (N - 1) / 2) float64, for each pair of images i < j.
        random_pairs: (L, P, draws, N (N - 1) / 2) float64, with boxes of the same sizes at random places instead.
        changed: (L, P) float64, the share of elements that the mask changes at all. A mask that changes nothing
            corresponds perfectly: compare figures whose `changed` is alike.
        random_changed: (L, P) float64, that of the control.
        boxes: (P, N, 4) int64, (top, left, bottom, right) in pixels of the network's input.
    """

    layers: tuple[str, ...]
    parts: tuple[str, ...]
    count: int
    pairs: Tensor
    random_pairs: Tensor
    changed: Tensor
    random_changed: Tensor
    boxes: Tensor
    drawn_by = "correspondence"

    @property
    def mean(self) -> Tensor:
        """(L, P): Δ per pair and per element, the figures of Table 1."""
        return self.pairs.mean(-1)

    @property
    def std(self) -> Tensor:
        """(L, P): their standard deviation over the pairs (divided by the number of pairs)."""
        return self.pairs.std(-1, correction=0)

    @property
    def random_mean(self) -> Tensor:
        """(L, P): the control, over pairs and draws."""
        return self.random_pairs.mean((-2, -1))

    @property
    def random_std(self) -> Tensor:
        """(L, P): the control's standard deviation over pairs and draws."""
        return self.random_pairs.flatten(2).std(-1, correction=0)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each part in each layer."""
        found: dict[str, Any] = {"layer": [layer for layer in self.layers for _ in self.parts]}
        found["part"] = list(self.parts) * len(self.layers)
        for name in ("mean", "std", "random_mean", "random_std", "changed", "random_changed"):
            found[name] = getattr(self, name).flatten()
        return found

    def describe(self) -> str:
        """Say how many images, parts and layers."""
        return f"{amount(self.count, 'image')}: {amount(len(self.parts), 'part')}, {amount(len(self.layers), 'layer')}"

    def table(self) -> str:
        """Return Table 1: a row per layer, a column per part and one for each control."""
        head = ["", *(f"{p}{suffix}" for p in self.parts for suffix in ("", " (random)"))]
        rows = []
        for i, layer in enumerate(self.layers):
            cells = []
            for j in range(len(self.parts)):
                cells.append(f"{self.mean[i, j]:.3f} ± {self.std[i, j]:.3f}")
                cells.append(f"{self.random_mean[i, j]:.3f} ± {self.random_std[i, j]:.3f}")
            rows.append([layer, *cells])
        return as_text(head, rows)


def correspondence(
    model: nn.Module,
    images: Images,
    *,
    parts: Mapping[str, Sequence[Sequence[int]] | Tensor],
    layers: Layers | None = None,
    draws: int = 20,
    fill: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    progress: bool = True,
) -> Correspondence:
    """Mask the same part in several images and compare how their features change.

    Example:
        >>> import deconvviz, torch
        >>> images = torch.randn(3, 3, 64, 64)
        >>> eyes = {"left eye": [(10, 8, 20, 18), (12, 30, 22, 40), (5, 5, 15, 15)]}
        >>> model = deconvviz.zoo.create("zfnet64")
        >>> result = deconvviz.correspondence(model, images, parts=eyes, draws=4, progress=False)
        >>> result.mean.shape, result.pairs.shape, result.random_pairs.shape
        (torch.Size([2, 1]), torch.Size([2, 1, 3]), torch.Size([2, 1, 4, 3]))

    With features x of an image and x̃ of the image with the part masked, ε = x − x̃, the paper's measure is
    Δ = Σ_{i≠j} Hamming(sign ε_i, sign ε_j). Here it is the mean over pairs, and per element of the layer, as the
    paper's numbers are.

    The sign has three values. Most features after a ReLU are 0 in both images; their ε is 0, and 0 agrees with 0 and
    differs from + and −. A change below 1e-6 of the image's largest feature is rounding and counts as 0.

    Args:
        model: The network; left as it was found.
        images: N ≥ 2 images: (N, C, H, W) in the model's input space, pictures, a folder or a dataset.
        parts: Name to N boxes (top, left, bottom, right), half-open, in pixels of the network's input, after
            preprocessing: one per image, in their order.
        layers: Numbers or module paths; None: the 5th or else the last numbered one, and the features before the last
            linear layer (layers 5 and 7 of the paper).
        draws: How many random sets of boxes per part; each has the sizes of the part's boxes, so equal areas, and
            may lie anywhere in its image.
        fill: The mask's colour; None: 0 in the model's input space, the mean colour where the mean is subtracted; a
            number is in the model's space for a tensor, 0–1 pixels for pictures.
        seed: Of the random boxes.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 32.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar.

    Returns:
        A `Correspondence`: `mean`, `std`, `random_mean`, `random_std` (L, P), `pairs` (L, P, N (N − 1) / 2),
        `random_pairs` (L, P, draws, N (N − 1) / 2), `changed` and `random_changed` (L, P), `boxes` (P, N, 4); prints
        as the table.

    Raises:
        ImageError: Fewer than 2 images, or not all of one size.
        OptionError: Boxes that do not fit the images, or no parts.
        LayerError, ModelError: As their names say.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4.3 and Table 1.
    """
    draws = whole(draws, "draws", 1)
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    if len(opened) < 2:
        raise ImageError(f"there is {len(opened)} image, expected at least 2: the measure compares pairs.")
    pixels = opened.take(range(len(opened)))
    boxes = _boxes(parts, len(pixels), pixels.shape[2:])
    ground = fill_of(images, opened, fill)
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.cat([b[None], _anywhere(b, draws, pixels.shape[2:], generator)]) for b in boxes]  # (1 + draws, N, 4)
    with reading(model, opened, layers, usual="top") as reader:
        signs = _Signs(reader, pixels, ground, at_once(batch_size, opened.batch_size, usual=32))
        with tqdm(total=sum(map(len, sets)), unit=" masks", disable=not progress, desc="correspondence") as bar:
            found = [torch.stack([_counted(signs, b, bar) for b in part], 1) for part in sets]
        names = tuple(title(layer) for layer in reader.layers)
    numbers = torch.stack(found, 1)  # (L, P, 1 + draws, pairs + 1)
    both, changed = numbers[..., :-1], numbers[..., -1]
    shares = changed[:, :, 0], changed[:, :, 1:].mean(2)
    return Correspondence(names, tuple(map(str, parts)), len(pixels), both[:, :, 0], both[:, :, 1:], *shares, boxes)


def _counted(signs: _Signs, boxes: Tensor, bar: Any) -> Tensor:
    """Return (L, pairs + 1) for one set of boxes (N, 4); the last is the share of elements that change."""
    bar.update(1)
    found = signs.of(boxes)
    changed = torch.tensor([int(x.count_nonzero()) / x.numel() for x in found], dtype=torch.float64)
    return torch.cat([torch.stack([hamming(x) for x in found]), changed[:, None]], 1)


def hamming(signs: Tensor) -> Tensor:
    """Return (N (N - 1) / 2,) float64: the share of differing elements of each two rows of int8 (N, D), i < j."""
    first, second = torch.triu_indices(len(signs), len(signs), 1)
    # Row by row: all pairs at once would be N times the features.
    shares = [doubled(signs[i] != signs[j]).mean() for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    return torch.stack(shares).cpu()


class _Signs:
    """The signs of ε for masks on the same images."""

    def __init__(self, reader: Reader, pixels: Tensor, ground: Tensor, batch_size: int) -> None:
        self.reader, self.pixels, self.ground, self.portions = reader, pixels, ground, Portions(batch_size)
        self.plain = self._read(pixels)

    def _read(self, pixels: Tensor) -> list[list[Tensor]]:
        """Return each layer's features (n, D), batch by batch."""

        def some(numbers: Tensor) -> list[Tensor]:
            batch = pixels[numbers].to(self.reader.device, self.reader.dtype)
            return [x.flatten(1) for x in self.reader.read(batch)]

        return list(self.portions.run(some, torch.arange(len(pixels))))

    def of(self, boxes: Tensor) -> list[Tensor]:
        """Return each layer's int8 (N, D): the sign of ε when `boxes` (N, 4) are masked."""
        masked = self.pixels.clone()
        for image, (top, left, bottom, right) in zip(masked, boxes.tolist(), strict=True):
            image[:, top:bottom, left:right] = self.ground
        # The same batches as without the mask: their rounding is the same, too.
        size, found = self.portions.most, self._read(masked)
        if self.portions.most != size:
            self.plain, found = self._read(self.pixels), self._read(masked)
        pairs = zip(self.plain, found, strict=True)
        pieces = [[sign(x, y) for x, y in zip(plain, part, strict=True)] for plain, part in pairs]
        return [torch.cat(layer) for layer in zip(*pieces, strict=True)]


def sign(features: Tensor, masked: Tensor) -> Tensor:
    """Return int8 (N, D): the sign of features − masked, 0 where they differ by no more than rounding."""
    change = features - masked
    least = ROUNDING * torch.maximum(features.abs(), masked.abs()).amax(1, keepdim=True)
    return torch.where(change.abs() > least, change.sign(), 0.0).to(torch.int8)


def _boxes(parts: Mapping[str, Any], count: int, size: Sequence[int]) -> Tensor:
    """Check the boxes and return (P, N, 4)."""
    if not isinstance(parts, Mapping) or not parts:
        raise OptionError(f"parts is {parts!r:.60}, expected a dict of names and boxes, one box per image.")
    found = []
    for name, boxes in parts.items():
        given = [tuple(int(x) for x in box) for box in boxes]
        if len(given) != count or any(len(box) != 4 for box in given):
            raise OptionError(
                f"part {name!r} has {len(given)} boxes for {count} images; expected one for each: (top, left, "
                "bottom, right)."
            )
        for number, (top, left, bottom, right) in enumerate(given):
            if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
                raise OptionError(
                    f"part {name!r}, image {number}: box {given[number]} does not lie in an image of "
                    f"{size[0]}×{size[1]}; expected 0 <= top < bottom <= height and 0 <= left < right <= width."
                )
        found.append(torch.tensor(given))
    return torch.stack(found)


def _anywhere(boxes: Tensor, draws: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return (draws, N, 4): boxes of the same heights and widths, anywhere in their images."""
    extent = boxes[:, 2:] - boxes[:, :2]
    room = torch.tensor(list(size)) - extent + 1
    corner = (torch.rand(draws, len(boxes), 2, generator=generator, dtype=torch.float64) * room).long()
    return torch.cat([corner, corner + extent], -1)
