"""One job over many blocks: computes one beside the writing of the one before, keeps each, shows the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from .. import ranks

B = TypeVar("B")
# How many of a block's items a step has done, and what is left to write for them.
Step = tuple[int, Sequence[Callable[[], None]]]


class Place(NamedTuple):
    """Where a block's results go: rows `rows` (n,) int64 of `arrays` are those of its n items."""

    arrays: Mapping[str, Tensor]
    rows: Tensor


class Kept(Protocol):
    """Where the blocks go, and which of them are there already."""

    def has(self, block: int) -> bool:
        """Say whether a block is done."""

    def mark(self, block: int) -> None:
        """Say that a block is done and all of it is written."""


class After:
    """The blocks of a second part of a job, numbered on after those of the first."""

    def __init__(self, kept: Kept, first: int) -> None:
        """Number them from `first` on."""
        self.kept, self.first = kept, first

    def has(self, block: int) -> bool:
        """Say whether a block is done."""
        return self.kept.has(self.first + block)

    def mark(self, block: int) -> None:
        """Say that a block is done and all of it is written."""
        self.kept.mark(self.first + block)


class Memory:
    """Blocks that go to memory: nothing is there when a job begins, nothing outlives it."""

    def has(self, block: int) -> bool:
        """Say no."""
        return False

    def mark(self, block: int) -> None:
        """Do nothing."""


def run(
    blocks: Sequence[B],
    compute: Callable[[B, Place], Iterator[Step]],
    kept: Kept,
    *,
    arrays: Mapping[str, Tensor],
    rows: Callable[[B], Tensor],
    sizes: Sequence[int],
    name: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute the blocks that are not done, in order; several processes take them in turn, rank 0 keeps them.

    Args:
        blocks: What `compute` is called with, the same in every run of one job and on every rank.
        compute: Yields steps of one block; what a step leaves to write into its place is done in threads, beside the
            next step's arithmetic. At most one step waits to be written.
        kept: Where the blocks go. A block is marked when all of it is written.
        arrays: What the job fills; on ranks other than 0 only their types and shapes count.
        rows: Says which rows of the arrays a block fills.
        sizes: How many items each block has, for the bar.
        name: The bar's.
        unit: What the bar counts.
        progress: Whether to show it.
    """
    team = ranks.team()
    left = team.share(lambda: [n for n in range(len(blocks)) if not kept.has(n)])
    total = sum(sizes)
    done = total - sum(sizes[n] for n in left)
    bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", disable=not progress or team.rank > 0)
    with bar, ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(1) as marker:
        if team.size > 1:
            job = _Turns(team, blocks, compute, kept, arrays, rows, writers, bar)
            for first in range(0, len(left), team.size):
                job.take(left[first : first + team.size], sizes)
            return
        waiting: list[Future[None]] = []
        marks: list[Future[None]] = []
        for n in left:
            written: list[Future[None]] = []
            for count, writes in compute(blocks[n], Place(arrays, rows(blocks[n]))):
                _settle(waiting)
                waiting = [writers.submit(write) for write in writes]
                written += waiting
                bar.update(count)
            marks.append(marker.submit(_mark, kept, n, written))
        _settle([*waiting, *marks])


class _Turns(NamedTuple):
    """A job whose blocks several processes take in turn."""

    team: ranks.Team
    blocks: Sequence[Any]
    compute: Callable[[Any, Place], Iterator[Step]]
    kept: Kept
    arrays: Mapping[str, Tensor]
    rows: Callable[[Any], Tensor]
    writers: ThreadPoolExecutor
    bar: Any

    def take(self, turn: Sequence[int], sizes: Sequence[int]) -> None:
        """Compute one block on each rank, of those in `turn`, and bring what they give to rank 0."""
        rank = self.team.rank
        mine = self._compute(turn[rank]) if rank < len(turn) else None

        def receive(other: int, facts: None, sent: dict[str, Tensor]) -> None:
            if other < len(turn):
                self._keep(turn[other], sent)
                self.bar.update(sizes[turn[other]])

        self.team.gather(None, {} if mine is None or rank == 0 else mine.arrays, receive)
        if rank == 0:
            self.kept.mark(turn[0])

    def _compute(self, n: int) -> Place:
        block = self.blocks[n]
        rows = self.rows(block)
        place = Place(self.arrays, rows)
        if self.team.rank > 0:  # what this rank gives is sent: it needs room for one block alone
            room = {name: torch.zeros(len(rows), *x.shape[1:], dtype=x.dtype) for name, x in self.arrays.items()}
            place = Place(room, torch.arange(len(rows)))
        waiting: list[Future[None]] = []
        for count, writes in self.compute(block, place):
            _settle(waiting)
            waiting = [self.writers.submit(write) for write in writes]
            self.bar.update(count)
        _settle(waiting)
        return place

    def _keep(self, n: int, sent: dict[str, Tensor]) -> None:
        rows = self.rows(self.blocks[n])
        for name, values in sent.items():
            self.arrays[name][rows] = values
        self.kept.mark(n)


def laid_out(fields: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Return arrays that have a type and a shape and no numbers: those of ranks that keep nothing."""
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in fields.items()}


def _mark(kept: Kept, block: int, written: Sequence[Future[None]]) -> None:
    _settle(written)
    kept.mark(block)


def _settle(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()
