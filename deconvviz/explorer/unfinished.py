"""The unfinished page: its pictures and numbers in a folder beside it, from which an interrupted report goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .. import ranks
from ..errors import StoreError
from ..jobs.journal import Journal


def _is_part(line: Any) -> bool:
    """Say whether a line of the journal is a part's name, what the page says of it, and where its pictures end."""
    return (
        isinstance(line, list) and len(line) == 3 and isinstance(line[0], str) and type(line[2]) is int and line[2] >= 0
    )


class Unfinished:
    """Pictures in a file, so that they need no memory, and a journal of the parts of the page that are whole.

    The folder is `.name.draft` beside the page. `key` is a hash of all that the parts depend on: those of another
    report are thrown away.
    """

    def __init__(self, out: str | os.PathLike[str], key: str) -> None:
        """Claim the page's path; read what an interrupted report with this key has left."""
        out = Path(out)
        self.folder = out.with_name(f".{out.name}.draft")
        self._journal = Journal(self.folder / "log", out, _is_part)
        if not self._journal.belongs_to(key):
            for path in self.folder.iterdir():
                if path != self._journal.path:
                    path.unlink()
            self._journal.restart(key)
        # name -> what the page says of a part; the pictures end where those of the last whole part do
        self._parts: dict[str, Any] = {name: value for name, value, _ in self._journal.lines[1:]}
        end = max((size for *_, size in self._journal.lines[1:]), default=0)
        self._pictures: IO[bytes] = (self.folder / "pictures").open("ab+")
        self._pictures.truncate(end)

    def path(self, name: str) -> Path:
        """Return the path of another file of this report."""
        return self.folder / name

    def add(self, name: str, encoded: str) -> None:
        """Keep a picture in base64 under a name, which is an identifier of the page."""
        try:
            self._pictures.write(f'<script type="text/plain" id="{name}">{encoded}</script>\n'.encode("ascii"))
        except OSError as error:
            raise self._no_room(error) from error

    def part(self, name: str, make: Callable[[], Any], *, shared: bool = False) -> Any:
        """Return what the page says of a part: as kept before, or as `make` says, which adds the part's pictures.

        Of several processes rank 0 makes it, or all of them together, where the work in it is `shared`.
        """
        team = ranks.team()
        if not team.share(lambda: name in self._parts):
            if shared:
                value = make()
                team.share(lambda: self._keep(name, value))
            else:
                team.share(lambda: self._keep(name, make()))
        return team.share(lambda: self._parts[name])

    def _keep(self, name: str, value: Any) -> None:
        try:
            self._pictures.flush()
            os.fsync(self._pictures.fileno())
        except OSError as error:
            raise self._no_room(error) from error
        self._journal.add([name, value, self._pictures.tell()])
        self._parts[name] = value

    def copy_to(self, page: IO[str]) -> None:
        """Write all pictures, in the order they came."""
        self._pictures.seek(0)
        for line in self._pictures:
            page.write(line.decode("ascii"))

    def _no_room(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot keep the page's pictures in {self.folder}: {error.strerror or error}. "
            "Free some space there, or show fewer units."
        )

    def finish(self) -> None:
        """Forget everything: the page is whole."""
        self._parts = {}

    def __enter__(self) -> Unfinished:
        """Use it in a `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what is whole; where nothing is, leave nothing."""
        with self._journal:
            self._pictures.close()
            if not self._parts:
                shutil.rmtree(self.folder)


class Elsewhere(Unfinished):
    """The unfinished page as the ranks have it that keep nothing: rank 0 has it."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        """Know the folder, and leave it alone."""
        out = Path(out)
        self.folder = out.with_name(f".{out.name}.draft")

    def add(self, name: str, encoded: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""
