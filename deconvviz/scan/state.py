"""The file that keeps a pass while it runs, to go on from after a stop, and its result afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..checks import is_whole
from ..errors import StoreError
from ..results import store
from ..results.base import Stored
from .accumulator import Accumulator

_Kind = TypeVar("_Kind", bound=Stored)


@dataclass(frozen=True)
class Progress:
    """How far a pass is: one object, so that no interrupt falls between the number of images and what they gave.

    `count` images were seen or skipped; `alone` says that each image runs by itself, for those of a batch see each
    other.
    """

    count: int
    accumulators: tuple[Accumulator, ...]
    skipped: dict[int, str] = field(default_factory=dict)
    alone: bool = False


class StateFile:
    """One file that belongs to one pass over `total` images, told by its `key`."""

    def __init__(self, path: str | os.PathLike[str], key: str, total: int) -> None:
        self.path, self.key, self.total = Path(path), key, total
        self._written: tuple[int, int] | None = None

    def finished(self, kind: type[_Kind]) -> _Kind | None:
        """Return the result that the file holds, None if it holds a state or isn't there."""
        if not self.path.exists() or store.kind_of(self.path) == store.SCAN:
            return None
        result, facts = kind.read(self.path)
        self._check(facts.get("scan"), str(result))
        return result

    def read(self, start: Progress) -> Progress:
        """Return the progress that the file holds, in place of the `start`; make the file if there is none."""
        if not self.path.exists():
            self.write(start)  # a path that cannot be written fails now, not after the pass
            return start
        arrays, meta = store.load(self.path, store.SCAN, check=True)
        self._check(meta.get("scan"), f"{meta.get('count')} of {meta.get('total')} images")
        try:
            return self._progress(start, dict(meta), arrays)
        except Exception as error:  # whatever a damaged state makes of itself
            raise StoreError(f"{self.path} is damaged ({type(error).__name__}: {error}). Remove it.") from error

    def _progress(self, start: Progress, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Progress:
        kept = unpack(start.accumulators, facts["parts"], arrays)
        skipped = {int(i): str(reason) for i, reason in facts["skipped"].items()}
        count, alone = facts["count"], facts["alone"]
        if not (is_whole(count) and 0 <= count <= self.total and isinstance(alone, bool)):
            raise ValueError(f"it counts {count!r} of {self.total} images")
        if not all(0 <= i < count for i in skipped):
            raise ValueError("it skips images that it has not seen")
        return Progress(int(count), kept, skipped, alone)

    def _check(self, key: object, what: str) -> None:
        if key != self.key:
            raise StoreError(
                f"{self.path} holds another scan ({what}): weights, images, preprocessing, layers, options, batch "
                "size or device differ. Give another path, or remove it."
            )

    def write(self, progress: Progress) -> None:
        """Write how far the pass is, all or nothing."""
        parts, arrays = pack(progress.accumulators)
        skipped = {str(i): reason for i, reason in progress.skipped.items()}
        meta = {"kind": store.SCAN, "scan": self.key, "count": progress.count, "total": self.total, "parts": parts}
        store.save(self.path, arrays, {**meta, "skipped": skipped, "alone": progress.alone})
        self._written = _mark(self.path)

    def finish(self, result: Stored) -> None:
        """Let the result take the place of the state."""
        facts, arrays = result.header()
        store.save(self.path, arrays, {"kind": result.file_kind, **facts, "scan": self.key})

    def remove(self) -> None:
        """Take the file away, if it is still the one that was written here."""
        if self._written is not None and self.path.exists() and _mark(self.path) == self._written:
            self.path.unlink()


def pack(accumulators: Sequence[Accumulator]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return the states of several accumulators, on the CPU."""
    arrays: dict[str, Tensor] = {}
    parts = []
    for number, one in enumerate(accumulators):
        facts, found = one.state()
        parts.append(facts)
        arrays |= {f"{number}/{name}": array.cpu() for name, array in found.items()}
    return parts, arrays


def unpack(
    start: Sequence[Accumulator], parts: Sequence[dict[str, Any]], arrays: dict[str, Tensor]
) -> tuple[Accumulator, ...]:
    """Take back what `pack` returned, given the accumulators before the first image."""
    each = enumerate(zip(start, parts, strict=True))
    return tuple(one.from_state(facts, _part(arrays, number)) for number, (one, facts) in each)


def _part(arrays: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _mark(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino
