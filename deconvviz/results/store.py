"""Results on disk: one safetensors file each, written atomically, read lazily.

The format is a length, a JSON header and the raw arrays, so a file can be filled in place while a result streams
in (`create`), and its arrays can be mapped instead of read (`load`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from ..errors import StoreError

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


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place at the end, or vanishes after an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}. Give a path in a folder you may write to.") from error
    temporary = Path(name)
    try:
        yield temporary
        publish(temporary, path)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. Nothing was left behind.") from error
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Let a finished temporary file take the place of `path`."""
    umask = os.umask(0)
    os.umask(umask)
    try:
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; results are ordinary ones
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. Nothing was left behind.") from error


def reopen(path: Path) -> dict[str, torch.Tensor]:
    """Map the arrays of a file that `create` laid out, for writing."""
    return _map(path, "r+")[0]


def create(
    path: str | os.PathLike[str], fields: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], meta: Mapping[str, object]
) -> dict[str, torch.Tensor]:
    """Lay out a file for `fields` (name: dtype, shape) and return its arrays, zero and mapped for writing."""
    header: dict[str, object] = {"__metadata__": {"deconvviz": json.dumps(dict(meta))}}
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
    return _map(Path(path), "r+")[0]


def save(path: str | os.PathLike[str], arrays: Mapping[str, torch.Tensor], meta: Mapping[str, object]) -> None:
    """Write `arrays` and `meta` (anything JSON holds) to one file, all or nothing."""
    with replacing(path) as temporary:
        target = create(temporary, {name: (a.dtype, tuple(a.shape)) for name, a in arrays.items()}, meta)
        for name, array in arrays.items():
            target[name].copy_(array)


def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Map the arrays of a file and read its metadata, which must say that it is a `kind`.

    The arrays are private copies-on-write of the file: pages are read when they are looked at.
    """
    try:
        arrays, meta = _map(Path(path), "c")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, struct.error) as error:
        raise StoreError(f"{path} is not a file that deconvviz wrote, or it is damaged ({error}).") from error
    if meta.get("kind") != kind:
        raise StoreError(f"{path} holds {meta.get('kind')!r}, expected {kind!r}.")
    return arrays, meta


def _map(path: Path, mode: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > os.path.getsize(path):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    meta = json.loads(header.pop("__metadata__")["deconvviz"])
    arrays = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if math.prod(shape) == 0:
            arrays[name] = torch.from_numpy(np.zeros(shape, dtype))
            continue
        offset = 8 + length + entry["data_offsets"][0]
        arrays[name] = torch.from_numpy(np.memmap(path, dtype, mode, offset, shape))  # type: ignore[call-overload]
    return arrays, meta
