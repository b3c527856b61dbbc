"""Numbered images, whatever they came from: in batches, as pixels, as a fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError, OptionError, UnreadableImage
from .preprocess import Preprocess
from .spent import Spent, reading


class Source(Protocol):
    """Where images come from: maps a list of ids to a tensor (n, C, H, W).

    `parallel` says whether worker processes may read it, `pictures` whether it holds pictures, which a preprocessing
    brings into the model's input space, and no tensors that are there already. `identity` yields all that tells these
    images from others: tensors, bytes and texts.
    """

    parallel: bool
    pictures: bool

    def __len__(self) -> int: ...

    def __getitem__(self, ids: Sequence[int], /) -> Tensor: ...

    def identity(self) -> Iterator[Any]: ...  # noqa: D102


class ImageSet:
    """Images in a fixed order, whatever they came from.

    Example:
        >>> images = open_images(model, torch.zeros(5, 3, 64, 64))
        >>> len(images), images.take([0, 4]).shape, images.picture(4).shape
        (5, torch.Size([2, 3, 64, 64]), torch.Size([3, 64, 64]))

    Attributes:
        names: one text per image: its file, or "image 7".
        labels: one label per image, or None where none are known.
        origins: one key per image: the photo, file or video that it is a part of; its name where nothing is known.
        preprocess: what brought the images into the model's input space.
        batch_size, workers: what a given `DataLoader` asks for, or None and 0.
        spent: how long reading in batches took so far, and the preprocessing's share; of all workers added up.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        names: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
        origins: Sequence[Any] | None = None,
    ) -> None:
        """Wrap a source."""
        if len(source) == 0:
            raise ImageError("no images: the set is empty, expected at least one.")
        self._source = source
        self.preprocess = preprocess
        self.names = list(names) if names is not None else [f"image {i}" for i in range(len(source))]
        self.labels = list(labels) if labels is not None else None
        self.origins = list(origins) if origins is not None else self.names
        self.batch_size: int | None = None
        self.workers = 0
        self.spent = Spent()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def names_of(self, ids: Tensor) -> dict[int, str]:
        """Return the names of the images `ids`, of any shape; -1 is none."""
        return {i: self.names[i] for i in ids.unique().tolist() if i >= 0}

    def labels_of(self, ids: Tensor) -> dict[int, str]:
        """Return the labels of the images `ids` as text; an empty dict where none are known."""
        labels = self.labels
        return {} if labels is None else {i: str(labels[i]) for i in ids.unique().tolist() if i >= 0}

    @property
    def are_pictures(self) -> bool:
        """Whether these are pictures, brought into the model's input space, and no tensors that were there already."""
        return self._source.pictures

    def take(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Return the images `ids` as (n, C, H, W) in the model's input space."""
        ids = [int(i) for i in ids]
        if bad := [i for i in ids if not 0 <= i < len(self)]:
            raise ImageError(f"no image {bad[0]}: the set has images 0 to {len(self) - 1}.")
        return self._source[ids]

    def example(self, on_error: str = "raise") -> Tensor:
        """Return the first image (1, C, H, W); with `on_error="skip"` the first that can be read."""
        for i in range(len(self)):
            try:
                return self.take([i])
            except UnreadableImage:
                if on_error == "raise":
                    raise
        raise self.unreadable()

    def unreadable(self) -> ImageError:
        """Return the error of a set of which no image can be read."""
        return ImageError(f"none of the {len(self)} images can be read, the first is {self.names[0]}.")

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
        skipped: dict[int, str] | None = None,
        turn: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the first image, images (n, C, H, W)) in order from image `start`.

        A batch holds images with successive numbers; the last one may be short. An image that cannot be read ends
        the run; given a dict `skipped`, it is noted there with the reason instead, and the batch is cut around it.
        `workers` processes decode files and read datasets; the batches are the same for any number of them. They
        end with this iterator: close it. Of several that take turns, `turn` says who this one is and how many there are.
        """
        if batch_size < 1 or workers < 0:
            raise OptionError(f"batch_size {batch_size} must be at least 1 and workers {workers} at least 0.")
        ids = [list(range(i, min(i + batch_size, len(self)))) for i in range(start, len(self), batch_size)]
        ids = ids[turn[0] :: turn[1]]
        workers = min(workers or self.workers, len(ids)) if self._source.parallel else 0
        if multiprocessing.current_process().daemon:
            workers = 0  # such a process may have no children: the images are read here
        device = torch.device(device or "cpu")
        reader = _Reader(self._source, skipped is not None)
        loaded = _in_processes(reader, ids, workers, device.type == "cuda") if workers else map(reader.read, ids)
        for chunk, (images, bad, spent) in zip(ids, loaded, strict=True):
            self.spent = self.spent.plus(spent)
            if skipped is not None:
                skipped.update(bad)
            taken = 0
            for first, count in _runs(chunk, bad):
                # To the CPU a copy has to be waited for: nothing else would know when it has arrived.
                yield first, images[taken : taken + count].to(device, dtype, non_blocking=device.type == "cuda")
                taken += count

    def fingerprint(self) -> str:
        """Return a hash of what the set is: contents, or files with sizes and times, and preprocessing."""
        digest = hashlib.blake2b(f"{len(self)} {self.preprocess.describe()}".encode(), digest_size=16)
        for part in self._source.identity():
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(part.encode() if isinstance(part, str) else part)
        return digest.hexdigest()


class _Reader(Dataset[Any]):
    """Reads lists of ids, here or in a worker process: (images, what could not be read by id, what it took)."""

    def __init__(self, source: Source, skip: bool) -> None:
        self.source, self.skip = source, skip

    def read(self, ids: list[int]) -> tuple[Tensor, dict[int, str], Spent]:
        with reading(len(ids)) as spent:
            images, bad = self._read(ids)
        return images, bad, spent[0]

    def _read(self, ids: list[int]) -> tuple[Tensor, dict[int, str]]:
        try:
            return self.source[ids], {}
        except UnreadableImage:
            if not self.skip:
                raise
        good, bad = [], {}
        for i in ids:
            try:
                self.source[[i]]
                good.append(i)
            except UnreadableImage as error:
                bad[i] = str(error)
        return self.source[good] if good else torch.empty(0), bad

    def __getitem__(self, ids: Any) -> Any:
        """Hand errors of a worker process over as values: raised there they would lose their message."""
        try:
            return self.read(ids)
        except ImageError as error:
            return error


def _in_processes(
    reader: _Reader, ids: list[list[int]], workers: int, pin: bool
) -> Iterator[tuple[Tensor, dict[int, str], Spent]]:
    # The loader draws a seed for its workers: a generator of its own leaves the global random state
    # alone.
    quiet = torch.Generator().manual_seed(0)
    loader: DataLoader[Any] = DataLoader(
        reader, None, sampler=ids, num_workers=workers, pin_memory=pin, generator=quiet
    )
    running = iter(loader)
    try:
        for item in running:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        # An error that somebody keeps holds this frame, and with it the processes.
        running._shutdown_workers()  # type: ignore[attr-defined]


def _runs(ids: Sequence[int], bad: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the runs of successive `ids` that are not `bad`."""
    good = [i for i in ids if i not in bad]
    for _, run in itertools.groupby(enumerate(good), key=lambda pair: pair[1] - pair[0]):
        members = [i for _, i in run]
        yield members[0], len(members)
