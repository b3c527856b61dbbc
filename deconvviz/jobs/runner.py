"""One job over many blocks: computes one beside the writing of the one before, keeps each, shows the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from tqdm import tqdm

B = TypeVar("B")
# How many of a block's items a step has done, and what is left to write for them.
Step = tuple[int, Sequence[Callable[[], None]]]


class Kept(Protocol):
    """Where the blocks go, and which of them are there already."""

    def has(self, block: int) -> bool:
        """Say whether a block is done."""

    def mark(self, block: int) -> None:
        """Say that a block is done and all of it is written."""


class Memory:
    """Blocks that go to memory: nothing is there when a job begins, nothing outlives it."""

    def has(self, block: int) -> bool:
        """Say no."""
        return False

    def mark(self, block: int) -> None:
        """Do nothing."""


def run(
    blocks: Sequence[B],
    compute: Callable[[B], Iterator[Step]],
    kept: Kept,
    *,
    sizes: Sequence[int],
    name: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute the blocks that are not done, in order.

    Args:
        blocks: What `compute` is called with, the same in every run of one job.
        compute: Yields steps of one block; what a step leaves to write is done in threads, beside the next step's
            arithmetic. At most one step waits to be written.
        kept: Where the blocks go. A block is marked when all of it is written.
        sizes: How many items each block has, for the bar.
        name: The bar's.
        unit: What the bar counts.
        progress: Whether to show it.
    """
    left = [n for n in range(len(blocks)) if not kept.has(n)]
    total = sum(sizes)
    done = total - sum(sizes[n] for n in left)
    bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", disable=not progress)
    with bar, ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(1) as marker:
        waiting: list[Future[None]] = []
        marks: list[Future[None]] = []
        for n in left:
            written: list[Future[None]] = []
            for count, writes in compute(blocks[n]):
                _settle(waiting)
                waiting = [writers.submit(write) for write in writes]
                written += waiting
                bar.update(count)
            marks.append(marker.submit(_mark, kept, n, written))
        _settle([*waiting, *marks])


def _mark(kept: Kept, block: int, written: Sequence[Future[None]]) -> None:
    _settle(written)
    kept.mark(block)


def _settle(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()
