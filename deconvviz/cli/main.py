"""The command line: one subcommand per public function, one public call in each."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from ..errors import DeconvvizError
from .options import Followed, is_launched
from .parser import parse

# Nothing here imports torch before a command runs: `deconvviz --help` answers at once.


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake, 130 after Ctrl-C, 143 when terminated.

    Example:
        >>> main(["layers", "zfnet64"])  # doctest: +SKIP
    """
    parsed = parse(arguments)
    try:
        with _terminated_like_ctrl_c(), _collecting_rarely(), _beside_others(parsed):
            parsed.run(parsed)
            sys.stdout.flush()
    except Followed:
        return 0
    except DeconvvizError as error:
        return _say(f"deconvviz {parsed.command}: {error}", 2)
    except _Terminated:
        return _say(f"deconvviz {parsed.command}: terminated", 143)
    except KeyboardInterrupt:
        return _say(f"deconvviz {parsed.command}: interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@contextlib.contextmanager
def _beside_others(parsed: argparse.Namespace) -> Iterator[None]:
    """Be one of the processes of torchrun, where it started this one: they share the work, rank 0 writes and speaks."""
    if not is_launched():
        yield
        return
    from .. import ranks

    parsed.run.check_shared()
    if getattr(parsed, "device", None) in ("cuda", "auto"):
        parsed.device = ranks.own_device()
    with ranks.launched() as rank, contextlib.ExitStack() as stack:
        if rank > 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except DeconvvizError as error:
            if rank > 0 and getattr(error, "was_told", False):  # another rank says it
                raise SystemExit(2) from error
            raise


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Look for garbage rarely: it takes a twentieth of a command's time, nearly all of it among what the imports made."""
    before = gc.get_threshold()
    gc.set_threshold(50_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM run what cleans up: temporary files go, and what can be resumed can be resumed."""

    def stop(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
