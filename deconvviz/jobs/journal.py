"""A list of what a job has done, one line each, in a file that one process at a time may write."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no such locks: two writers of one file are not noticed there
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Lines of JSON, the first of which says whose they are; a line that was cut off by a kill does not count.

    Opening it claims the result at `of`: a path that cannot be written, or that another process writes, is refused
    now and not after hours of work.
    """

    def __init__(self, path: Path, of: Path) -> None:
        """Open or make the file at `path` for the result at `of`, lock it, and read what is there."""
        self.path, self.of = path, of
        self._file = _locked(path, of)
        self.lines: list[Any] = []
        self.end = 0  # of the last whole line, in bytes
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        for line in self._file:
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut off")
                self.lines.append(json.loads(line))
            except ValueError:  # what follows was never finished
                break
            self.end += len(line)

    def belongs_to(self, key: str) -> bool:
        """Say whether the lines are those of the job with this key."""
        return bool(self.lines) and self.lines[0] == key

    def restart(self, key: str) -> None:
        """Forget the lines, and begin those of another job."""
        self._file.truncate(0)
        self.lines, self.end = [], 0
        self.add(key)

    def add(self, value: Any) -> None:
        """Write one more line."""
        line = json.dumps(value).encode() + b"\n"
        try:
            self._file.truncate(self.end)
            self._file.seek(self.end)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise StoreError(
                f"cannot write {self.path}: {error.strerror or error}. Free some space or give another path."
            ) from error
        self.lines.append(value)
        self.end += len(line)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        """Use it in a `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others have it."""
        self._file.close()


def _locked(path: Path, of: Path) -> IO[bytes]:
    """Open a file for reading and writing, for this process alone."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise StoreError(
                f"cannot write {of}: {error.strerror}. Give a path in a folder you may write to."
            ) from error
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreError(f"another process is writing {of}: wait for it, or give another path.") from error
        # The process before may have removed the file between our opening and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
