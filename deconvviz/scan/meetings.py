"""When processes that walk one set of images meet: all of them equally far, every few seconds."""

from __future__ import annotations

import math
import time

from ..ranks import Team

EVERY = 5.0  # seconds between two meetings, as far as whole batches allow


class Meetings:
    """The meetings of the ranks that take the batches from image `start` on in turn, one batch each per round.

    They agree from one meeting to the next after how many rounds it will be. The first is after one round, for then
    they know how long it takes; the last is after the last round. One process alone has none.
    """

    def __init__(self, team: Team, start: int, total: int, batch_size: int) -> None:
        self.team, self.start, self.total = team, start, total
        self.round = batch_size * team.size  # images of a round
        self.rounds = math.ceil((total - start) / self.round)
        self.next = min(1, self.rounds)  # rounds that are done at the next meeting
        self.over = team.size == 1
        self._last, self._since = 0, time.monotonic()

    def due(self, first: int) -> bool:
        """Say whether a meeting comes before the batch that begins with image `first`."""
        return not self.over and (first - self.start) // self.round >= self.next

    def reached(self, count: int) -> int:
        """Return about how many images all have done when this rank's last one was `count` - 1."""
        if self.over and self.team.size == 1:
            return count
        return min(self.total, self.start + math.ceil((count - self.start) / self.round) * self.round)

    def meet(self, keep: bool) -> int | None:
        """Wait for the others; return how many images are done if what was found is brought together now, else None.

        It is where a rank wants to `keep` it, and at the last meeting.
        """
        seconds = (time.monotonic() - self._since) / max(1, self.next - self._last)
        said = self.team.exchange((seconds, keep))
        done, self._last, self._since = self.next, self.next, time.monotonic()
        self.over = done == self.rounds
        slowest = max(seconds for seconds, _ in said)
        self.next = min(self.rounds, done + max(1, int(EVERY / max(slowest, 1e-6))))
        if self.over or any(wanted for _, wanted in said):
            return min(self.total, self.start + done * self.round)
        return None
