"""Where the time of reading images goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple


class Spent(NamedTuple):
    """Seconds of one process, or of several added up, over `images`: all of reading, and the preprocessing's share."""

    images: int = 0
    reading: float = 0.0
    transforming: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """Return both together."""
        return Spent(self.images + other.images, self.reading + other.reading, self.transforming + other.transforming)

    def minus(self, other: Spent) -> Spent:
        """Return what came after another moment."""
        return Spent(self.images - other.images, self.reading - other.reading, self.transforming - other.transforming)


class _Clock(threading.local):
    seconds = 0.0


_clock = _Clock()


@contextlib.contextmanager
def transforming() -> Iterator[None]:
    """Count what runs inside as preprocessing."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _clock.seconds += time.perf_counter() - start


@contextlib.contextmanager
def reading(images: int) -> Iterator[list[Spent]]:
    """Measure how long it takes to read some images; the list gets what was spent."""
    start, before, found = time.perf_counter(), _clock.seconds, list[Spent]()
    yield found
    found.append(Spent(images, time.perf_counter() - start, _clock.seconds - before))
