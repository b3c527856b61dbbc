"""The unfinished file of a result: filled block by block, kept over a kill, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import StoreError
from ..results import store
from .journal import Journal

# Seconds between two writings of what is done: after a kill this much work is done again.
EVERY = 5.0

Fields = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Draft:
    """Arrays in `.name.draft` beside the result's path, and which blocks of them are done in `.name.draft.log`.

    Example:
        >>> with Draft("result.safetensors") as draft:  # doctest: +SKIP
        ...     arrays = draft.open(key, fields, facts, known)
        ...     run(blocks, compute, draft, ...)
        ...     draft.finish()

    The path is claimed at once: one that cannot be written, or that another process writes, is refused before any work.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Claim the path."""
        self.path = Path(path)
        if self.path.is_dir():
            raise StoreError(f"cannot write {path}: it is a folder. Give the path of a file.")
        self._data = self.path.with_name(f".{self.path.name}.draft")
        self._journal = Journal(self.beside("log"), self.path, lambda line: type(line) is int and line >= 0)
        self._done: set[int] = set()
        self._new: list[int] = []  # done, but not known to be on the disk
        self._opened = self._finished = False
        self._written = time.monotonic()

    def beside(self, name: str) -> Path:
        """Return the path of another file of this job; it goes when the result is whole."""
        return self._data.with_name(f"{self._data.name}.{name}")

    def open(
        self, key: str, fields: Fields, facts: Mapping[str, object], known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the arrays: those that a job with this key has left, or new ones that hold what is `known`.

        `key` is a hash of all that the contents depend on.
        """
        self._opened = True
        if self._journal.belongs_to(key) and self._journal.lines[1:]:
            with contextlib.suppress(StoreError):  # it is not there any more, or not whole
                arrays = store.reopen(self._data)
                self._done = set(self._journal.lines[1:])
                return arrays
        arrays = store.create(self._data, fields, facts)
        for name, array in known.items():
            arrays[name].copy_(array)
        self._journal.restart(key)
        return arrays

    def has(self, block: int) -> bool:
        """Say whether a block is done."""
        return block in self._done

    def mark(self, block: int) -> None:
        """Say that a block is done."""
        self._new.append(block)
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def _write(self) -> None:
        # First the pictures, then the word that they are there: a machine that loses power loses both or the word.
        new, self._new = self._new, []
        with self._data.open("rb+") as file:
            os.fsync(file.fileno())
        for block in new:
            self._journal.add(block)
        self._done.update(new)
        self._written = time.monotonic()

    def finish(self) -> None:
        """Let the file take the result's place."""
        self._new = []
        store.seal(self._data)
        store.publish(self._data, self.path)
        self._finished = True
        self._remove()

    def _remove(self) -> None:
        for path in (self._data, *self.path.parent.glob(f"{glob.escape(self._data.name)}.*")):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Draft:
        """Use it in a `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what is done; where nothing is, leave nothing. An interrupt before `open` keeps what is beside."""
        with self._journal:
            if self._new:
                self._write()
            if self._finished or self._done:
                return
            if self._opened or isinstance(error, Exception):
                self._remove()
            else:
                self._journal.remove()
