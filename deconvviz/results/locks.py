"""Locks on files, between processes and threads: who writes what, and which temporary files nobody writes any more.

A lock is the system's own (`flock`): it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has none: two writers are not noticed there, and nothing is tidied up
    fcntl = None  # type: ignore[assignment]

_POLL = 0.05  # seconds


def take(handle: int) -> bool | None:
    """Take the lock of an open file: True if it is ours now, False if it is another's, None where there are none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


def claim(path: Path, of: str | os.PathLike[str], *, wait: bool = False) -> int:
    """Open or make the file at `path` for reading and writing, and hold its lock: whoever has it may write `of`.

    Raises:
        StoreError: Another process or thread has it, or the folder cannot be written.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(
                f"cannot write {of}: {error.strerror}. Give a path in a folder you may write to."
            ) from error
        taken = take(handle)
        # The one before may have removed the file between our opening and our lock.
        with contextlib.suppress(FileNotFoundError):
            if taken is not False and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
        if taken is False and not wait:
            raise StoreError(
                f"another process or thread is writing {of}. Wait until it has ended, or give another path."
            )
        time.sleep(_POLL)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Be the only one that writes `path`, from reading it to replacing it.

    Args:
        path: The file; the lock is an empty file beside it, which goes at the end.
        wait: Wait for another writer to end instead of refusing.

    Raises:
        StoreError: Another process or thread is writing it, or its folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.lock")
    handle = claim(beside, path, wait=wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
        os.close(handle)


def temporary_beside(target: Path) -> tuple[Path, int]:
    """Make a file beside `target` and hold its lock; remove those that killed processes left there.

    The system gives it the rights that a new file has for this process, whatever its umask is.
    """
    for left in glob.glob(str(Path(glob.escape(str(target.parent)), f".{glob.escape(target.name)}.{_ANY}.part"))):
        _remove_if_free(left)
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if take(handle) is not False and os.fstat(handle).st_nlink:
                return path, handle
            os.close(handle)  # another process took it for a stale one


_ANY = "[0-9a-f]" * 8


def _remove_if_free(path: str) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR)
        try:
            if take(handle):
                os.unlink(path)
        finally:
            os.close(handle)
