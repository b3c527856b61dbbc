"""A folder of labelled images, decoded once into bytes, cut into batches on the device."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from .. import ranks
from ..devices import free_bytes
from ..errors import ImageError, OptionError
from ..images.preprocess import check_resized
from ..results import store as _store

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of a folder by class: `paths` and `labels` (N,), the classes' folder names in order."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def facts(self) -> list[tuple[object, ...]]:
        """Return what tells these images from others: class, name, size and time of each."""
        known = ((path, self.classes[label], path.stat()) for path, label in zip(self.paths, self.labels, strict=True))
        return [(name, path.name, at.st_size, at.st_mtime_ns) for path, name, at in known]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Decoded images (N, S, S, C) uint8, C 3 or gray 1, `labels` (N,) int64, and in `good` the rows that were read."""

    images: torch.Tensor
    labels: torch.Tensor
    good: torch.Tensor

    def near(self, device: torch.device) -> Pixels:
        """Move the labels to the device, and the bytes where they take less than half of what a GPU has free."""
        near = dataclasses.replace(self, labels=self.labels.to(device))
        room = free_bytes(device)
        if room is None or self.images.nbytes > room // 2:
            return near
        return dataclasses.replace(near, images=self.images.to(device))

    def rows(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers of rows where the images are and where the labels are."""
        return index.to(self.images.device), index.to(self.labels.device)


def find(folder: Path, classes: Sequence[str] | None = None) -> Files:
    """List the images under `folder`/<class>/, at any depth, in sorted order; other files are passed over."""
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder. Give a folder with one subfolder of images per class.")
    by_class = {}
    for top in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found = sorted(p for p in top.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if found:
            by_class[top.name] = found
    if not by_class:
        raise ImageError(f"{folder} holds no images in subfolders, expected <class>/*.jpg for each class.")
    if classes is None and len(by_class) == 1:
        only = next(iter(by_class))
        raise ImageError(f"{folder} holds one class, {only!r}; training needs at least two subfolders.")
    order = tuple(classes or by_class)
    if unknown := [name for name in by_class if name not in order]:
        raise ImageError(f"{folder} has classes that the training images lack: {', '.join(unknown[:8])}.")
    pairs = [(path, order.index(name)) for name, paths in by_class.items() for path in paths]
    return Files(tuple(p for p, _ in pairs), tuple(n for _, n in pairs), order)


def find_both(data: Path, validation: object) -> tuple[Files, Files | None]:
    """Find the training images and, unless they are to be split off, the validation images."""
    inside = data / "train"
    files = find(inside if inside.is_dir() else data)
    if isinstance(validation, (int, float)):
        if not 0 < validation < 1:
            raise OptionError(f"validation={validation}: expected a share between 0 and 1, or a folder.")
        return files, None
    if validation is not None:
        return files, find(Path(str(validation)), files.classes)
    for name in ("val", "validation", "test"):
        if inside.is_dir() and (data / name).is_dir():
            return files, find(data / name, files.classes)
    return files, None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How files become bytes: short side to `size`, centre crop, in memory or in files under `cache`; 1 channel is gray.

    The bytes in `cache` are mapped, and used again when the same files come back.
    """

    size: int
    interpolation: str
    cache: Path | None
    workers: int
    progress: bool
    channels: int = 3

    def decode_both(
        self, files: Files, val_files: Files | None, share: object, seed: int
    ) -> tuple[Pixels, Pixels, tuple[Path, ...]]:
        """Return the training and the validation images, and the files that could not be read."""
        pixels, skipped = self.decode(files, "train")
        if val_files is not None:
            val, more = self.decode(val_files, "val")
            return pixels, val, skipped + more
        kept, held = split(pixels.good, share if isinstance(share, float) else 0.05, seed)
        if not len(kept):
            raise ImageError(f"{len(pixels.good)} images are too few to hold some out for validation.")
        return dataclasses.replace(pixels, good=kept), dataclasses.replace(pixels, good=held), skipped

    def decode(self, files: Files, part: str) -> tuple[Pixels, tuple[Path, ...]]:
        """Read every image; return also the unreadable files, after a warning that names them."""
        if self.cache is None:
            images, good = self._decode_into_memory(files)
        else:
            images, good = self._decode_into_cache(files, self.cache / f"{part}.pixels")
        bad = tuple(path for path, fine in zip(files.paths, good.tolist(), strict=True) if not fine)
        if len(bad) == len(files.paths):
            raise ImageError(f"none of the {len(bad)} images could be read, the first is {bad[0]}.")
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            warnings.warn(f"skipped unreadable images: {', '.join(map(str, bad[:5]))}{more}", stacklevel=5)
        return Pixels(images, torch.tensor(files.labels), good.nonzero().flatten()), bad

    def _decode_into_memory(self, files: Files) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.zeros((len(files.paths), self.size, self.size, self.channels), dtype=torch.uint8)
        good = torch.zeros(len(files.paths), dtype=torch.bool)
        # Of several processes each decodes a part and gets the others'.
        team, count = ranks.team(), len(files.paths)
        cuts = [rank * count // team.size for rank in range(team.size + 1)]
        self._decode_into(images, good, files, range(cuts[team.rank], cuts[team.rank + 1]))
        for rank in range(team.size):
            own = slice(cuts[rank], cuts[rank + 1])
            team.spread(images[own], rank)
            team.spread(good[own], rank)
        return images, good

    def _decode_into_cache(self, files: Files, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        facts = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in files.paths]
        how = (facts, self.size, self.interpolation, *(() if self.channels == 3 else (self.channels,)))
        key = hashlib.sha256(repr(how).encode()).hexdigest()
        n = len(files.paths)
        fields = {"images": (torch.uint8, (n, self.size, self.size, self.channels)), "good": (torch.bool, (n,))}
        team = ranks.team()
        for first in (True, False):  # of several processes the first of each machine decodes for all of it
            if first == (team.local == 0):
                arrays = self._cached(path, key) or self._fill_cache(files, path, key, fields)
            team.exchange()
        return arrays["images"], arrays["good"]

    def _cached(self, path: Path, key: str) -> dict[str, torch.Tensor] | None:
        arrays, meta = _store.load(path, "pixels") if path.exists() else ({}, {})
        return arrays if meta.get("key") == key else None

    def _fill_cache(self, files: Files, path: Path, key: str, fields: _store.Fields) -> dict[str, torch.Tensor]:
        with _store.filling(path, fields, {"kind": "pixels", "key": key}) as arrays:
            self._decode_into(arrays["images"], arrays["good"], files, range(len(files.paths)))
        return arrays

    def _decode_into(self, images: torch.Tensor, good: torch.Tensor, files: Files, wanted: range) -> None:
        resample = _FILTERS[self.interpolation]

        def one(i: int) -> None:
            with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                images[i] = torch.from_numpy(_read(files.paths[i], self.size, resample, self.channels))
                good[i] = True

        off = None if self.progress else True  # None: a bar on a terminal only
        with ThreadPoolExecutor(self.workers) as pool:  # PIL decodes without holding Python's lock
            done = pool.map(one, wanted)
            for _ in tqdm(done, "decoding", len(wanted), unit="image", disable=off):
                pass


def _read(path: Path, size: int, resample: Image.Resampling, channels: int) -> np.ndarray:
    with Image.open(path) as file:
        check_resized(file.size, size)
        image = file.convert("RGB" if channels == 3 else "L")
    width, height = image.size
    if min(width, height) != size:
        scale = size / min(width, height)
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), resample)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, channels)


def split(good: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold out a seeded `fraction` of the rows, at least one: (kept, held out), each in order."""
    order = torch.randperm(len(good), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(fraction * len(good)))
    return good[order[held:]].sort().values, good[order[:held]].sort().values


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where crops are cut: their first `rows` and `cols` (n,), which may lie outside, and which are `mirrored` (n,)."""

    rows: torch.Tensor
    cols: torch.Tensor
    mirrored: torch.Tensor

    def take(self, own: slice) -> Windows:
        """Return some of them."""
        return Windows(self.rows[own], self.cols[own], self.mirrored[own])

    @classmethod
    def draw(cls, count: int, full: int, size: int, shift: int, generator: torch.Generator) -> Windows:
        """Draw windows of `size` that stick out of images of `full` pixels by up to `shift`, half of them mirrored."""
        rows, cols = torch.randint(-shift, full - size + shift + 1, (2, count), generator=generator)
        return cls(rows, cols, torch.rand(count, generator=generator) < 0.5)

    @classmethod
    def draw_epoch(
        cls,
        counts: Sequence[int],
        full: int,
        size: int,
        shift: int,
        generator: torch.Generator,
        device: torch.device,
        mirrored: bool = True,
    ) -> list[Windows]:
        """Draw those of batch after batch; they go to the device together, which then waits for none of them."""
        drawn = [cls.draw(count, full, size, shift, generator) for count in counts]
        if not mirrored:
            drawn = [dataclasses.replace(w, mirrored=torch.zeros_like(w.mirrored)) for w in drawn]
        columns = zip(*((w.rows, w.cols, w.mirrored) for w in drawn), strict=True)
        split = [torch.cat(column).to(device).split(list(counts)) for column in columns]
        return [cls(*parts) for parts in zip(*split, strict=True)]


def random_crops(images: torch.Tensor, windows: Windows, size: int, fill: torch.Tensor | None = None) -> torch.Tensor:
    """Cut a `size` × `size` window from each of (N, S, S, C); what lies outside is reflected, or the bytes `fill` (C,).

    One gather does crop, reflection and mirroring; the result, (N, C, size, size), is channels-last in memory.
    """
    n, full = images.shape[:2]
    line = torch.arange(size, device=images.device)
    rows = windows.rows[:, None] + line
    cols = windows.cols[:, None] + torch.where(windows.mirrored[:, None], line.flip(0), line)
    item = torch.arange(n, device=images.device)[:, None, None]
    cut = images[item, _reflect(rows, full)[:, :, None], _reflect(cols, full)[:, None, :]]
    if fill is not None:
        outside = ((rows < 0) | (rows >= full))[:, :, None] | ((cols < 0) | (cols >= full))[:, None, :]
        cut = torch.where(outside[..., None], fill, cut)
    return cut.permute(0, 3, 1, 2)


def centre_crops(images: torch.Tensor, size: int, resize: int | None = None) -> torch.Tensor:
    """Cut the middle `size` × `size` window from each of (N, S, S, C), as if S were `resize`: (N, C, size, size)."""
    stored = images.shape[1]
    side = size if resize is None else round(size * stored / resize)
    first = (stored - side) // 2
    crops = images[:, first : first + side, first : first + side].permute(0, 3, 1, 2)
    return crops if side == size else v2.functional.resize(crops, [size, size], antialias=True)


def ten_crops(images: torch.Tensor, size: int, resize: int) -> Iterator[torch.Tensor]:
    """Yield the corners and the middle of each of (N, S, S, C), as they are and mirrored: ten times (N, C, size, size).

    S counts as `resize`, as in `centre_crops`.
    """
    stored = images.shape[1]
    side = round(size * stored / resize)
    last = stored - side
    for row, col in ((0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)):
        crops = images[:, row : row + side, col : col + side].permute(0, 3, 1, 2)
        if side != size:
            crops = v2.functional.resize(crops, [size, size], antialias=True)
        yield crops
        yield crops.flip(3)


def normalise(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Turn bytes, or floats on their scale, (N, C, H, W) into the model's input: float32, (bytes/255 - mean) / std."""
    return pixels.to(torch.float32, copy=True).sub_(255 * mean[:, None, None]).div_(255 * std[:, None, None])


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()
