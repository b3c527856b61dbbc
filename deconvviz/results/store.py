"""Results on disk: one safetensors file each, written whole or not at all, with checksums.

The format is a length, a JSON header and the raw arrays, so a file can be filled in place while a result streams
in (`filling`), and the arrays of a large one can be mapped instead of read (`load`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import StoreError
from .locks import temporary_beside

SCAN = "scan"  # the kind of a file that keeps a pass over images which is not finished
_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: torch.empty(0, dtype=dtype, device="cpu").numpy().dtype for dtype, name in _NAMES.items()}
_READ = 64 << 20  # bytes: files up to this size are read and checked whole, larger ones mapped
_MOST_HEADER = 100 << 20
_OPEN = "-" * 8  # in place of a checksum that is not known yet
_MARK = b'"crc32": "'

Fields = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place at the end, or vanishes after an error.

    A link stays: the file that it points to is replaced. A file keeps its rights. What is no file, such as
    /dev/stdout, is written to. What a killed process left of an earlier attempt is removed.

    Raises:
        StoreError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary, handle = _prepared(target, path)
    try:
        yield temporary
        publish(temporary, target)
    except Exception as error:
        reason = _reason(error, temporary, target)
        if reason is None:
            raise
        raise StoreError(f"cannot write {path}: {reason}. Nothing was left behind.") from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def publish(temporary: Path, path: str | os.PathLike[str]) -> None:
    """Let a finished temporary file take the place of `path`: with its rights, where its link points to."""
    target = Path(os.path.realpath(path))
    try:
        if _is_special(target):
            with open(temporary, "rb") as source, open(target, "wb") as into:
                shutil.copyfileobj(source, into)
            temporary.unlink()
            return
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. Nothing was left behind.") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now a path that could not be written after the work; make the folders on the way."""
    temporary, handle = _prepared(Path(os.path.realpath(path)), path)
    temporary.unlink()
    os.close(handle)


def _prepared(target: Path, path: str | os.PathLike[str]) -> tuple[Path, int]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if _is_special(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(13, "Permission denied")
            return temporary_beside(Path(tempfile.gettempdir(), f"deconvviz-{target.name}"))
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(13, "it may not be written")
        return temporary_beside(target)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot write {path}: {said}. Give a path in a folder you may write to.") from error


def _is_special(target: Path) -> bool:
    """Say whether there is something that is no file: a device or a pipe."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _reason(error: Exception, temporary: Path, target: Path) -> str | None:
    """Return why writing failed; None for an error of whoever was to be written, such as a data set's own."""
    if isinstance(error, StoreError):
        return None
    if isinstance(error, OSError):
        ours = error.filename in (None, str(temporary), str(target), temporary, target)
        return error.strerror or str(error) if ours else None
    of_torch = isinstance(error, RuntimeError) and ("inline_container" in str(error) or "StreamWriter" in str(error))
    if not of_torch and not isinstance(error, SafetensorError):
        return None
    free = shutil.disk_usage(temporary.parent).free  # neither of them says it
    return "No space left on device" if free < 1 << 20 else str(error).splitlines()[0]


@contextlib.contextmanager
def filling(path: str | os.PathLike[str], fields: Fields, meta: Mapping[str, object]) -> Iterator[dict[str, Tensor]]:
    """Yield arrays (name: dtype, shape), zero and mapped to a file that takes the place of `path` at the end."""
    with replacing(path) as temporary:
        arrays = create(temporary, fields, meta)
        yield arrays
        seal(temporary)


def save(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write `arrays` and `meta` (anything JSON holds) to one file, all or nothing."""
    with filling(path, {name: (a.dtype, tuple(a.shape)) for name, a in arrays.items()}, meta) as target:
        for name, array in arrays.items():
            target[name].copy_(array)


def create(path: str | os.PathLike[str], fields: Fields, meta: Mapping[str, object]) -> dict[str, Tensor]:
    """Lay out a file for `fields` (name: dtype, shape) and return its arrays, zero and mapped for writing."""
    checksums = " ".join([_OPEN] * (1 + len(fields)))
    header: dict[str, object] = {"__metadata__": {"crc32": checksums, "deconvviz": json.dumps(dict(meta))}}
    end = 0
    # The widest numbers first: every array then starts at a multiple of its numbers' size.
    for name, (dtype, shape) in sorted(fields.items(), key=lambda field: -field[1][0].itemsize):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data stays aligned
    try:
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            if end:
                os.posix_fallocate(file.fileno(), 8 + len(text), end) if hasattr(os, "posix_fallocate") else (
                    file.truncate(8 + len(text) + end)
                )
    except OSError as error:
        raise StoreError(
            f"cannot write {path} ({end / 1e6:.0f} MB): {error.strerror}. Free some space or give another path."
        ) from error
    return reopen(path)


def reopen(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map the arrays of a file that `create` laid out, for writing.

    Raises:
        StoreError: The file is none that was laid out, or has lost its end.
    """
    with _explained(path), open_file(path) as file:
        text = _header(file)
        places = _places(text, os.fstat(file.fileno()).st_size)
        return {name: _mapped(path, "r+", *place) for name, place in places.items()}


def seal(path: Path) -> None:
    """Write the checksums of the header and of each array into the header, where their place is: the file is whole."""
    arrays = reopen(path)
    with open(path, "r+b") as file:
        text = _header(file)
        start = text.index(_MARK) + len(_MARK)
        sums = " ".join([_OPEN, *(_crc(array.numpy()) for array in arrays.values())]).encode()
        text = text[:start] + sums + text[start + len(sums) :]
        file.seek(8)
        file.write(text[:start] + _crc(text).encode() + text[start + len(_OPEN) :])


def _crc(data: bytes | np.ndarray[Any, Any]) -> str:
    """Return eight hexadecimal digits for bytes or an array."""
    flat = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return f"{zlib.crc32(flat):08x}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], kind: str, *, check: bool = False
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the arrays of a file and its metadata, which must say that it is a `kind`.

    Up to 64 MB are read and checked against their checksums. A larger file's arrays are private copies-on-write of it:
    pages are read when they are looked at, and checked now only with `check`.
    """
    arrays, meta = _checked(path, check)
    if meta.get("kind") == SCAN != kind:
        raise StoreError(
            f"{path} is a scan that saw {meta['count']} of {meta['total']} images. Make the same call again, with "
            "out=, to finish it."
        )
    if meta.get("kind") != kind:
        raise StoreError(f"{path} holds {meta.get('kind')!r}, expected {kind!r}.")
    return arrays, meta


def kind_of(path: str | os.PathLike[str]) -> object:
    """Return what a file that was written here holds: the word that `load` wants to hear."""
    return _checked(path, False)[1].get("kind")


def _checked(path: str | os.PathLike[str], check: bool) -> tuple[dict[str, Tensor], dict[str, object]]:
    with _explained(path), open_file(path) as file:
        # One open file from the header to the last array: another process may put a new one in its place meanwhile.
        return _read(file, _header(file), check)


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # whatever a damaged header makes of itself
        raise StoreError(f"{path} is not a file that deconvviz wrote, or it is damaged ({error}).") from error


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; a pipe, which might keep us waiting, a folder or a device is a ValueError."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no file")
    return file


def _header(file: Any) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(os.fstat(file.fileno()).st_size, _MOST_HEADER):
        raise ValueError("its header is longer than the file, or than any that is written here")
    text: bytes = file.read(length)
    return text


def _places(text: bytes, size: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Return each array's type, shape and offset in a file of `size` bytes, after checking that they fit together."""
    header = json.loads(text)
    del header["__metadata__"]
    found = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise ValueError(f"the shape of {name!r} is none")
        if end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the size of {name!r} does not fit its shape")
        if 8 + len(text) + end > size:
            raise ValueError(f"it ends before {name!r} does")
        found[name] = dtype, shape, 8 + len(text) + start
    return found


def _read(file: BinaryIO, text: bytes, check: bool) -> tuple[dict[str, Tensor], dict[str, object]]:
    facts = json.loads(text)["__metadata__"]
    meta = json.loads(facts["deconvviz"])
    if not isinstance(meta, dict):
        raise ValueError("its metadata is no table")
    size = os.fstat(file.fileno()).st_size
    places, whole = _places(text, size), size <= _READ
    arrays = {name: _copied(file, *place) if whole else _mapped(file, "c", *place) for name, place in places.items()}
    if set(facts) - {"crc32"} != {"deconvviz"}:
        raise ValueError("its header holds something else")
    if _OPEN not in facts.get("crc32", _OPEN):  # files of version 0.1.0 have none
        head, *sums = facts["crc32"].split(" ")
        start = text.index(_MARK) + len(_MARK)
        if _crc(text[:start] + _OPEN.encode() + text[start + len(_OPEN) :]) != head:
            raise ValueError("the checksum of its header differs")
        for (name, array), expected in zip(arrays.items(), sums, strict=True):
            if (whole or check) and _crc(array.numpy()) != expected:
                raise ValueError(f"the checksum of {name!r} differs")
    return arrays, meta


def _copied(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Tensor:
    file.seek(offset)
    data = bytearray(file.read(math.prod(shape) * dtype.itemsize))  # a bytearray, so that the array can be changed
    array = np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
    return torch.from_numpy(array.reshape(shape))  # refuses a file that ends too early


def _mapped(
    file: str | os.PathLike[str] | BinaryIO, mode: Any, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> Tensor:
    if math.prod(shape) == 0:
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.from_numpy(np.memmap(file, dtype, mode, offset, shape))
