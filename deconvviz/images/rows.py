"""Data whose items are mappings, such as Hugging Face's datasets, and arrays of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import ImageError
from .image_set import ImageSet
from .parts import Keyed, as_input, find_class_key, find_image_key, find_label_key, is_hugging, plain_label
from .preprocess import Preprocess, preprocess_for
from .sources import Items, known_or_none, stacked


class Arrays:
    """Pictures as one array (N, H, W, C) or (N, H, W) of bytes."""

    parallel = pictures = True

    def __init__(self, images: np.ndarray, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take an array."""
        if not isinstance(images, np.ndarray):
            return None
        fits = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))
        if images.dtype != np.uint8 or not fits or 0 in images.shape:
            raise ImageError(
                f"images are an array {images.shape} of {images.dtype}, expected pictures: uint8, (N, H, W, 1, 3 or 4) or "
                "(N, H, W). What is in the model's input space already is given as a tensor (N, C, H, W)."
            )
        known = preprocess_for(model, preprocess)
        return ImageSet(cls(images, known), known)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        names = [f"image {i}" for i in ids]
        return stacked([as_input(self.images[i], self.preprocess, n) for i, n in zip(ids, names, strict=True)], names)

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        yield f"{self.images.shape}"
        for image in self.images:
            yield np.ascontiguousarray(image).tobytes()


class Rows(Items):
    """A map-style dataset whose items are mappings; `key` is the image's."""

    def __init__(self, dataset: Any, preprocess: Preprocess | None, key: str, pictures: bool) -> None:
        super().__init__(dataset, preprocess, pictures=pictures)
        self.key = key

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take a dataset, a list, or `Keyed` with one of these, whose items are mappings; a `DataLoader` of such a one."""
        keyed = images if isinstance(images, Keyed) else Keyed(images)
        loader = keyed.data if isinstance(keyed.data, DataLoader) else None
        data: Any = keyed.data if loader is None else loader.dataset
        if not (isinstance(data, (Dataset, list, tuple)) or is_hugging(data)) or not _holds_rows(data, keyed is images):
            return None
        key = find_image_key(data[0], keyed.image_key)
        known = known_or_none(model, preprocess)
        pictures = not (isinstance(data[0][key], Tensor) and data[0][key].is_floating_point())
        source = cls(data, preprocess_for(model, preprocess) if pictures else known, key, pictures)
        opened = ImageSet(
            source, source.preprocess or Preprocess(None, source="not known"), labels=_labels(data, keyed)
        )
        if loader is not None:
            opened.batch_size, opened.workers = loader.batch_size, loader.num_workers
        return opened

    def _one(self, item: Any) -> Tensor:
        return as_input(item[self.key], self.preprocess, f"the {self.key!r} of an item")


def _holds_rows(data: Any, sure: bool) -> bool:
    """Whether the first item is a mapping."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return False
    if len(data) == 0:
        if sure or is_hugging(data):
            raise ImageError(f"no images: {type(data).__name__} is empty, expected at least one.")
        return False
    if isinstance(data, (list, tuple)):
        return isinstance(data[0], Mapping)
    try:
        return isinstance(data[0], Mapping)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # a picture that cannot be read is named by who reads it


def _labels(data: Any, keyed: Keyed) -> list[Any] | None:
    """Return one label per item, if they can be had without reading images or were asked for."""
    if is_hugging(data):
        key = find_class_key(data.features, keyed.label_key)
        if key is None:
            return None
        names = getattr(data.features[key], "names", None)
        return [plain_label(value, names) for value in data.with_format(None)[key]]
    key = find_label_key(data[0], keyed.label_key)
    if key is None or (keyed.label_key is None and not isinstance(data, (list, tuple))):
        return None
    return [plain_label(data[i][key]) for i in range(len(data))]
