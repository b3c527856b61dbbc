"""A list of what a job has done, one line each, in a file that one process at a time may write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import StoreError
from ..results.locks import claim


class Journal:
    """Lines of JSON, the first of which says whose they are; a line that was cut off by a kill does not count.

    Opening it claims the result at `of`: a path that cannot be written, or that another process writes, is refused
    now and not after hours of work.
    """

    def __init__(self, path: Path, of: Path, fits: Callable[[Any], bool] = lambda line: True) -> None:
        """Open or make the file at `path` for the result at `of`, lock it, and read what is there.

        `fits` says whether a line after the first is one that is written here; what follows another one does not count.
        """
        self.path, self.of, self._fits = path, of, fits
        self._file = open(claim(path, of), "r+b")
        self.lines: list[Any] = []
        self.end = 0  # of the last whole line, in bytes
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        for line in self._file:
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut off")
                value = json.loads(line)
                if self.lines and not self._fits(value):
                    raise ValueError("damaged")
                self.lines.append(value)
            except (ValueError, RecursionError):  # what follows was never finished
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
