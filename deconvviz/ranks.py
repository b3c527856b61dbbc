"""Several processes that share one call: who they are, what they tell each other, and how they end together.

The processes are those of the process group that `torch.distributed` has (of torchrun, or of a training of the user's
own). What is shared here travels over gloo, beside whatever the training uses: small messages and results, no
gradients. May import: devices, errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed

from .errors import RankError

ARRIVE = 600.0  # seconds that one rank waits for the others to make the same call
ANSWER = 1800.0  # seconds without a word from a rank that is at work
_PATIENT = 7 * 24 * 3600.0  # seconds that ranks wait for what one of them does for all
_PIECE = 1 << 28  # bytes sent at once

_P = ParamSpec("_P")
_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)


class _Here(threading.local):
    team: Team | None = None
    alone = False


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that share a call, as one of them sees it.

    Attributes:
        rank: this process's number; rank 0 shows the progress and writes the files.
        size: how many there are.
        local: this process's number among those of its machine.
        groups: two groups of gloo over all of them: one that waits `ANSWER`, and a patient one; none any more when this
            process has left, whoever still holds the team: a connection is closed with the last that holds it.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    groups: list[Any] = dataclasses.field(default_factory=list, compare=False)

    def exchange(self, value: Any = None) -> list[Any]:
        """Return what each rank gave, in their order; a rank that failed meanwhile ends all of them."""
        return [value] if self.size == 1 else self._exchange(None, value)

    def _exchange(self, error: BaseException | None, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        said = None if error is None else f"{type(error).__name__}: {str(error).rstrip('.')}."
        with self._connected():
            distributed.all_gather_object(found, (said, value), group=self.groups[0])
        failed = [f"rank {rank} failed: {text}" for rank, (text, _) in enumerate(found) if text is not None]
        if failed and error is None:
            raise _told(RankError(f"{'; '.join(failed)} This rank ({self.rank} of {self.size}) stops as well. {_KEPT}"))
        return [given for _, given in found]

    def spread(self, array: Tensor, source: int) -> None:
        """Give every rank the numbers that a contiguous array on the CPU has on one of them."""
        if self.size > 1:
            with self._connected():
                for piece in _pieces(array):
                    distributed.broadcast(piece, source, group=self.groups[0])

    def add(self, numbers: Tensor) -> Tensor:
        """Return the sum of what the ranks have, on each of them; gradients pass through it."""
        if self.size == 1:
            return numbers
        total: Tensor = _Sum.apply(numbers, self.group(numbers.device))
        return total

    def group(self, device: torch.device) -> Any:
        """Return the group that carries the numbers of a device: the user's own where gloo would copy them."""
        return self.groups[0] if device.type == "cpu" else distributed.group.WORLD

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Go through work in which the ranks do not exchange words but numbers.

        A rank that fails in there leaves, for nobody listens; the others notice that the connection is closed.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1 or getattr(error, "was_told", False):
                raise
            if _is_of_the_connection(error):
                with self._connected():
                    raise
            _leave()
            _told(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Tell the others, at their next exchange, that this rank cannot go on."""
        if isinstance(error, Exception):
            with contextlib.suppress(RankError):
                self._exchange(error, None)
                _told(error)
        else:  # an interrupt may have cut an exchange in two: the others hear it from their closed connections
            _leave()

    def share(self, make: Callable[[], _T]) -> _T:
        """Return on every rank what rank 0 makes, or raise there what it raises."""
        if self.size == 1:
            return make()
        self.exchange()  # whoever failed on the way here says so now: from here on rank 0 alone can fail
        data, error = b"", None
        if self.rank == 0:
            try:
                with alone():  # the others are not in there
                    data = pickle.dumps(make())
            except Exception as problem:
                data, error = _pickled(problem), problem
        head = torch.tensor([len(data), error is not None])
        with self._connected():
            distributed.broadcast(head, 0, group=self.groups[1])
            size, failed = head.tolist()
            sent = (
                torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(size, dtype=torch.uint8)
            )
            for piece in _pieces(sent):
                distributed.broadcast(piece, 0, group=self.groups[0])
        if error is not None:
            raise _told(error)
        value = pickle.loads(sent.numpy().tobytes())
        if failed:
            raise _told(value)
        return value

    def agree(self, value: object, what: str) -> None:
        """Refuse ranks that were given different things."""
        found = self.exchange(value)
        if other := [rank for rank, given in enumerate(found) if given != found[0]]:
            listed = ", ".join(map(str, other))
            raise _told(RankError(f"rank {listed} and rank 0 were given other {what}. Give the same to every rank."))

    def gather(
        self, facts: Any, arrays: Mapping[str, Tensor], take: Callable[[int, Any, dict[str, Tensor]], None]
    ) -> None:
        """Bring facts and arrays to rank 0, which calls `take` with those of rank 1, 2, …, one after the other."""
        if self.size == 1:
            return
        shapes = {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()}
        given = self.exchange((facts, shapes))
        if self.rank > 0:
            for array in arrays.values():
                self._send(array, 0)
            return
        for rank, (known, fields) in enumerate(given[1:], 1):
            take(rank, known, {name: self._receive(dtype, shape, rank) for name, (dtype, shape) in fields.items()})

    def deliver(self, make: Callable[[], Any], kind: Any, out: str | os.PathLike[str] | None) -> Any:
        """Return on every rank the result, a `kind`, that rank 0 makes.

        A rank that sees the same file at `out` maps it; to the others the numbers are sent.
        """
        if self.size == 1:
            return make()
        made: list[Any] = []

        def describe() -> tuple[Any, dict[str, Any], Any]:
            made.append(make())
            facts, arrays = made[0].header()
            return facts, {name: (x.dtype, tuple(x.shape)) for name, x in arrays.items()}, _mark(out)

        facts, fields, mark = self.share(describe)
        lacking = self.exchange(self.rank > 0 and (mark is None or _mark(out) != mark))
        if self.rank == 0:
            for name, array in made[0].header()[1].items():
                assert name in fields
                for rank in (rank for rank, lacks in enumerate(lacking) if lacks):
                    self._send(array, rank)
            return made[0]
        if not lacking[self.rank]:
            return kind.load(out)
        return kind.from_header(
            facts, {name: self._receive(dtype, shape, 0) for name, (dtype, shape) in fields.items()}
        )

    def _send(self, array: Tensor, to: int) -> None:
        with self._connected():
            for piece in _pieces(array.detach().cpu().contiguous()):
                distributed.send(piece, to, group=self.groups[0])

    def _receive(self, dtype: torch.dtype, shape: tuple[int, ...], source: int) -> Tensor:
        array = torch.empty(shape, dtype=dtype)
        with self._connected():
            for piece in _pieces(array):
                distributed.recv(piece, source, group=self.groups[0])
        return array

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Say in one sentence that another process is gone, whatever gloo says."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            _leave()
            raise _told(
                RankError(
                    f"a rank is gone, killed or cut off, or did not answer within {ANSWER / 60:.0f} minutes; this is "
                    f"rank {self.rank} of {self.size}. {_KEPT}"
                )
            ) from error


class _Sum(torch.autograd.Function):
    """The sum over the ranks; each has the gradient of what became of it on all of them."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = numbers.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group), None


_KEPT = "What was written before is kept: the same call goes on from there, with any number of ranks."
_ALONE = Team()
_OF_CONNECTIONS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Socket")
_here = _Here()
_known: list[Team] = []  # the team over the group that was there at the last call
_of: list[Any] = []  # that group


def team() -> Team:
    """Return the processes that share the call in progress: this one alone, outside of such a call."""
    return _ALONE if _here.alone or _here.team is None else _here.team


def is_first() -> bool:
    """Say whether this process is the one that writes, of those in its process group."""
    return not several() or distributed.get_rank() == 0


def several() -> bool:
    """Say whether there is a process group of several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def together(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let all processes of a group share each call of a function: all of them have to make it.

    Inside, `team` says who they are. A rank that fails ends the call on all.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **options: _P.kwargs) -> _T:
        if _here.team is not None or _here.alone or not several():
            return function(*args, **options)
        with _joined(function.__qualname__):
            return function(*args, **options)

    called.is_shared = True  # type: ignore[attr-defined]
    return called


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process make its calls by itself, though there are others in its process group.

    Example:
        >>> with alone():  # for instance on rank 0 of a training, where no other rank makes this call
        ...     deconvviz.top(zoo.create("zfnet64"), layers=[1], progress=False).k
        9
    """
    before, _here.alone = _here.alone, True
    try:
        yield
    finally:
        _here.alone = before


def own_device() -> str:
    """Return the accelerator of this process, of those that torchrun started on this machine, or the CPU."""
    number = os.environ.get("LOCAL_RANK", "0")
    return f"cuda:{number}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def launched() -> Iterator[int]:
    """Be one of the processes that torchrun started; yield this one's rank."""
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        _leave()
        distributed.destroy_process_group()


@contextlib.contextmanager
def _joined(name: str) -> Iterator[None]:
    joined = _here.team = _meet(name)
    try:
        yield
        joined.exchange()  # none leaves before all have succeeded: a failure always finds the others listening
    except BaseException as error:
        if not getattr(error, "was_told", False):
            joined.fail(error)
        raise
    finally:
        _here.team = None


def _meet(name: str) -> Team:
    """Wait until every process of the group is here with the same call."""
    found = _known[0] if _known and _of[0] is distributed.group.WORLD else _connect()
    try:
        distributed.monitored_barrier(found.groups[0], datetime.timedelta(seconds=ARRIVE), wait_all_ranks=True)
    except RuntimeError as error:
        _leave()
        raise _told(
            RankError(
                f"{name} was called on rank {found.rank} of {found.size}, but not on all within {ARRIVE / 60:.0f} "
                "minutes, or one of them is gone. Ranks share the work: make the call on every rank, or inside `with "
                "deconvviz.alone():` on one."
            )
        ) from error
    names = found.exchange(name)
    if len({*names}) > 1:
        calls = ", ".join(f"{call} on rank {rank}" for rank, call in enumerate(names))
        raise _told(RankError(f"the ranks make different calls: {calls}. Ranks share the work: make one call on all."))
    return found


def _connect() -> Team:
    """Make the groups of gloo over all processes, each once for a process group."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    waits = (datetime.timedelta(seconds=seconds) for seconds in (ANSWER, _PATIENT))
    groups = [distributed.new_group(timeout=wait, backend="gloo") for wait in waits]
    found = Team(rank, size, 0, groups)
    hosts = found.exchange(socket.gethostname())
    found = dataclasses.replace(found, local=hosts[:rank].count(hosts[rank]))
    _known[:], _of[:] = [found], [distributed.group.WORLD]
    return found


def _leave() -> None:
    """Close the connections, so that the others do not wait; the next call makes new ones."""
    for old in _known:
        while old.groups:
            with contextlib.suppress(Exception):
                distributed.destroy_process_group(old.groups.pop())
    _known.clear()
    _of.clear()


def _told(error: _E) -> _E:
    """Mark an error that all ranks know of."""
    error.was_told = True  # type: ignore[attr-defined]
    return error


def _pickled(error: Exception) -> bytes:
    """Return an error as bytes; one that cannot be sent becomes its message."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RankError(f"rank 0 failed: {type(error).__name__}: {error}"))


def _is_of_the_connection(error: BaseException) -> bool:
    """Say whether it is gloo's or NCCL's error, of another rank that is gone; both have no type of their own."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OF_CONNECTIONS)


def _pieces(array: Tensor) -> Sequence[Tensor]:
    """Return the memory of a contiguous array as bytes, in pieces."""
    return array.flatten().view(torch.uint8).split(_PIECE) if array.numel() else ()


def _mark(path: str | os.PathLike[str] | None) -> tuple[int, int] | None:
    """Return what tells a file from the one that was there before, None where there is none."""
    try:
        facts = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if facts is None else (facts.st_size, facts.st_mtime_ns)
