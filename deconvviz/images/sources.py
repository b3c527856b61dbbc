"""Where images come from: each source maps a list of ids to a tensor (n, C, H, W), and opens itself.

`open` takes what a user called images and returns the finished `ImageSet`, or None if it is of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from ..errors import ImageError, UnreadableImage
from ..guard import unwrapped
from .image_set import ImageSet
from .preprocess import Preprocess, checked, preprocess_for


class Tensors:
    """Images in the model's input space already."""

    parallel = pictures = False

    def __init__(self, images: Tensor) -> None:
        self.images = images

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take a tensor (N, C, H, W)."""
        if not isinstance(images, Tensor):
            return None
        source = cls(check_batch(images.detach(), model))
        known = known_or_none(model, preprocess)
        if known is not None:
            _check_range(source.images, known)
            return ImageSet(source, known)
        # Shown as they are if they look like pixels, else all on one scale: the tensor's minimum to its maximum.
        low, high = float(source.images.amin()), float(source.images.amax())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        channels = images.shape[1]
        shown = Preprocess(None, None, (low,) * channels, ((high - low) or 1.0,) * channels, source="not known")
        return ImageSet(source, shown)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        if ids[-1] - ids[0] == len(ids) - 1 and list(ids) == list(range(ids[0], ids[-1] + 1)):
            return self.images[ids[0] : ids[-1] + 1]  # a batch: no copy
        return self.images[torch.as_tensor(ids, dtype=torch.long)]

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        yield self.images


class Pictures:
    """PIL images."""

    parallel, pictures = False, True

    def __init__(self, given: Sequence[Image.Image], preprocess: Preprocess) -> None:
        self.given, self.preprocess = given, preprocess

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take a PIL image or a list of them."""
        given = [images] if isinstance(images, Image.Image) else images
        if not isinstance(given, (list, tuple)) or not all(isinstance(i, Image.Image) for i in given):
            return None
        if not given:
            raise ImageError("no images: the list is empty, expected at least one.")
        known = preprocess_for(model, preprocess)
        return ImageSet(cls(given, known), known)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        return stacked([self.preprocess(self.given[i]) for i in ids], [f"image {i}" for i in ids])

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        for picture in self.given:
            yield f"{picture.mode} {picture.size}"
            yield picture.tobytes()


class Items:
    """A map-style dataset whose items are images or (image, …)."""

    parallel = True

    def __init__(
        self,
        dataset: Any,
        preprocess: Preprocess | None,
        collate: Callable[..., Any] | None = None,
        pictures: bool = False,
    ) -> None:
        self.dataset, self.preprocess, self.collate, self.pictures = dataset, preprocess, collate, pictures

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take a dataset, or a `DataLoader` and its dataset."""
        if not isinstance(images, (DataLoader, Dataset)):
            return None
        loader = images if isinstance(images, DataLoader) else None
        dataset: Any = images if loader is None else loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ImageError(f"{type(dataset).__name__} has no length and no order. Give a map-style dataset.")
        if len(dataset) == 0:
            raise ImageError(f"no images: {type(dataset).__name__} is empty, expected at least one.")
        collate = _collate(loader) if loader is not None else None
        source = cls(dataset, known_or_none(model, preprocess), collate)
        source.pictures = collate is None and isinstance(source._first(), Image.Image)
        if source.pictures:
            source.preprocess = preprocess_for(model, preprocess)
        elif source.preprocess is not None:
            _check_range(source[[0]], source.preprocess)
        opened = ImageSet(source, source.preprocess or Preprocess(None, source="not known"), labels=_labels(dataset))
        if loader is not None:
            opened.batch_size, opened.workers = loader.batch_size, loader.num_workers
        return opened

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        items = [self._item(i) for i in ids]
        if self.collate is not None:
            return check_batch(first_of(self.collate(items)))
        return stacked([self._one(item) for item in items], [f"item {i}" for i in ids])

    def _first(self) -> Any:
        """Return the first item's image that can be read."""
        for i in range(len(self)):
            try:
                return first_of(self._item(i))
            except UnreadableImage:
                if i == len(self) - 1:
                    raise

    def _item(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises
            raise UnreadableImage(
                f"cannot read item {i} of {type(self.dataset).__name__}: {error or type(error).__name__}. Repair it, "
                'leave it out, or pass on_error="skip".'
            ) from error

    def _one(self, item: Any) -> Tensor:
        item = first_of(item)
        if isinstance(item, Image.Image) and self.preprocess is not None:
            return self.preprocess(item)
        return checked(item)

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        # A dataset may be too large to read twice: its type, its length and a few of its images must do.
        yield f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__} {len(self)}"
        for i in sorted({0, len(self) // 3, len(self) // 2, len(self) - 1}):
            try:
                yield self[[i]]
            except UnreadableImage:
                yield f"item {i} cannot be read"


def stacked(images: list[Tensor], names: Sequence[str]) -> Tensor:
    """Stack images (C, H, W) to a batch (n, C, H, W), or name the one of another shape."""
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise ImageError(
                f"images of one set must have one size after preprocessing: {names[0]} has "
                f"{tuple(images[0].shape)}, "
                f"{name} has {tuple(image.shape)}. Let preprocess resize and crop them."
            )
    return torch.stack(images)


def check_batch(images: object, model: nn.Module | None = None) -> Tensor:
    """Return `images` if it is a non-empty, finite float tensor (N, C, H, W) for `model`; refuse it otherwise."""
    if not isinstance(images, Tensor):
        raise ImageError(f"got {type(images).__name__}, expected a tensor (N, C, H, W).")
    shape = tuple(images.shape)
    if images.dim() != 4:
        raise ImageError(f"images have shape {shape}, expected (N, C, H, W).{_hint(images.dim(), model)}")
    if 0 in shape:
        raise ImageError(f"no images: the tensor has shape {shape}, expected at least one image (N, C, H, W).")
    if not images.is_floating_point():
        raise ImageError(
            f"images are {images.dtype}, expected floating point in the model's input space. Convert and "
            "normalize them (x.float() / 255, minus mean, divided by std), or give PIL images."
        )
    # A finite sum means finite values, and is ten times as fast to find.
    if not torch.isfinite(images.sum()) and not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images.flatten(1)).all(1)).nonzero()[0])
        raise ImageError(f"image {bad} holds NaN or infinity, expected finite values. Clean it or leave it out.")
    return images


def _hint(dimensions: int, model: nn.Module | None) -> str:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = None if model is None else next((m for m in model.modules() if isinstance(m, kinds)), None)
    if first is not None and not isinstance(first, nn.Conv2d):
        name = type(first).__name__
        return f" The model's first convolution is a {name}: only networks of two-dimensional maps are supported."
    hints = {
        2: " A network of vectors has no rows and columns to show.",
        3: " Add the batch dimension: images[None].",
        5: " Volumes and videos are not supported: networks of two-dimensional maps are.",
    }
    return hints.get(dimensions, "")


def first_of(item: Any) -> Any:
    """Return the image of a dataset's item: what stands first in a tuple."""
    return item[0] if isinstance(item, (tuple, list)) else item


def known_or_none(model: nn.Module, preprocess: object) -> Preprocess | None:
    """Return the model's preprocessing, or None where only the display would have needed it."""
    if preprocess is None:
        unwrapped(model)  # an error of the model is one here too
    try:
        return preprocess_for(model, preprocess)
    except ImageError:
        return None


def _check_range(images: Tensor, known: Preprocess) -> None:
    if known.mean is None:
        return
    if images.shape[1] != len(known.mean):
        raise ImageError(
            f"images have {images.shape[1]} channels in shape {tuple(images.shape)}, the model takes "
            f"{len(known.mean)}."
            " Give (N, C, H, W) with that many."
        )
    low, high = float(images.amin()), float(images.amax())
    if low >= 0 and high > 30:
        raise ImageError(
            f"images go from {low:g} to {high:g}, they look like raw pixels; the model's input space is "
            f"pixels / 255, minus {known.mean}, divided by {known.std}. Normalize them, or give PIL images."
        )


def _collate(loader: DataLoader[Any]) -> Callable[..., Any] | None:
    plain = type(loader.sampler) in (SequentialSampler, RandomSampler) and type(loader.batch_sampler) is BatchSampler
    if not plain or len(loader.sampler) != len(loader.dataset):  # type: ignore[arg-type]
        raise ImageError(
            f"the DataLoader picks its images with {type(loader.sampler).__name__} and "
            f"{type(loader.batch_sampler).__name__}: their numbers would be lost. Give "
            "torch.utils.data.Subset(dataset, ids)."
        )
    return None if loader.collate_fn is default_collate else loader.collate_fn


def _labels(dataset: Any) -> list[Any] | None:
    """Return one label per item where the dataset, or the one it is a part of, tells them without reading images."""
    if isinstance(dataset, Subset):
        whole = _labels(dataset.dataset)
        return None if whole is None else [whole[int(i)] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels(part) for part in dataset.datasets]
        return None if any(p is None for p in parts) else [label for part in parts for label in part or ()]
    targets, classes = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
    if targets is None or len(targets) != len(dataset):
        return None
    return [classes[int(t)] if classes is not None else int(t) for t in targets]
