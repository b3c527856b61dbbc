"""Pictures in archives: zip files, and the tar shards of WebDataset, read where they lie."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ImageError, UnreadableImage
from .files import SUFFIXES, readable
from .image_set import ImageSet
from .parts import Keyed, as_input, find_label_key, plain_label
from .preprocess import Preprocess, preprocess_for
from .sources import stacked


class Member(NamedTuple):
    """One picture in a shard: which shard, where its bytes begin, and how many they are."""

    shard: int
    start: int
    size: int


class Shards:
    """Pictures in uncompressed tar files, numbered by shard and by their place in it.

    The headers are read once; a picture is then read from its own bytes, so that no order has to be kept, and as many
    processes as one likes may read.
    """

    parallel = pictures = True

    def __init__(
        self, paths: Sequence[Path], members: Sequence[Member], names: Sequence[str], known: Preprocess
    ) -> None:
        self.paths, self.members, self.names, self.preprocess = paths, members, names, known

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take the path of a tar file, a pattern ("shards/train-{000..127}.tar", "shards/*.tar"), or a list of these."""
        keyed = images if isinstance(images, Keyed) else Keyed(images)
        given = keyed.data if isinstance(keyed.data, (list, tuple)) else [keyed.data]
        if not given or not all(isinstance(one, (str, os.PathLike)) and _is_tar(os.fspath(one)) for one in given):
            return None
        known = preprocess_for(model, preprocess)
        paths = [Path(path) for one in given for path in expanded(os.path.expanduser(os.fspath(one)))]
        members, names, labels = list[Member](), list[str](), list[Any]()
        for number, path in enumerate(paths):
            for member, name, label in _samples(path, number, keyed):
                members.append(member)
                names.append(f"{readable(path.name)}/{name}")
                labels.append(label)
        if not members:
            raise ImageError(f"no images: {len(paths)} tar files hold no file ending in {', '.join(sorted(SUFFIXES))}.")
        missing = any(label is None for label in labels)
        return ImageSet(cls(paths, members, names, known), known, names, None if missing else labels)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        names = [self.names[i] for i in ids]
        return stacked([as_input(self._bytes(i), self.preprocess, n) for i, n in zip(ids, names, strict=True)], names)

    def _bytes(self, i: int) -> bytes:
        shard, start, size = self.members[i]
        try:
            with open(self.paths[shard], "rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise ImageError(f"cannot read the tar file {self.paths[shard]}: {error.strerror or error}.") from error

    def identity(self) -> Iterator[str]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        for path in self.paths:
            facts = path.stat()
            yield f"{readable(path.name)} {facts.st_size} {facts.st_mtime_ns}"
        yield f"{len(self.members)} {self.names[0]} {self.names[-1]}"


def _is_tar(path: str) -> bool:
    return path.lower().endswith((".tar", ".tar.gz", ".tgz"))


def expanded(pattern: str) -> list[str]:
    """Return the files that a pattern means: {000..127} counts, {a,b} lists, * ? [] and ** are a shell's."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _counted(part) for i, part in enumerate(parts)]
    found = ["".join(one) for one in itertools.product(*choices)]
    if glob.has_magic(pattern) and not os.path.exists(pattern):
        found = [path for one in found for path in (sorted(glob.glob(one, recursive=True)) or [one])]
    if missing := [path for path in found if not os.path.exists(path)]:
        raise ImageError(f"no such file or folder: {missing[0]}. Check the pattern {pattern!r}.")
    return found


def _counted(inside: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        return inside.split(",")
    first, last = ends.groups()
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def _samples(path: Path, number: int, keyed: Keyed) -> Iterator[tuple[Member, str, Any]]:
    """Yield a shard's pictures with their names and labels: files of one name before the first dot are one sample."""
    try:
        with tarfile.open(path, "r:") as shard:
            files = [member for member in shard if member.isfile() and not Path(member.name).name.startswith(".")]
            for _, group in itertools.groupby(files, key=lambda member: _split(member.name)[0]):
                parts = {_split(member.name)[1]: member for member in group}
                found = _picture(parts, keyed.image_key, path)
                if found is not None:
                    member = parts[found]
                    yield Member(number, member.offset_data, member.size), member.name, _label(shard, parts, keyed)
    except tarfile.ReadError as error:
        why = "it is compressed, and its parts cannot be found without unpacking all: gunzip it"
        raise ImageError(f"cannot read the tar file {path}: {why if _compressed(path) else error}.") from error
    except OSError as error:
        raise ImageError(f"cannot read the tar file {path}: {error.strerror or error}.") from error


def _split(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _picture(parts: Mapping[str, tarfile.TarInfo], wanted: str | None, path: Path) -> str | None:
    """Return the ending of a sample's picture; None if it has none."""
    if wanted is not None:
        return wanted if wanted in parts else None
    found = [ending for ending in parts if f".{ending.rpartition('.')[2]}" in SUFFIXES]
    if len(found) > 1:
        raise ImageError(
            f"a sample in {path} has several pictures, {', '.join(map(repr, found))}. Say which: "
            f"images=deconvviz.images.Keyed({str(path)!r}, image_key={found[0]!r})."
        )
    return found[0] if found else None


def _label(shard: tarfile.TarFile, parts: Mapping[str, tarfile.TarInfo], keyed: Keyed) -> Any:
    """Return a sample's label: what its .cls file says, or what its .json file calls a label."""
    ending = keyed.label_key if keyed.label_key in parts else "cls" if "cls" in parts else None
    if ending is not None:
        text = _text(shard, parts[ending])
        return int(text) if text.isdecimal() else text
    if "json" not in parts:
        return None
    held = json.loads(_text(shard, parts["json"]))
    if not isinstance(held, Mapping):
        return None
    key = keyed.label_key if keyed.label_key in held else find_label_key(held, None)
    return None if key is None else plain_label(held[key])


def _text(shard: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = shard.extractfile(member)
    assert file is not None  # a regular file
    return file.read().decode("utf-8", "replace").strip()


def _compressed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


class Zipped:
    """Pictures in a zip file; the top folder inside is the label."""

    parallel = pictures = True

    def __init__(self, path: Path, names: Sequence[str], preprocess: Preprocess) -> None:
        self.path, self.names, self.preprocess = path, names, preprocess
        self._held: tuple[int, zipfile.ZipFile] | None = None  # of the process that opened it

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take the path of a zip file."""
        if not isinstance(images, (str, os.PathLike)) or not os.fspath(images).lower().endswith(".zip"):
            return None
        path = Path(images).expanduser()
        if not path.is_file():
            return None  # named where folders are opened
        known = preprocess_for(model, preprocess)
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(name for name in archive.namelist() if _is_picture(name))
        except (OSError, zipfile.BadZipFile) as error:
            raise ImageError(f"cannot read the zip file {path}: {error}.") from error
        if not names:
            raise ImageError(f"no images: {path} holds no file ending in {', '.join(sorted(SUFFIXES))}.")
        tops = [name.split("/")[0] if "/" in name else "" for name in names]
        return ImageSet(cls(path, names, known), known, names, tops if any(tops) else None)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        names = [self.names[i] for i in ids]
        return stacked([as_input(self._bytes(name), self.preprocess, name) for name in names], names)

    def _bytes(self, name: str) -> bytes:
        if self._held is None or self._held[0] != os.getpid():
            self._held = os.getpid(), zipfile.ZipFile(self.path)
        try:
            return self._held[1].read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
            raise UnreadableImage(
                f'cannot read {name} in {self.path}: {error}. Repair it or take it away, or pass on_error="skip".'
            ) from error

    def identity(self) -> Iterator[str]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        facts = self.path.stat()
        yield f"{readable(self.path.name)} {facts.st_size} {facts.st_mtime_ns} {len(self.names)}"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": None}


def _is_picture(name: str) -> bool:
    path = Path(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES and not name.endswith("/")
