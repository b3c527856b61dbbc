"""Whether a pass waits for its images or for its network, and at which rates each could go."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TypeVar

from ..images.spent import Spent

_log = logging.getLogger("deconvviz")
_T = TypeVar("_T")
_BOUND, _SOME = 0.5, 4  # from this share of the time on waiting bounds a pass, and after how many batches that is said


class Clock:
    """Measures how long a pass waits for images; all the rest is the network's and what measures it."""

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self.batches = 0

    def watched(self, batches: Iterator[_T]) -> Iterator[_T]:
        """Hand on batches, and measure."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            ready = time.perf_counter()
            yield batch
            self.batches += 1
            if self.batches > 1:  # the first waits for processes to start, and for libraries to be read
                self.waiting += ready - start
                self.working += time.perf_counter() - ready

    @property
    def share(self) -> float:
        """The share of the time that the pass waits for images."""
        return self.waiting / max(1e-9, self.waiting + self.working)

    def note(self, spent: Spent, workers: int) -> str:
        """Say for the progress line that reading bounds the pass, and which part of it; "" where it does not."""
        if self.batches < _SOME or self.share < _BOUND:
            return ""
        slow = "decoding" if spent.transforming < spent.reading / 2 else "preprocessing"
        more = "more workers may help" if workers else "workers= may help"
        return f"{slow} bounds it: {self.share:.0%} of the time waits for images; {more}"

    def report(self, name: str, spent: Spent, images: int, workers: int) -> None:
        """Log the rates of decoding, preprocessing and the network, for who listens to `deconvviz` at the level INFO."""
        decoding = spent.reading - spent.transforming
        each = f"{workers} processes together" if workers else "this process"
        _log.info(
            "%s: %s images; %s could decode %s and preprocess %s images a second, the network and what measures it could "
            "take %s; %.0f%% of the time waited for images",
            *(
                name,
                images,
                each,
                *(_rate(spent.images, seconds / max(1, workers)) for seconds in (decoding, spent.transforming)),
            ),
            *(_rate(images, self.working), 100 * self.share),
        )


def _rate(images: int, seconds: float) -> str:
    return f"{images / seconds:,.0f}" if seconds > 0 else "any number of"
