"""How much fits: the bytes that batches may take, and work in portions that shrink where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..devices import free_bytes, lacks_memory

CPU_BYTES = 1_000_000_000
SHARE = 0.5  # of what is free on an accelerator
UNKNOWN_BYTES = 4_000_000_000  # an accelerator that does not say what is free
# Kernels count elements in 32 bits.
MOST_ELEMENTS = 2**31 - 1

Result = TypeVar("Result")


def budget(device: torch.device) -> int:
    """Return the bytes that batches may take on a device."""
    if device.type == "cpu":
        return CPU_BYTES
    free = free_bytes(device)
    return int(SHARE * (UNKNOWN_BYTES if free is None else free))


class Portions:
    """Runs work in portions of at most `most`; where memory does not suffice, they are halved for good."""

    def __init__(self, most: int) -> None:
        self.most = max(1, most)

    def run(self, work: Callable[[Tensor], Result], items: Tensor) -> Iterator[Result]:
        """Yield `work(some)` for all `items` (n,), in their order."""
        first = 0
        while first < len(items):
            some = items[first : first + self.most]
            results = _attempt(work, some)
            # Outside of the handler: the error holds on to the memory that it lacked.
            if results:
                yield results[0]
                first += len(some)
            else:
                self.most = len(some) // 2
                _release()


def _attempt(work: Callable[[Tensor], Result], items: Tensor) -> list[Result]:
    """Return the one result, or none where memory did not suffice for several items."""
    try:
        return [work(items)]
    except RuntimeError as error:
        if len(items) == 1 or not lacks_memory(error):
            raise
        return []


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
