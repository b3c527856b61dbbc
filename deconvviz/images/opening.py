"""Images in: tensors, pictures, folders and datasets as one `ImageSet`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from ..errors import ImageError, OptionError
from ..guard import unwrapped
from .preprocess import Preprocess as Preprocess
from .preprocess import preprocess_for as preprocess_for
from .sources import Items, Pictures, Tensors, check_batch, first_of

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))


class ImageSet:
    """Images in a fixed order, whatever they came from.

    Example:
        >>> images = open_images(model, torch.zeros(5, 3, 64, 64))
        >>> len(images), images.take([0, 4]).shape, images.picture(4).shape
        (5, torch.Size([2, 3, 64, 64]), torch.Size([3, 64, 64]))

    Attributes:
        names: one text per image: its file, or "image 7".
        labels: one label per image, or None where none are known.
        preprocess: what brought the images into the model's input space.
        batch_size, workers: what a given `DataLoader` asks for, or None and 0.
    """

    def __init__(
        self,
        source: Any,
        preprocess: Preprocess,
        names: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> None:
        """Wrap a source: an object with a length that maps a list of ids to a tensor (n, C, H, W)."""
        if len(source) == 0:
            raise ImageError("no images: the set is empty, expected at least one.")
        self._source = source
        self.preprocess = preprocess
        self.names = list(names) if names is not None else [f"image {i}" for i in range(len(source))]
        self.labels = list(labels) if labels is not None else None
        self.batch_size: int | None = None
        self.workers = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def take(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Return the images `ids` as (n, C, H, W) in the model's input space."""
        ids = [int(i) for i in ids]
        if bad := [i for i in ids if not 0 <= i < len(self)]:
            raise ImageError(f"no image {bad[0]}: the set has images 0 to {len(self) - 1}.")
        return self._source[ids]

    def picture(self, index: int) -> Tensor:
        """Return image `index` as the network sees it, cropped, as pixels (3, H, W) from 0 to 1."""
        return self.invert(self.take([index]))[0]

    def invert(self, values: Tensor) -> Tensor:
        """Return (…, C, H, W) of the model's input space as pixels (…, 3, H, W) from 0 to 1."""
        return self.preprocess.invert(values)

    def batches(
        self,
        batch_size: int,
        start: int = 0,
        workers: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the first image, images (n, C, H, W)) in order from image `start`.

        The last batch may be short. `workers` processes decode files and read datasets; the batches are the same for
        any number of them.
        """
        if batch_size < 1 or workers < 0:
            raise OptionError(f"batch_size {batch_size} must be at least 1 and workers {workers} at least 0.")
        ids = [list(range(i, min(i + batch_size, len(self)))) for i in range(start, len(self), batch_size)]
        workers = min(workers or self.workers, len(ids)) if self._source.parallel else 0
        device = torch.device(device or "cpu")
        loaded = self._load(ids, workers, device.type == "cuda") if workers else (self._source[i] for i in ids)
        for chunk, images in zip(ids, loaded, strict=True):
            yield chunk[0], images.to(device, dtype, non_blocking=True)

    def _load(self, ids: list[list[int]], workers: int, pin: bool) -> Iterator[Tensor]:
        # The loader draws a seed for its workers: a generator of its own leaves the global random state
        # alone.
        quiet = torch.Generator().manual_seed(0)
        loader: DataLoader[Any] = DataLoader(
            _Guarded(self._source),
            None,
            sampler=ids,
            num_workers=workers,
            pin_memory=pin,
            generator=quiet,
        )
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images

    @property
    def are_pictures(self) -> bool:
        """Whether the images were pictures, not tensors in the model's input space."""
        if isinstance(self._source, Items):
            return isinstance(first_of(self._source.dataset[0]), Image.Image)
        return not isinstance(self._source, Tensors)

    def fingerprint(self) -> str:
        """Return a hash of what the set is: contents, or files with sizes and times, and preprocessing."""
        digest = hashlib.blake2b(f"{len(self)} {self.preprocess.describe()}".encode(), digest_size=16)
        for part in self._source.identity():
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(part.encode() if isinstance(part, str) else part)
        return digest.hexdigest()


class _Guarded(Dataset[Any]):
    """Hands errors of a worker process over as values: raised there they would lose their message."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, ids: Any) -> Tensor | Exception:
        try:
            return self.source[ids]
        except ImageError as error:
            return error


def open_images(model: nn.Module, images: object = None, preprocess: object = None) -> ImageSet:
    """Open whatever a user calls images as one `ImageSet`.

    Example:
        >>> len(open_images(model, "photos/", preprocess=weights.transforms()))  # doctest: +SKIP
        200

    A tensor is in the model's input space already. Pictures, folders and sample photos go through the model's
    preprocessing (`preprocess_for`); so do the PIL images of a dataset, while its tensors are taken as they
    are. A `DataLoader` gives its dataset, in the dataset's order even if the loader shuffles, its batch size,
    workers and `collate_fn`: an image's number is always its index in the dataset, which should not augment
    at random.

    Args:
        model: the network that the images are for.
        images: tensor (N, C, H, W), PIL image, list of PIL images or paths, path of a folder (walked
            recursively, in sorted order, the top folder is the label) or of one file, map-style dataset,
            `DataLoader`, `ImageSet`, or None: the sample photos.
        preprocess: see `preprocess_for`; needed where the model is not known.

    Returns:
        The images, numbered in their order.

    Raises:
        ImageError: no images, or of the wrong shape, type or range, or of a kind that is not known.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, Tensor):
        return _from_tensor(model, images.detach(), preprocess)
    if isinstance(images, (DataLoader, Dataset)):
        return _from_dataset(model, images, preprocess)
    if images is None:
        from .photos import samples

        known = preprocess_for(model, preprocess)
        return samples(known.size or 256, preprocess=known)
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, (str, os.PathLike)):
        return _from_path(Path(images), preprocess_for(model, preprocess))
    if isinstance(images, (list, tuple)) and all(isinstance(i, (Image.Image, str, os.PathLike)) for i in images):
        return _from_pictures(
            [i if isinstance(i, Image.Image) else Path(i) for i in images], preprocess_for(model, preprocess)
        )
    hint = " Stack tensors with torch.stack." if isinstance(images, (list, tuple)) else ""
    raise ImageError(
        f"images is a {type(images).__name__}, expected a tensor (N, C, H, W), PIL images, a folder, a torch "
        f"Dataset or DataLoader, or None for the sample photos.{hint}"
    )


def _from_tensor(model: nn.Module, images: Tensor, preprocess: object) -> ImageSet:
    check_batch(images)
    known = _known_or_none(model, preprocess)
    if known is not None:
        _check_range(images, known)
        return ImageSet(Tensors(images), known)
    # Shown as they are if they look like pixels, else all on one scale: the tensor's minimum to its maximum.
    low, high = float(images.amin()), float(images.amax())
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    channels = images.shape[1]
    shown = Preprocess(None, None, (low,) * channels, ((high - low) or 1.0,) * channels, source="not known")
    return ImageSet(Tensors(images), shown)


def _known_or_none(model: nn.Module, preprocess: object) -> Preprocess | None:
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


def _from_dataset(model: nn.Module, images: Any, preprocess: object) -> ImageSet:
    loader = images if isinstance(images, DataLoader) else None
    dataset = images if loader is None else loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ImageError(f"{type(dataset).__name__} has no length and no order. Give a map-style dataset.")
    if len(dataset) == 0:
        raise ImageError(f"no images: {type(dataset).__name__} is empty, expected at least one.")
    collate = _collate(loader) if loader is not None else None
    source = Items(dataset, _known_or_none(model, preprocess), collate)
    if collate is None and isinstance(first_of(dataset[0]), Image.Image):
        source.preprocess = preprocess_for(model, preprocess)
    elif source.preprocess is not None:
        _check_range(source[[0]], source.preprocess)
    opened = ImageSet(source, source.preprocess or Preprocess(None, source="not known"), labels=_targets(dataset))
    if loader is not None:
        opened.batch_size, opened.workers = loader.batch_size, loader.num_workers
    return opened


def _collate(loader: DataLoader[Any]) -> Callable[..., Any] | None:
    plain = type(loader.sampler) in (SequentialSampler, RandomSampler) and type(loader.batch_sampler) is BatchSampler
    if not plain or len(loader.sampler) != len(loader.dataset):  # type: ignore[arg-type]
        raise ImageError(
            f"the DataLoader picks its images with {type(loader.sampler).__name__} and "
            f"{type(loader.batch_sampler).__name__}: their numbers would be lost. Give "
            "torch.utils.data.Subset(dataset, ids)."
        )
    return None if loader.collate_fn is default_collate else loader.collate_fn


def _targets(dataset: Any) -> list[Any] | None:
    targets, classes = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
    if targets is None or len(targets) != len(dataset):
        return None
    return [classes[int(t)] if classes is not None else int(t) for t in targets]


def _from_pictures(pictures: list[Any], preprocess: Preprocess) -> ImageSet:
    names = [str(p) if isinstance(p, Path) else f"image {i}" for i, p in enumerate(pictures)]
    return ImageSet(Pictures(pictures, names, preprocess), preprocess, names)


def _from_path(path: Path, preprocess: Preprocess) -> ImageSet:
    path = path.expanduser()
    if path.is_file():
        return ImageSet(Pictures([path], [path.name], preprocess), preprocess, [path.name])
    if not path.is_dir():
        raise ImageError(f"no such file or folder: {path}. Give a folder of images.")
    found = []
    for folder, _, files in os.walk(path, followlinks=True):
        found += [Path(folder, f) for f in files if Path(f).suffix.lower() in _SUFFIXES and not f.startswith(".")]
    found.sort(key=lambda p: p.relative_to(path).parts)
    if not found:
        raise ImageError(f"no images: {path} holds no file ending in {', '.join(sorted(_SUFFIXES))}.")
    parts = [p.relative_to(path).parts for p in found]
    names = ["/".join(p) for p in parts]
    labels = [p[0] if len(p) > 1 else "" for p in parts]
    return ImageSet(Pictures(found, names, preprocess), preprocess, names, labels if any(labels) else None)
