"""Picture files as a source: one file, a list of them, or a folder walked recursively."""

from __future__ import annotations

import glob
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..errors import ImageError, UnreadableImage
from .image_set import ImageSet
from .preprocess import Preprocess, preprocess_for
from .sources import stacked

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))


class Files:
    """Files that hold one picture each; a list may have PIL images among them."""

    parallel = pictures = True

    def __init__(self, paths: Sequence[Path | Image.Image], names: Sequence[str], preprocess: Preprocess) -> None:
        self.paths, self.names, self.preprocess = paths, names, preprocess

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take the path of a folder or a file, or a list of paths."""
        if isinstance(images, (str, os.PathLike)):
            return cls._of_path(Path(images).expanduser(), preprocess_for(model, preprocess))
        kinds = (Image.Image, str, os.PathLike)
        if not isinstance(images, (list, tuple)) or not images or not all(isinstance(i, kinds) for i in images):
            return None
        paths = [i if isinstance(i, Image.Image) else Path(i).expanduser() for i in images]
        names = [readable(p) if isinstance(p, Path) else f"image {i}" for i, p in enumerate(paths)]
        known = preprocess_for(model, preprocess)
        return ImageSet(cls(paths, names, known), known, names)

    @classmethod
    def _of_path(cls, path: Path, preprocess: Preprocess) -> ImageSet:
        if path.is_file():
            name = readable(path.name)
            return ImageSet(cls([path], [name], preprocess), preprocess, [name])
        if not path.exists() and glob.has_magic(str(path)):
            return cls._of_pattern(path, preprocess)
        if not path.is_dir():
            there = "neither a folder nor a regular file" if path.exists() else "no such file or folder"
            raise ImageError(f"{there}: {path}. Give an image or a folder of images.")
        found = sorted(walk(path), key=lambda p: p.relative_to(path).parts)
        if not found:
            raise ImageError(f"no images: {path} holds no file ending in {', '.join(sorted(SUFFIXES))}.")
        return cls._named(found, path, preprocess)

    @classmethod
    def _named(cls, found: Sequence[Path], root: Path, preprocess: Preprocess) -> ImageSet:
        """Name files by their path below a folder; the top folder there is the label."""
        parts = [[readable(part) for part in p.relative_to(root).parts] for p in found]
        names = ["/".join(p) for p in parts]
        labels = [p[0] if len(p) > 1 else "" for p in parts]
        return ImageSet(cls(found, names, preprocess), preprocess, names, labels if any(labels) else None)

    @classmethod
    def _of_pattern(cls, pattern: Path, preprocess: Preprocess) -> ImageSet:
        """Take all picture files that a pattern such as "photos/**/*.jpg" finds, in the order of their paths."""
        plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
        root = Path(*plain)
        found = [Path(path) for path in glob.glob(str(pattern), recursive=True)]
        found = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not found:
            raise ImageError(f"no images: the pattern {pattern} finds no file ending in {', '.join(sorted(SUFFIXES))}.")
        return cls._named(sorted(found, key=lambda p: p.relative_to(root).parts), root, preprocess)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        return stacked([self._one(i) for i in ids], [self.names[i] for i in ids])

    def _one(self, i: int) -> Tensor:
        path = self.paths[i]
        if not isinstance(path, Path):
            return self.preprocess(path)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError("it is no regular file")  # a pipe would be waited for
            with Image.open(path) as opened:
                self.preprocess.check_size(opened.size)  # before its pixels take memory
                opened.load()
                return self.preprocess(opened)
        except UnreadableImage as error:
            raise UnreadableImage(f"{readable(path)}: {error}") from error
        except ImageError as error:
            raise ImageError(f"{readable(path)}: {error}") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            gone = f"it is a link to {os.readlink(path)}, which is not there" if _dangling(path) else error
            raise UnreadableImage(
                f'cannot read the image {readable(path)}: {gone}. Repair it or take it away, or pass on_error="skip".'
            ) from error

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        for name, path in zip(self.names, self.paths, strict=True):
            if not isinstance(path, Path):
                yield f"{path.mode} {path.size}"
                yield path.tobytes()
                continue
            try:
                facts = path.stat()
                yield f"{name} {facts.st_size} {facts.st_mtime_ns}"
            except OSError:
                yield f"{name} is not there"


def walk(folder: Path) -> Iterator[Path]:
    """Yield the picture files under `folder`, each folder and each linked file once, whatever links lead to it.

    Real folders and files come first, so that a link to one of them adds nothing. What is no regular file, a pipe for
    instance, is passed over; a link that leads nowhere is yielded, to be named when it is read.
    """
    folders, linked_folders, linked_files = [folder], list[Path](), list[Path]()
    seen: set[tuple[int, int]] = set()
    while folders or linked_folders:
        here = folders.pop() if folders else linked_folders.pop(0)
        if _mark(here) in seen:
            continue
        seen.add(_mark(here))
        for entry in _listed(here):
            picture = entry.name[:1] != "." and Path(entry.name).suffix.lower() in SUFFIXES
            if entry.is_dir():
                (linked_folders if entry.is_symlink() else folders).append(Path(entry.path))
            elif picture and entry.is_symlink():
                linked_files.append(Path(entry.path))
            elif picture and entry.is_file():
                seen.add(_mark(entry.path))
                yield Path(entry.path)
    for path in sorted(linked_files):
        if _dangling(path):
            yield path
        elif path.is_file() and _mark(path) not in seen:
            seen.add(_mark(path))
            yield path


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"cannot read the folder {folder}: {error.strerror}. Give it read permission.") from error


def _mark(path: str | os.PathLike[str]) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


def _dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def readable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that any encoding can take: bytes that are not UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
