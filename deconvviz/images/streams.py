"""Data that can only be gone through from its beginning: iterable datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..errors import ImageError
from .image_set import ImageSet
from .parts import Keyed, as_input, as_picture, find_class_key, find_image_key, find_label_key, is_hugging, plain_label
from .preprocess import Preprocess, preprocess_for
from .sources import known_or_none, stacked


class Streamed:
    """An iterable dataset, counted once and gone through again for images; each image's number is its place.

    Images are read in their order; one before the last that was read starts again from the beginning. Nothing is kept.
    """

    parallel = False

    def __init__(self, data: Iterable[Any], preprocess: Preprocess | None, key: str | None, pictures: bool) -> None:
        self.data, self.preprocess, self.key, self.pictures = data, preprocess, key, pictures
        self.count, self._first = 0, b""
        self._running: Iterator[Any] | None = None
        self._next = 0

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take an iterable dataset of torch or Hugging Face, `Keyed` with one, or a `DataLoader` of one."""
        keyed = images if isinstance(images, Keyed) else Keyed(images)
        data: Any = keyed.data.dataset if isinstance(keyed.data, DataLoader) else keyed.data
        endless = is_hugging(data) and not hasattr(data, "__len__")
        if not (isinstance(data, IterableDataset) or endless):
            return None
        first = next(iter(data), None)
        if first is None:
            raise ImageError(f"no images: {type(data).__name__} is empty, expected at least one.")
        key = find_image_key(first, keyed.image_key) if isinstance(first, Mapping) else None
        one = _image(first, key)
        pictures = not (isinstance(one, Tensor) and one.is_floating_point())
        known = preprocess_for(model, preprocess) if pictures else known_or_none(model, preprocess)
        source = cls(data, known, key, pictures)
        names, labels = source.look_through(keyed.label_key)
        opened = ImageSet(source, known or Preprocess(None, source="not known"), names, labels)
        if isinstance(keyed.data, DataLoader):
            opened.batch_size = keyed.data.batch_size
        return opened

    def look_through(self, label_key: str | None) -> tuple[list[str], list[Any] | None]:
        """Count the items; return their names and labels."""
        names, labels = list[str](), list[Any]()
        kinds = getattr(self.data, "features", None) or {}
        for place, item in enumerate(self.data):
            name, label = f"item {place}", None
            if isinstance(item, Mapping):
                name = str(item.get("__key__", name))
                key = find_class_key(kinds, label_key) if kinds else find_label_key(item, label_key)
                classes = getattr(kinds.get(key), "names", None)
                label = None if key is None else plain_label(item[key], classes)
            elif isinstance(item, (tuple, list)) and len(item) == 2 and not _has_rows(item[1]):
                label = plain_label(item[1])
            if place == 0:
                self._first = self._mark(item)
            names.append(name)
            labels.append(label)
        self.count = len(names)
        return names, None if any(label is None for label in labels) else labels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        found: dict[int, Tensor] = {}
        for number in sorted(set(ids)):
            found[number] = as_input(self._item(number), self.preprocess, f"item {number}")
        return stacked([found[i] for i in ids], [f"item {i}" for i in ids])

    def _item(self, number: int) -> Any:
        """Go on to an item, from the beginning if it is behind."""
        if self._running is None or number < self._next:
            self._running, self._next = iter(self.data), 0
        for item in self._running:
            place, self._next = self._next, self._next + 1
            if place == 0 and self._mark(item) != self._first:
                raise ImageError(
                    f"{type(self.data).__name__} begins with another image each time: their numbers would mean nothing. "
                    "Do not shuffle or augment it."
                )
            if place == number:
                return _image(item, self.key)
        raise ImageError(f"{type(self.data).__name__} ended after {self._next} items, it had {self.count} before.")

    def _mark(self, item: Any) -> bytes:
        """Return an image's own bits."""
        image = _image(item, self.key)
        if isinstance(image, Tensor):
            return image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return as_picture(image).tobytes()

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        yield f"{type(self.data).__module__}.{type(self.data).__qualname__} {self.count}"
        yield self._first

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_running": None, "_next": 0}


def _image(item: Any, key: str | None) -> Any:
    if key is not None:
        return item[key]
    return item[0] if isinstance(item, (tuple, list)) else item


def _has_rows(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0
